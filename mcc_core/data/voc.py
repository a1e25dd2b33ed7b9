"""Reading a folder in PASCAL VOC layout, and its palette.

Layout: `JPEGImages/<id>.jpg`, `Annotations/<id>.xml` (image-level labels), `SegmentationClass/<id>.png` (masks),
`ImageSets/Segmentation/<split>.txt` (ids).
"""

from __future__ import annotations

import io
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
from PIL import Image

from mcc_core.errors import DataError

_ID = re.compile(r"[^\s/\\\0.][^\s/\\\0]*")  # cannot leave the folder
_ANNOTATION_BYTES = 1 << 20

VOC_CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip


def palette() -> list[int]:
    """The 256 RGB colours of VOC masks, flat: bits of the label spread over the colour channels."""
    colours = []
    for label in range(256):
        rgb = [0, 0, 0]
        for bit in range(8):
            for channel in range(3):
                rgb[channel] |= (label >> (3 * bit + channel) & 1) << (7 - bit)
        colours += rgb
    return colours


def palette_png(label: np.ndarray) -> bytes:
    """A label map H,W uint8 as a PNG with VOC's palette."""
    picture = Image.fromarray(label, mode="P")
    picture.putpalette(palette())
    stream = io.BytesIO()
    picture.save(stream, format="PNG")
    return stream.getvalue()


def check_split_name(split: str) -> None:
    """Raises DataError unless a split's name is a plain one, which cannot lead out of the folder."""
    if not _ID.fullmatch(split):
        raise DataError(f"data: {split!r}: a split is a plain name, as in ImageSets/Segmentation/<name>.txt")


def read_split(root: Path, split: str) -> list[str]:
    """Ids of a split. Raises DataError when the list is missing or empty, or an id is repeated or not a plain name."""
    check_split_name(split)
    path = root / "ImageSets" / "Segmentation" / f"{split}.txt"
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError:
        there = ", ".join(sorted(other.stem for other in path.parent.glob("*.txt"))) or "none"
        raise DataError(f"{path}: no such file: it lists the ids of split {split!r} (splits there: {there})") from None
    except OSError as error:
        raise DataError(f"{path}: cannot read the ids of split {split!r}: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise DataError(f"{path}: cannot read the ids of split {split!r}: not UTF-8 text") from None
    names = []
    for number, line in enumerate(lines, start=1):
        name = line.strip()
        if name and not _ID.fullmatch(name):
            raise DataError(f"{path}: line {number}: {name!r}: expected one id, a plain file name without folder")
        if Path(name).suffix in {".jpg", ".png", ".xml"}:
            raise DataError(f"{path}: line {number}: {name!r}: expected the id without {Path(name).suffix}")
        if name:
            names.append(name)
    if not names:
        raise DataError(f"{path}: no ids in it")
    name, times = Counter(names).most_common(1)[0]
    if times > 1:
        raise DataError(f"{path}: {name!r}: listed {times} times; each id may stand there once")
    return names


def read_labels(root: Path, name: str, classes: Sequence[str]) -> tuple[int, ...]:
    """0-based indices of the classes that the XML annotation of an image lists, difficult objects included.

    An annotation without objects gives (). Raises DataError when the annotation is missing, malformed, or names an
    unknown class.
    """
    path = root / "Annotations" / f"{name}.xml"
    try:
        with path.open("rb") as file:
            content = file.read(_ANNOTATION_BYTES + 1)
        if len(content) > _ANNOTATION_BYTES:
            raise DataError(f"{path}: larger than {_ANNOTATION_BYTES >> 20} MiB: not an annotation of one image")
        text = content.decode("utf-8-sig")
        if "<!DOCTYPE" in text or "<!ENTITY" in text:  # entities can grow without bound or read other files
            raise DataError(f"{path}: document type declarations are not accepted")
        tree = ElementTree.fromstring(text)
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}: it holds the image-level labels") from None
    except (ElementTree.ParseError, UnicodeDecodeError) as error:
        where = f"line {error.position[0]}: " if isinstance(error, ElementTree.ParseError) else ""
        raise DataError(f"{path}: {where}not valid XML; expected an annotation in VOC's form") from None
    if tree.tag != "annotation":
        raise DataError(f"{path}: <{tree.tag}>: expected <annotation> with the image's objects")
    names = set()
    for node in tree.findall("object"):
        label = (node.findtext("name") or "").strip()
        if label not in classes:
            known = ", ".join(classes[:5]) + (", ..." if len(classes) > 5 else "")
            raise DataError(f"{path}: class {label!r} is not among data.classes ({known})")
        names.add(classes.index(label))
    return tuple(sorted(names))


def read_class_file(path: Path) -> tuple[str, ...]:
    """Class names, one a line; a first line `background` is left out. Raises DataError."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"data.classes: {path}: cannot be read: {error}") from None
    return valid_classes([line.strip() for line in lines if line.strip()], str(path))


def valid_classes(names: Sequence[str], source: str) -> tuple[str, ...]:
    """Foreground names without a leading `background`. Raises DataError unless they are 1 to 254 different names."""
    names = names[1:] if list(names[:1]) == ["background"] else names
    if not 1 <= len(names) <= 254 or len(set(names)) < len(names) or not all(names):
        raise DataError(f"data.classes: {source}: expected 1 to 254 different class names, found {len(names)} names")
    return tuple(names)
