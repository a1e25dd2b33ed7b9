"""CVAT for images 1.1: one XML file, with a mask for each region.

A mask is run-length encoded row by row within its box, from pixels outside it. Open pixels are masks of the label
`__ignore__`. Read back, shapes are painted by `z_order` and, of one order, as they come; masks, polygons, boxes and
ellipses have an area, other shapes are counted and left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from xml.etree import ElementTree as Tree

import numpy as np

from mcc_core.data.voc import palette
from mcc_core.errors import DataError
from mcc_core.exporting.label_formats.base import (
    BACKGROUND,
    COVERS_NOTHING,
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
from mcc_core.exporting.label_formats.outlines import filled, from_runs, painted, regions, runs
from mcc_core.files import whole

FILE = "annotations.xml"


class Cvat(LabelFormat):
    """Exact in both directions."""

    name, title = "cvat", "CVAT for images 1.1"

    def write(
        self, out: Path, maps: Iterable[tuple[Picture, np.ndarray]], classes: Sequence[str], split: str
    ) -> list[str]:
        names, colours = names_of_labels(classes), np.array(palette()).reshape(256, 3)
        root = Tree.Element("annotations")
        Tree.SubElement(root, "version").text = "1.1"
        task = Tree.SubElement(Tree.SubElement(root, "meta"), "task")
        Tree.SubElement(task, "name").text = split
        labels = Tree.SubElement(task, "labels")
        for number, name in sorted(names.items()):
            if number:
                label = Tree.SubElement(labels, "label")
                Tree.SubElement(label, "name").text = name
                Tree.SubElement(label, "color").text = "#{:02x}{:02x}{:02x}".format(*colours[number])
                Tree.SubElement(label, "type").text = "any"
                Tree.SubElement(label, "attributes")
        count = 0
        for at, (picture, values) in enumerate(maps):
            size = {"width": str(picture.width), "height": str(picture.height)}
            image = Tree.SubElement(root, "image", {"id": str(at), "name": picture.file, **size})
            for region in regions(values):
                height, width = region.mask.shape
                box = {"left": region.left, "top": region.top, "width": width, "height": height}
                fields = {"label": names[region.label], "source": "automatic", "occluded": "0"}
                fields |= {"rle": ", ".join(map(str, runs(region.mask)))}
                fields |= {key: str(value) for key, value in box.items()} | {"z_order": "0"}
                Tree.SubElement(image, "mask", fields)
                count += 1
        Tree.indent(root)
        with whole(out / FILE) as partial:
            Tree.ElementTree(root).write(partial, encoding="utf-8", xml_declaration=True)
        return [f"{count} masks; upload {FILE} to a task of the same images as 'CVAT 1.1'"]

    def read(
        self, source: Path, pictures: Pictures, classes: Sequence[str], reading: Reading
    ) -> Iterator[tuple[Picture, np.ndarray]]:
        file = source / FILE if source.is_dir() else source
        root = _parsed(file)
        left_out: list[str] = []
        images = [(f"{file}: image {image.get('id', '?')}", image) for image in root.findall("image")]
        once = reading.once([(where, pictures.find(image.get("name", ""))) for where, image in images])
        for (where, image), alone in zip(images, once, strict=True):
            if not alone:
                continue
            called = image.get("name", "")
            picture = pictures.find(called)
            try:
                if picture is None:
                    raise DataError(no_image(where, called))
                size = (image.get("width", str(picture.width)), image.get("height", str(picture.height)))
                if size != (str(picture.width), str(picture.height)):
                    raise DataError(other_size(where, *size, picture))
                label, skipped = _label(image, where, picture, classes)
            except DataError as error:
                reading.problems.append(str(error))
                continue
            left_out += skipped
            yield picture, label
        reading.note(left_out, COVERS_NOTHING)
        others = [f"{file}: <{part.tag}>" for part in root if part.tag not in ("image", "version", "meta")]
        reading.note(others, "parts left out, which are no <image>")


def _parsed(file: Path) -> Tree.Element:
    """The root of a file. Raises DataError."""
    try:
        text = file.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DataError(f"{file}: {error.strerror or error}; expected CVAT's {FILE}") from None
    except UnicodeDecodeError:
        raise DataError(f"{file}: not UTF-8 text; expected CVAT's {FILE}") from None
    if not text.strip():
        raise DataError(f"{file}: it is empty; expected CVAT's {FILE}")
    if "<!DOCTYPE" in text or "<!ENTITY" in text:  # entities can grow without bound or read other files
        raise DataError(f"{file}: document type declarations are not accepted")
    try:
        root = Tree.fromstring(text)
    except Tree.ParseError as error:
        raise DataError(f"{file}: line {error.position[0]}: not valid XML; expected CVAT's {FILE}") from None
    if root.tag != "annotations" or not root.findall("image"):
        raise DataError(f"{file}: no <image> in <annotations>; expected 'CVAT for images 1.1'")
    return root


def _label(image: Tree.Element, where: str, picture: Picture, classes: Sequence[str]) -> tuple[np.ndarray, list[str]]:
    """The label map of an <image>, and its shapes that cover no pixel. Raises DataError."""
    numbers = {**class_numbers(classes), "background": 0, BACKGROUND: 0}
    shapes: list[tuple[int, int, np.ndarray]] = []
    left_out = []
    for shape in image:
        draw = _DRAWN.get(shape.tag)
        here = f"{where}: <{shape.tag}>"
        if draw is None:
            left_out.append(here)
            continue
        name = shape.get("label", "")
        if name not in numbers:
            raise DataError(unknown_class(here, name, classes))
        try:
            order = _whole(shape, "z_order", "0")
            area = draw(shape, picture.height, picture.width)
        except (ValueError, KeyError) as error:
            said = f"lacks {error.args[0]!r}" if isinstance(error, KeyError) else str(error)
            raise DataError(f"{here}: {said}; not as CVAT writes it") from None
        if area.any():
            shapes.append((order, numbers[name], area))
        else:
            left_out.append(here)
    shapes.sort(key=lambda shape: shape[0])  # keeps the order of equals
    return painted(((number, area) for _, number, area in shapes), picture.height, picture.width), left_out


def _mask(shape: Tree.Element, height: int, width: int) -> np.ndarray:
    left, top, across, down = (_whole(shape, key) for key in ("left", "top", "width", "height"))
    if min(left, top, across, down) < 0 or top + down > height or left + across > width:
        raise ValueError("its box reaches outside the image")
    lengths = [part.strip() for part in shape.attrib["rle"].split(",")]
    if wrong := next((part for part in lengths if not (part.isascii() and part.isdigit())), None):
        raise ValueError(f"rle: {wrong!r}: expected whole numbers with commas between")
    small = from_runs(map(int, lengths), down, across)
    mask = np.zeros((height, width), bool)
    mask[top : top + down, left : left + across] = small
    return mask


def _polygon(shape: Tree.Element, height: int, width: int) -> np.ndarray:
    try:
        points = [[float(number) for number in pair.split(",")] for pair in shape.attrib["points"].split(";")]
    except ValueError:
        points = []
    if len(points) < 3 or any(len(pair) != 2 for pair in points):
        raise ValueError("its points are not three or more x,y")
    return filled(points, height, width)


def _box(shape: Tree.Element, height: int, width: int) -> np.ndarray:
    x0, y0, x1, y1 = (_number(shape, key) for key in ("xtl", "ytl", "xbr", "ybr"))
    corners = np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)])
    return filled(_turned(corners, shape), height, width)


def _ellipse(shape: Tree.Element, height: int, width: int) -> np.ndarray:
    cx, cy, rx, ry = (_number(shape, key) for key in ("cx", "cy", "rx", "ry"))
    angles = np.linspace(0, 2 * np.pi, 360, endpoint=False)
    return filled(_turned(np.stack([cx + rx * np.cos(angles), cy + ry * np.sin(angles)], 1), shape), height, width)


def _turned(points: np.ndarray, shape: Tree.Element) -> np.ndarray:
    """Points turned clockwise by a shape's `rotation`, in degrees, around their middle."""
    angle = np.deg2rad(_number(shape, "rotation", "0"))
    middle = (points.min(0) + points.max(0)) / 2
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    return (points - middle) @ turn + middle


def _number(shape: Tree.Element, key: str, default: str | None = None) -> float:
    """A number of a shape. Raises KeyError where it has none, ValueError for what is none."""
    text = shape.attrib[key] if default is None else shape.get(key, default)
    try:
        number = float(text)
    except ValueError:
        number = np.nan
    if not np.isfinite(number):
        raise ValueError(f"{key}: {text!r}: expected a number")
    return number


def _whole(shape: Tree.Element, key: str, default: str | None = None) -> int:
    """The whole part of a number of a shape. Raises as `_number` does."""
    return int(_number(shape, key, default))


_DRAWN: dict[str, Callable[[Tree.Element, int, int], np.ndarray]] = {
    "mask": _mask,
    "polygon": _polygon,
    "box": _box,
    "ellipse": _ellipse,
}
