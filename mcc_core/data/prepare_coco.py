"""MS COCO 2014: masks rasterised from the instances, image-level labels from the same annotations.

- `train` and `val`: the images with at least one object, as in the paper: 82,081 of 82,783 and 40,137 of 40,504.
- Category ids 1 to 90 become the 80 classes in the order of their ids.
- Where objects overlap the smaller one is on top, as what is in front of something is mostly smaller. Crowds belong to
  their class. Both are decided here: the paper does not say.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, PositiveInt, ValidationError

from mcc_core.data.archives import is_archive, unpack
from mcc_core.data.prepare import Draft, Entry, Progress
from mcc_core.data.prepare_voc import is_current, write_mask
from mcc_core.errors import DataError, UsageError
from mcc_core.parallel import each

OFFICIAL = {"train": 82_081, "val": 40_137}
YEAR = 2014


class _Image(BaseModel):
    id: int
    file_name: str
    width: PositiveInt
    height: PositiveInt


class _Object(BaseModel):
    id: int
    image_id: int
    category_id: int
    area: float


class _Category(BaseModel):
    id: int
    name: str


class _Instances(BaseModel):
    """What is read of an instances file; the segmentations are pycocotools' own business."""

    images: list[_Image]
    annotations: list[_Object]
    categories: list[_Category]


def draft_coco(sources: Sequence[Path], out: Path, progress: Progress = lambda *_: None) -> Draft:
    """Describe COCO 2014 from archives and folders in any order. Raises DataError naming what is missing, UsageError
    where pycocotools is not installed."""
    folders = []
    for number, source in enumerate(sources):
        progress("unpacking", number, len(sources))
        if not source.exists():
            raise DataError(f"{source}: no such file or folder")
        inside = [p for p in sorted(source.iterdir()) if is_archive(p)] if source.is_dir() else []
        folders += [unpack(archive, out / "unpacked") for archive in (inside if source.is_dir() else [source])]
        folders += [source] if source.is_dir() else []
    draft: Draft | None = None
    for split in ("train", "val"):
        file, coco = _annotations(folders, split)
        images = _folder(folders, f"{split}{YEAR}")
        categories = sorted(coco.getCatIds())
        classes = tuple(category["name"] for category in coco.loadCats(categories))
        if draft is None:
            draft = Draft("coco", classes, {}, {})
        elif classes != draft.classes:
            raise DataError(f"instances_{split}{YEAR}.json: other categories than instances_train{YEAR}.json")
        numbers = {category: i for i, category in enumerate(categories)}
        _add(draft, split, file, coco, images, numbers, out / "masks" / split, progress)
        if len(draft.splits[split]) != OFFICIAL[split]:
            draft.notes.append(f"{split}: {len(draft.splits[split])} images; the official data has {OFFICIAL[split]}")
    assert draft is not None
    return draft


def label_map(image: Mapping[str, Any], annotations: Sequence[Any], numbers: Mapping[int, int]) -> np.ndarray:
    """Labels H,W uint8 of an image, 0 background, the smallest object on top."""
    from pycocotools.coco import COCO

    coco = COCO()
    coco.imgs = {image["id"]: image}
    label = np.zeros((image["height"], image["width"]), np.uint8)
    for annotation in sorted(annotations, key=lambda a: (-a["area"], a["id"])):
        label[coco.annToMask(annotation).astype(bool)] = numbers[annotation["category_id"]] + 1
    return label


@dataclass(frozen=True)
class _Drawing:
    """What is needed to draw the mask of an image, and where."""

    annotated: Path  # the instances file
    image: Mapping[str, Any]
    annotations: Sequence[Any]
    numbers: Mapping[int, int]
    mask: Path


def _draw(work: _Drawing) -> str:
    """Write a mask unless it is there and no older than its annotations. What is wrong, or nothing."""
    if is_current(work.mask, work.annotated):
        return ""
    try:
        label = label_map(work.image, work.annotations, work.numbers)
    except Exception as error:  # pycocotools raises bare Exception for a segmentation that it cannot draw
        reason = str(error) or type(error).__name__
        return f"{work.annotated.name}: image {work.image['id']}: its objects cannot be drawn: {reason}"
    write_mask(label, work.mask)
    return ""


def _add(
    draft: Draft,
    split: str,
    annotated: Path,
    coco: Any,
    images: Path,
    numbers: Mapping[int, int],
    masks: Path,
    progress: Progress,
) -> None:
    by_image = defaultdict(list)
    for annotation in coco.dataset.get("annotations", []):
        by_image[annotation["image_id"]].append(annotation)
    names, listed = [], [image for image in coco.dataset["images"] if by_image[image["id"]]]
    drawings: list[_Drawing] = []
    for image in listed:
        file = images / Path(image["file_name"]).name
        if file.is_file():
            drawings.append(_Drawing(annotated, image, by_image[image["id"]], numbers, masks / f"{file.stem}.png"))
        else:
            draft.problems.append(f"{file}: no such file")
    for done, (work, problem) in enumerate(zip(drawings, each(_draw, drawings), strict=True), start=1):
        name = work.mask.stem
        if problem:
            draft.problems.append(problem)
        else:
            labels = tuple(sorted({numbers[a["category_id"]] for a in work.annotations}))
            draft.entries[name] = Entry(name, images / Path(work.image["file_name"]).name, labels, work.mask)
            names.append(name)
        progress(f"masks of {split}", done, len(drawings))
    draft.splits[split] = names


def _annotations(folders: Sequence[Path], split: str) -> tuple[Path, Any]:
    """The instances file of a split and what pycocotools reads of it."""
    try:
        from pycocotools.coco import COCO
    except ImportError:
        raise UsageError("COCO's masks need pycocotools, which is not installed: pip install 'mcc[coco]'") from None
    import contextlib
    import io

    name = f"instances_{split}{YEAR}.json"
    file = next(
        (f for folder in folders for p in ("", "annotations/", "*/annotations/") for f in folder.glob(p + name)), None
    )
    if file is None:
        raise DataError(
            f"{name}: not found in {', '.join(map(str, folders))}: give annotations_trainval{YEAR}.zip or its folder"
        )
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            coco = COCO(str(file))
        _Instances.model_validate(coco.dataset)
        known = {category["id"] for category in coco.dataset["categories"]}
        if unknown := next((a for a in coco.dataset["annotations"] if a["category_id"] not in known), None):
            raise DataError(f"{file}: annotation {unknown['id']}: no category {unknown['category_id']}")
        return file, coco
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise DataError(f"{file}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    except DataError:
        raise
    except (ValueError, KeyError, AssertionError, TypeError) as error:
        raise DataError(f"{file}: not an instances file of COCO: {error or type(error).__name__}") from None


def _folder(folders: Sequence[Path], name: str) -> Path:
    for folder in folders:
        for found in (folder, folder / name, folder / "images" / name):
            if found.name == name and found.is_dir():
                inside = found / name
                return inside if inside.is_dir() else found
    raise DataError(f"{name}: no such folder in {', '.join(map(str, folders))}: give {name}.zip or its folder")
