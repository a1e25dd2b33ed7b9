"""PASCAL VOC: palette PNGs of class numbers, an image set list, and the colours of the classes as CVAT names them.

`SegmentationClass/<image>.png`, `ImageSets/Segmentation/<split>.txt`, `labelmap.txt`, `classes.txt`. Colour PNGs, as
CVAT exports them ("Segmentation mask 1.1"), are read by `labelmap.txt`, or by VOC's palette where there is none.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from mcc_core.data.pixels import IMAGE_ERRORS, read_mask
from mcc_core.data.voc import palette, palette_png
from mcc_core.errors import DataError
from mcc_core.exporting.label_formats.base import (
    IGNORE,
    LabelFormat,
    Picture,
    Pictures,
    Reading,
    class_numbers,
    names_of_labels,
    no_image,
    other_size,
    unknown_class,
)

_COLOURS = np.array(palette(), np.uint8).reshape(256, 3)


class Voc(LabelFormat):
    """Exact in both directions."""

    name, title = "voc", "PASCAL VOC"

    def write(
        self, out: Path, maps: Iterable[tuple[Picture, np.ndarray]], classes: Sequence[str], split: str
    ) -> list[str]:
        listed = []
        for picture, label in maps:
            file = out / "SegmentationClass" / f"{picture.name}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(palette_png(label))
            listed.append(picture.name)
        lists = out / "ImageSets" / "Segmentation"
        lists.mkdir(parents=True, exist_ok=True)
        (lists / f"{split}.txt").write_text("".join(f"{name}\n" for name in listed), encoding="utf-8")
        (out / "classes.txt").write_text("".join(f"{name}\n" for name in ("background", *classes)), encoding="utf-8")
        named = {number: "background" if number == 0 else name for number, name in names_of_labels(classes).items()}
        lines = [f"{name}:{','.join(map(str, _COLOURS[number]))}::" for number, name in sorted(named.items())]
        (out / "labelmap.txt").write_text("\n".join(["# label:color_rgb:parts:actions", *lines, ""]), encoding="utf-8")
        return ["SegmentationClass has the class numbers, 255 is open; images are not copied"]

    def read(
        self, source: Path, pictures: Pictures, classes: Sequence[str], reading: Reading
    ) -> Iterator[tuple[Picture, np.ndarray]]:
        if not source.is_dir():
            raise DataError(f"{source}: is a file; expected a folder of label maps, as SegmentationClass/<image>.png")
        folder = next((f for f in (source / "SegmentationClass", source / "maps") if f.is_dir()), source)
        there = [f for f in sorted(folder.rglob("*")) if f.is_file() and not f.name.startswith(".")]
        maps = [file for file in there if file.suffix.lower() == ".png"]
        files = {file.relative_to(folder).with_suffix("").as_posix(): file for file in maps}
        if twice := set(maps) - set(files.values()):
            raise DataError(f"{min(twice)}: a second map of one image; expected one PNG of each")
        own = {
            *maps,
            *(folder / "ImageSets").rglob("*.txt"),
            *(folder / name for name in ("labelmap.txt", "classes.txt")),
        }
        others = [str(file) for file in there if file not in own]
        reading.note(others, "files left out, which are no PNG")
        if not files:
            raise DataError(f"{folder}: no PNG in it; expected label maps, as SegmentationClass/<image>.png")
        colours = _colours(source / "labelmap.txt", classes)
        listed = _listed(source)
        for name in listed:
            if name not in files:
                reading.problems.append(f"{folder / name}.png: no such file; ImageSets lists it")
        spare = set(files) - set(listed) if listed else set[str]()
        reading.note(sorted(spare), "files left out, which no list of ImageSets/Segmentation has")
        renumbered: list[str] = []
        chosen = [(name, file) for name, file in files.items() if name not in spare]
        once = reading.once([(str(file), pictures.find(name)) for name, file in chosen])
        for (name, file), alone in zip(chosen, once, strict=True):
            if not alone:
                continue
            picture = pictures.find(name)
            if picture is None:
                reading.problems.append(no_image(str(file), name))
                continue
            try:
                label = _label(file, colours, classes, renumbered)
            except DataError as error:
                reading.problems.append(str(error))
                continue
            if label.shape != (picture.height, picture.width):
                reading.problems.append(other_size(str(file), label.shape[1], label.shape[0], picture))
                continue
            yield picture, label
        reading.note(renumbered, "palettes read by their colours, whose numbers are others")


def _listed(source: Path) -> list[str]:
    """The images that the lists name; none where there are no lists."""
    names: dict[str, None] = {}
    for file in sorted((source / "ImageSets" / "Segmentation").glob("*.txt")):
        try:
            lines = file.read_text(encoding="utf-8-sig").splitlines()
        except UnicodeDecodeError:
            raise DataError(f"{file}: not UTF-8 text; expected the name of an image a line") from None
        names |= dict.fromkeys(line.strip() for line in lines if line.strip())
    return list(names)


def _colours(file: Path, classes: Sequence[str]) -> dict[tuple[int, ...], int]:
    """RGB to label, of CVAT's `labelmap.txt`, or VOC's palette. Raises DataError."""
    numbers = {**class_numbers(classes), "background": 0}
    if not file.is_file():
        return {tuple(_COLOURS[number].tolist()): number for number in sorted(numbers.values())}
    known: dict[tuple[int, ...], int] = {}
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise DataError(f"{file}: not UTF-8 text; expected name:red,green,blue:: a line") from None
    for at, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        parts = line.rsplit(":", 3)
        shades = parts[1].split(",") if len(parts) == 4 else []
        if len(shades) != 3 or not all(shade.strip().isdecimal() and int(shade) < 256 for shade in shades):
            raise DataError(f"{file}: line {at}: {line!r}: expected name:red,green,blue::")
        if parts[0] not in numbers:
            raise DataError(unknown_class(f"{file}: line {at}", parts[0], classes))
        known[tuple(int(shade) for shade in shades)] = numbers[parts[0]]
    return known


def _label(
    file: Path, colours: dict[tuple[int, ...], int], classes: Sequence[str], renumbered: list[str]
) -> np.ndarray:
    """A label map by colours, or by the numbers of a palette whose colours are no classes'. Raises DataError.

    A file where both say something, and not the same, comes to the `renumbered` ones.
    """
    if file.stat().st_size == 0:
        raise DataError(f"{file}: it is empty (0 bytes); expected a PNG")
    try:
        with Image.open(file) as image:
            by_colour = image.mode in ("RGB", "RGBA") or _coloured(image, file, colours, renumbered)
            coloured = np.array(image.convert("RGB")) if by_colour else None
    except IMAGE_ERRORS:
        raise DataError(f"{file}: cannot be read as a mask: it is no image, or a damaged one") from None
    if coloured is None:
        return read_mask(file, len(classes))
    packed = coloured.astype(np.uint32) @ np.array([1 << 16, 1 << 8, 1], np.uint32)
    label = np.full(packed.shape, IGNORE, np.uint8)
    for shade in np.unique(packed).tolist():
        rgb = (shade >> 16, shade >> 8 & 255, shade & 255)
        if rgb not in colours:
            raise DataError(f"{file}: colour {rgb} is of no class; labelmap.txt, or VOC's palette, says which are")
        label[packed == shade] = colours[rgb]
    return label


def _coloured(image: Image.Image, file: Path, colours: dict[tuple[int, ...], int], renumbered: list[str]) -> bool:
    """Whether the colours of a palette say what its pixels are: tools may number the colours that they use anew.

    Raises DataError where some say that a number is another class, and others are no class's.
    """
    if image.mode != "P":
        return False
    shades = np.array(image.getpalette("RGB"), int).reshape(-1, 3).tolist()
    numbers = np.unique(np.array(image)).tolist()
    used = {number: tuple(shades[number]) if number < len(shades) else () for number in numbers}
    strange = [shade for shade in used.values() if shade not in colours]
    other = [number for number, shade in used.items() if colours.get(shade, number) != number]
    if not strange:
        renumbered += [str(file)] if other else []
        return True
    if other:
        raise DataError(
            f"{file}: number {other[0]} has the colour of class {colours[used[other[0]]]}, and colour {strange[0]} is "
            "of no class; labelmap.txt, or VOC's palette, says which are"
        )
    return False
