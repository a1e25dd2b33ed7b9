"""COCO: one instances file, with an object for each connected region.

A region is a polygon along the sides of its pixels where pycocotools draws exactly the region of it, else a compressed
RLE (regions with holes). Open pixels are objects of the category `__ignore__`. Files of other tools are read as
`mcc data prepare coco` reads COCO's: the smaller object lies on top where two overlap.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mcc_core.data.coco_instances import Instances, read_instances
from mcc_core.data.coco_outlines import EXPECTED, OutlineError, label_map, read_outline
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
from mcc_core.exporting.label_formats.outlines import Region, outline, regions
from mcc_core.files import whole

FILE = "instances.json"


class Coco(LabelFormat):
    """Exact in both directions."""

    name, title = "coco", "COCO instances"

    def write(
        self, out: Path, maps: Iterable[tuple[Picture, np.ndarray]], classes: Sequence[str], split: str
    ) -> list[str]:
        _require()
        names = names_of_labels(classes)
        categories = [{"id": number, "name": names[number], "supercategory": ""} for number in sorted(names) if number]
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        packed = 0
        for at, (picture, label) in enumerate(maps, 1):
            size = {"height": picture.height, "width": picture.width}
            images.append({"id": at, "file_name": picture.file, **size})
            for region in regions(label):
                written = _annotation(region, picture)
                packed += isinstance(written["segmentation"], dict)
                number = {"id": len(annotations) + 1, "image_id": at, "category_id": region.label, "iscrowd": 0}
                annotations.append(number | written)
        content = {"info": {"description": split}, "images": images, "annotations": annotations}
        with whole(out / FILE) as partial:
            partial.write_text(json.dumps(content | {"categories": categories}), encoding="utf-8")
        count = len(annotations)
        return [f"{count} objects: {count - packed} polygons, {packed} with holes or corners that meet as RLE"]

    def read(
        self, source: Path, pictures: Pictures, classes: Sequence[str], reading: Reading
    ) -> Iterator[tuple[Picture, np.ndarray]]:
        _require()
        file = source if source.is_file() else _only_json(source)
        if file.stat().st_size == 0:
            raise DataError(f"{file}: it is empty (0 bytes); expected an instances file of COCO")
        made = read_instances(file)
        numbers = _numbers(made, classes)
        reading.problems += made.problems
        reading.notes += made.notes
        empty: list[str] = []
        images = [(f"{file}: image {image.id}", image) for image in made.images]
        once = reading.once([(where, pictures.find(image.file_name)) for where, image in images])
        for (where, image), alone in zip(images, once, strict=True):
            if not alone:
                continue
            picture = pictures.find(image.file_name)
            if picture is None:
                reading.problems.append(no_image(where, image.file_name))
            elif (image.width, image.height) != (picture.width, picture.height):
                reading.problems.append(other_size(where, image.width, image.height, picture))
            else:
                label = _drawn(made, image.id, numbers, picture, reading, empty)
                if label is not None:
                    yield picture, label
        reading.note(empty, COVERS_NOTHING)


def _annotation(region: Region, picture: Picture) -> dict[str, Any]:
    """What COCO says of a region: outline, box and area."""
    from pycocotools import mask as rle

    height, width = region.mask.shape
    own = np.zeros((picture.height, picture.width), np.uint8)
    own[region.top : region.top + height, region.left : region.left + width] = region.mask
    about = {"bbox": [region.left, region.top, width, height], "area": int(region.mask.sum())}
    points = outline(region)
    polygon = points.ravel().tolist()
    if len(points) > 2:
        drawn = rle.decode(rle.frPyObjects([polygon], picture.height, picture.width))[:, :, 0]
        if (drawn == own).all():
            return {"segmentation": [polygon], **about}
    packed = rle.encode(np.asfortranarray(own))
    return {"segmentation": {"size": packed["size"], "counts": packed["counts"].decode()}, **about}


def _numbers(made: Instances, classes: Sequence[str]) -> dict[int, int]:
    """Category id to label. Raises DataError for a category that is no class, where an object is of it."""
    known = class_numbers(classes)
    used = {annotation.category_id for objects in made.objects.values() for annotation in objects}
    numbers: dict[int, int] = {}
    for category, at in made.numbers.items():
        name = made.classes[at]
        if name in known:
            numbers[category] = known[name]
        elif category in used:
            raise DataError(unknown_class(f"{made.file}: category {category}", name, classes))
    return numbers


def _drawn(
    made: Instances, image: int, numbers: dict[int, int], picture: Picture, reading: Reading, empty: list[str]
) -> np.ndarray | None:
    """The label map of an image; None where an outline is none, which is among the problems.

    Those that cover no pixel come to the `empty` ones.
    """
    outlines = []
    for annotation in sorted(made.objects.get(image, ()), key=lambda annotation: (-annotation.area, annotation.id)):
        try:
            found = read_outline(annotation.segmentation, picture.height, picture.width)
        except OutlineError as error:
            where = f"{made.file}: annotation {annotation.id}: segmentation"
            reading.problems.append(f"{where}: {error}; expected {EXPECTED}")
            return None
        if not label_map([(1, found)], picture.height, picture.width).any():
            empty.append(f"{made.file}: annotation {annotation.id}")
        outlines.append((numbers[annotation.category_id], found))
    return label_map(outlines, picture.height, picture.width)


def _only_json(folder: Path) -> Path:
    """The instances file of a folder. Raises DataError where it is not the only JSON there."""
    if (folder / FILE).is_file():
        return folder / FILE
    files = sorted(folder.rglob("*.json")) if folder.is_dir() else []
    if len(files) != 1:
        found = f"{len(files)} .json files" if files else "no .json file"
        raise DataError(f"{folder}: {found} in it; expected {FILE}, or name the file")
    return files[0]


def _require() -> None:
    try:
        import pycocotools.mask  # noqa: F401
    except ImportError:
        raise UsageError("--format coco needs pycocotools, which is not installed: pip install 'mcc[coco]'") from None
