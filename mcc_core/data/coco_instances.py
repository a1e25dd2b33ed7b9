"""Reading COCO's instances files: every record is checked, and what is wrong is named by its id."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, Field, FiniteFloat, PositiveInt, ValidationError

from mcc_core.data.coco_outlines import described, is_empty
from mcc_core.data.pixels import MAX_PIXELS
from mcc_core.errors import DataError, UsageError
from mcc_core.structured_files import read_json

BACKGROUND = "background"  # a category of this name is no class
_MOST_CLASSES = 254  # of what a mask can hold: 0 is background, 255 is ignored
_EXPECTED = {
    "id": "a whole number",
    "image_id": "the id of an image",
    "category_id": "the id of a category",
    "area": "a finite number, the object's pixels",
    "segmentation": "the object's outline",
    "file_name": "the name of a file",
    "width": "a whole number of pixels",
    "height": "a whole number of pixels",
    "name": "the name of a class",
}
_Name = Annotated[str, Field(min_length=1, pattern=r"^[^\x00]+$")]


class Picture(BaseModel):
    """An entry of `images`."""

    id: int
    file_name: _Name
    width: PositiveInt
    height: PositiveInt


class Annotation(BaseModel):
    """An entry of `annotations`; the form of the outline is looked at when it is drawn."""

    id: int
    image_id: int
    category_id: int
    area: FiniteFloat
    segmentation: Any


class _Category(BaseModel):
    id: int
    name: _Name


@dataclass
class Instances:
    """What an instances file says. Images with a problem are not among `images`."""

    file: Path
    classes: tuple[str, ...]
    numbers: Mapping[int, int]  # category id to class, from 0
    background: frozenset[int]  # ids of categories that are no class
    images: list[Picture] = field(default_factory=list)
    objects: Mapping[int, list[Annotation]] = field(default_factory=dict)  # by image id; those with an outline
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def read_instances(file: Path) -> Instances:
    """Read an instances file. What is wrong with single images and annotations is among the problems.

    Raises DataError for a file that is no such file, or whose categories cannot be classes.
    """
    try:
        content = read_json(file)
    except UsageError as error:
        raise DataError(str(error)) from None
    lists = {key: content.get(key) if isinstance(content, dict) else None for key in ("images", "annotations")}
    categories = content.get("categories") if isinstance(content, dict) else None
    for key, records in {**lists, "categories": categories}.items():
        if not isinstance(records, list):
            shown = "missing" if records is None else described(records)
            raise DataError(f"{file}: {key}: {shown}; expected a list, as in an instances file of COCO")
    made = Instances(file, *_classes(file, categories or []))
    broken = _read_images(made, lists["images"] or [])
    broken |= _read_annotations(made, lists["annotations"] or [], broken)
    made.images = [image for image in made.images if image.id not in broken]
    return made


def _classes(file: Path, records: list[Any]) -> tuple[tuple[str, ...], Mapping[int, int], frozenset[int]]:
    """Names in the order of the categories' ids, their numbers by id, and ids of the background."""
    read = [_record(_Category, raw, "category", number) for number, raw in enumerate(records)]
    if wrong := next((category for category in read if isinstance(category, str)), None):
        raise DataError(f"{file}: {wrong}")
    categories = sorted(
        (category for category in read if isinstance(category, _Category)), key=lambda category: category.id
    )
    for what, values in (
        ("id", [category.id for category in categories]),
        ("name", [category.name for category in categories]),
    ):
        value, times = max(Counter(values).items(), key=lambda pair: pair[1], default=(None, 0))
        if times > 1:
            raise DataError(f"{file}: categories: {what} {value!r} is there {times} times; expected one category of it")
    names = [category.name for category in categories if category.name != BACKGROUND]
    if not 1 <= len(names) <= _MOST_CLASSES:
        raise DataError(f"{file}: categories: found {len(names)}, expected 1 to {_MOST_CLASSES}")
    numbers = {name: number for number, name in enumerate(names)}
    known = {category.id: numbers[category.name] for category in categories if category.name in numbers}
    return tuple(names), known, frozenset(category.id for category in categories) - set(known)


def _read_images(made: Instances, records: list[Any]) -> set[int]:
    """Fill in the images; the ids of those that cannot be used."""
    broken: set[int] = set()
    known: set[int] = set()
    for number, raw in enumerate(records):
        image = _record(Picture, raw, "image", number)
        if isinstance(image, str):
            made.problems.append(f"{made.file}: {image}")
            broken |= {raw["id"]} if isinstance(raw, dict) and isinstance(raw.get("id"), int) else set()
        elif image.id in known:
            broken.add(image.id)
            made.problems.append(f"{made.file}: image {image.id}: the id is there twice; expected an id of its own")
        elif image.width * image.height > MAX_PIXELS:
            broken.add(image.id)
            size = f"{image.width}x{image.height} pixels"
            made.problems.append(f"{made.file}: image {image.id}: {size}; at most {MAX_PIXELS:,} are read")
        else:
            known.add(image.id)
            made.images.append(image)
    return broken


def _read_annotations(made: Instances, records: list[Any], broken: set[int]) -> set[int]:
    """Fill in the objects by image; the ids of images that have a broken one."""
    spoiled: set[int] = set()
    images = {image.id for image in made.images}
    owner: dict[int, int] = {}
    objects: dict[int, list[Annotation]] = defaultdict(list)
    empty: list[int] = []
    background: list[int] = []

    def problem(text: str, image: object) -> None:
        made.problems.append(f"{made.file}: {text}")
        if isinstance(image, int):
            spoiled.add(image)

    for number, raw in enumerate(records):
        annotation = _record(Annotation, raw, "annotation", number)
        if isinstance(annotation, str):
            problem(annotation, raw.get("image_id") if isinstance(raw, dict) else None)
            continue
        if annotation.id in owner:
            problem(
                f"annotation {annotation.id}: the id is there twice; expected an id of its own", annotation.image_id
            )
            spoiled.add(owner[annotation.id])
        owner.setdefault(annotation.id, annotation.image_id)
        if annotation.image_id not in images:
            if annotation.image_id not in broken:  # else the image itself is named
                problem(
                    f"annotation {annotation.id}: image_id: {annotation.image_id}; expected the id of an image", None
                )
        elif annotation.category_id in made.background:
            background.append(annotation.id)
        elif annotation.category_id not in made.numbers:
            problem(
                f"annotation {annotation.id}: category_id: {annotation.category_id}; expected the id of a category",
                annotation.image_id,
            )
        elif is_empty(annotation.segmentation):
            empty.append(annotation.id)
        else:
            objects[annotation.image_id].append(annotation)
    for ids, what in ((empty, "whose segmentation is empty"), (background, f"of the category {BACKGROUND}")):
        if ids:
            made.notes.append(f"{made.file}: left out {len(ids)} objects {what}, such as annotation {ids[0]}")
    made.objects = objects
    return spoiled


_Record = TypeVar("_Record", bound=BaseModel)


def _record(model: type[_Record], raw: object, kind: str, number: int) -> _Record | str:
    """A record, or what is wrong with it."""
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
    if not isinstance(raw, dict):
        return (
            f"{kind} number {number} from 0: {described(raw)}; expected an object with {', '.join(model.model_fields)}"
        )
    name = str(first["loc"][0])
    shown = described(raw[name]) if name in raw else "missing"
    this = raw.get("id")
    who = f"{kind} {this}" if isinstance(this, int) else f"{kind} number {number} from 0"
    return f"{who}: {name}: {shown}; expected {_EXPECTED[name]}"
