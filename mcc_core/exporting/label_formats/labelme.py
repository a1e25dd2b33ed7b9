"""LabelMe: a JSON file beside each image, with polygons.

A region of the label map is a polygon along the sides of its pixels, so that in LabelMe it lies on its pixels. Polygons
have no holes: what lies in a hole is a polygon of its own that comes later and lies on top, background as
`_background_`, open pixels as `__ignore__`, both LabelMe's own names. Read back, a pixel belongs to the last polygon
that encloses its centre; `mask`, `rectangle` and `circle` shapes are read too.
"""

from __future__ import annotations

import base64
import binascii
import io
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image
from pydantic import BaseModel, FiniteFloat, PositiveInt

from mcc_core.data.pixels import IMAGE_ERRORS
from mcc_core.errors import DataError, UsageError
from mcc_core.exporting.label_formats.base import (
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
from mcc_core.exporting.label_formats.outlines import filled, outline, painted, regions
from mcc_core.files import whole
from mcc_core.structured_files import read_json
from mcc_core.validation import validate

_VERSION = "5.5.0"  # of LabelMe, whose form is written
_AREAS = ("polygon", "rectangle", "circle", "mask")


class _Shape(BaseModel):
    label: str
    points: list[tuple[FiniteFloat, FiniteFloat]]
    shape_type: Literal["polygon", "rectangle", "circle", "mask", "line", "linestrip", "point", "points"] = "polygon"
    mask: str | None = None


class _File(BaseModel):
    shapes: list[_Shape]
    imagePath: str  # noqa: N815  LabelMe's names
    imageHeight: PositiveInt | None = None  # noqa: N815
    imageWidth: PositiveInt | None = None  # noqa: N815


class LabelMe(LabelFormat):
    """Exact in both directions, as polygons run along the sides of pixels."""

    name, title = "labelme", "LabelMe"

    def write(
        self, out: Path, maps: Iterable[tuple[Picture, np.ndarray]], classes: Sequence[str], split: str
    ) -> list[str]:
        names = names_of_labels(classes)
        within = 0
        for picture, label in maps:
            found = regions(label, background=True)
            within += sum(region.label == 0 for region in found)
            shapes = [
                {
                    "label": names[region.label],
                    "points": outline(region).tolist(),
                    "group_id": None,
                    "description": "",
                    "shape_type": "polygon",
                    "flags": {},
                }
                for region in found
            ]
            file = out / f"{picture.name}.json"
            image = (
                picture.file if picture.path is None else os.path.relpath(picture.path.resolve(), file.parent.resolve())
            )
            content: dict[str, Any] = {
                "version": _VERSION,
                "flags": {},
                "shapes": shapes,
                "imagePath": image,
                "imageData": None,
                "imageHeight": picture.height,
                "imageWidth": picture.width,
            }
            with whole(file) as partial:
                partial.write_text(json.dumps(content, indent=1), encoding="utf-8")
        listed = [names[255], names[0], *classes]
        (out / "labels.txt").write_text("".join(f"{name}\n" for name in listed), encoding="utf-8")
        return [
            f"{within} holes are polygons of {names[0]}, open pixels polygons of {names[255]}; later ones lie on top",
            f"open with: labelme {out} --labels {out / 'labels.txt'} --nodata",
        ]

    def read(
        self, source: Path, pictures: Pictures, classes: Sequence[str], reading: Reading
    ) -> Iterator[tuple[Picture, np.ndarray]]:
        files = [source] if source.is_file() else [f for f in sorted(source.rglob("*")) if f.suffix.lower() == ".json"]
        if not files:
            raise DataError(f"{source}: no .json in it; expected a file of LabelMe for each image")
        named: list[tuple[str, Picture]] = []
        for file in files:
            try:
                named.append((str(file), _picture(_checked(file), file, source, pictures)))
            except DataError as error:
                reading.problems.append(str(error))
        left_out: list[str] = []
        for (name, picture), alone in zip(named, reading.once(named), strict=True):
            if not alone:
                continue
            try:
                label, skipped = _read(Path(name), picture, classes)
            except DataError as error:
                reading.problems.append(str(error))
                continue
            left_out += skipped
            yield picture, label
        reading.note(left_out, COVERS_NOTHING)


def _picture(content: _File, file: Path, source: Path, pictures: Pictures) -> Picture:
    """The image of a file. Raises DataError."""
    named = file.relative_to(source).with_suffix("").as_posix() if source.is_dir() else file.stem
    picture = pictures.by_name.get(named) or pictures.find(content.imagePath) or pictures.find(named)
    if picture is None:
        raise DataError(no_image(str(file), content.imagePath))
    return picture


def _read(file: Path, picture: Picture, classes: Sequence[str]) -> tuple[np.ndarray, list[str]]:
    """A file's label map, and shapes that cover no pixel. Raises DataError."""
    content = _checked(file)
    height, width = picture.height, picture.width
    if (content.imageWidth or width, content.imageHeight or height) != (width, height):
        raise DataError(other_size(str(file), content.imageWidth, content.imageHeight, picture))
    numbers, shapes, left_out = class_numbers(classes), [], []
    for at, shape in enumerate(content.shapes):
        where = f"{file}: shapes[{at}]"
        if shape.label not in numbers:
            raise DataError(unknown_class(where, shape.label, classes))
        if shape.shape_type not in _AREAS:
            left_out.append(f"{where} ({shape.shape_type})")
            continue
        try:
            area = _area(shape, where, height, width)
        except ValueError as error:
            raise DataError(f"{where}: {error}") from None
        if area.any():
            shapes.append((numbers[shape.label], area))
        else:
            left_out.append(f"{where} ({shape.shape_type})")
    return painted(shapes, height, width), left_out


def _checked(file: Path) -> _File:
    if file.stat().st_size == 0:
        raise DataError(f"{file}: it is empty (0 bytes); expected a file of LabelMe")
    try:
        return validate(_File, read_json(file), str(file))
    except UsageError as error:
        raise DataError(str(error).splitlines()[0]) from None


def _area(shape: _Shape, where: str, height: int, width: int) -> np.ndarray:
    """The pixels of a shape, H,W bool. Raises DataError."""
    points: Any = np.array(shape.points, np.float64).reshape(-1, 2)
    if shape.shape_type == "polygon":
        if len(points) < 3:
            raise DataError(f"{where}: a polygon of {len(points)} points; expected three or more")
        return filled(points, height, width)
    if len(points) != 2:
        raise DataError(f"{where}: a {shape.shape_type} of {len(points)} points; expected two")
    (x0, y0), (x1, y1) = points
    if shape.shape_type == "rectangle":
        return filled([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], height, width)
    if shape.shape_type == "circle":
        rows, columns = np.mgrid[:height, :width] + 0.5
        return np.hypot(columns - x0, rows - y0) <= np.hypot(x1 - x0, y1 - y0)
    return _mask(shape, where, round(min(x0, x1)), round(min(y0, y1)), height, width)


def _mask(shape: _Shape, where: str, left: int, top: int, height: int, width: int) -> np.ndarray:
    """The pixels of a `mask` shape: a PNG in base64 whose upper left corner is the first point."""
    try:
        with Image.open(io.BytesIO(base64.b64decode(shape.mask or "", validate=True))) as image:
            small = np.array(image.convert("L")) > 0
    except (binascii.Error, *IMAGE_ERRORS):
        raise DataError(f"{where}: its mask is no PNG in base64") from None
    if left < 0 or top < 0 or top + small.shape[0] > height or left + small.shape[1] > width:
        raise DataError(f"{where}: its mask reaches outside the image")
    whole_mask = np.zeros((height, width), bool)
    whole_mask[top : top + small.shape[0], left : left + small.shape[1]] = small
    return whole_mask
