"""Reading a folder in PASCAL VOC layout, and its palette.

Layout: `JPEGImages/<id>.jpg`, `Annotations/<id>.xml` (image-level labels), `SegmentationClass/<id>.png` (masks),
`ImageSets/Segmentation/<split>.txt` (ids).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

from mcc_core.errors import DataError

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


def read_split(root: Path, split: str) -> list[str]:
    """Ids of a split. Raises DataError when the list is missing or empty, or an id is repeated or not a plain name."""
    path = root / "ImageSets" / "Segmentation" / f"{split}.txt"
    try:
        lines = path.read_text(encoding="utf-8").split()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot read the ids of split {split!r}: {error}") from None
    if not lines:
        raise DataError(f"{path}: no ids in it")
    for name in lines:
        if "/" in name or "\\" in name or name.startswith("."):
            raise DataError(f"{path}: {name!r}: an id must be a plain file name without folder or suffix")
    if len(set(lines)) < len(lines):
        twice = next(name for name in lines if lines.count(name) > 1)
        raise DataError(f"{path}: {twice!r}: listed more than once")
    return lines


def read_labels(root: Path, name: str, classes: Sequence[str]) -> tuple[int, ...]:
    """0-based indices of the classes that the XML annotation of an image lists, difficult objects included.

    Raises DataError when the annotation is missing, malformed, or names an unknown class.
    """
    path = root / "Annotations" / f"{name}.xml"
    try:
        text = path.read_text(encoding="utf-8")
        if "<!DOCTYPE" in text or "<!ENTITY" in text:
            raise DataError(f"{path}: document type declarations are not accepted")
        tree = ElementTree.fromstring(text)
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}: it holds the image-level labels") from None
    except (ElementTree.ParseError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not valid XML: {error}") from None
    found = set()
    for node in tree.findall("object/name"):
        if node.text not in classes:
            known = ", ".join(classes[:5]) + (", ..." if len(classes) > 5 else "")
            raise DataError(f"{path}: class {node.text!r} is not among data.classes ({known})")
        found.add(classes.index(node.text))
    return tuple(sorted(found))


def read_class_file(path: Path) -> tuple[str, ...]:
    """Class names, one a line; a first line `background` is left out. Raises DataError."""
    try:
        names = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"data.classes: {path}: cannot be read: {error}") from None
    names = names[1:] if names[:1] == ["background"] else names
    if not 1 <= len(names) <= 254 or len(set(names)) < len(names):
        raise DataError(f"data.classes: {path}: expected 1 to 254 different class names, one a line")
    return tuple(names)
