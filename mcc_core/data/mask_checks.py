"""Masks against image-level labels: two descriptions of one image that must not contradict each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mcc_core.data.index_file import IndexFile
from mcc_core.data.pixels import read_mask
from mcc_core.errors import DataError

_MOST = 0.5  # share of the masks that may contradict the labels
_FEWEST = 4  # such masks, before one says that the numbers are another order


@dataclass(frozen=True)
class LabelledMask:
    """An image's labels and what its mask holds, both as classes from 0."""

    file: str
    labels: tuple[int, ...]
    numbers: tuple[int, ...]
    open: bool  # whether pixels are 255, which are not scored


def mask_notes(index: IndexFile) -> list[str]:
    """`compared_masks` of a prepared dataset. Those of publishers are only counted, never refused."""
    masks = [
        LabelledMask(str(image.mask), image.labels, image.mask_classes, image.mask_open)
        for image in index.images.values()
        if image.mask_classes is not None
    ]
    return compared_masks(masks, index.classes, index.source, own=index.source == "folder")


def mask_content(path: Path, num_classes: int) -> str:
    """What a mask holds, as text that `labelled_mask` reads. Raises DataError as `read_mask` does."""
    return " ".join(map(str, np.unique(read_mask(path, num_classes))))


def labelled_mask(file: Path, labels: tuple[int, ...], content: str) -> LabelledMask:
    """A mask of which `mask_content` is known."""
    numbers = [int(part) for part in content.split()]
    return LabelledMask(str(file), labels, tuple(n - 1 for n in numbers if n not in (0, 255)), 255 in numbers)


def compared_masks(masks: Sequence[LabelledMask], classes: Sequence[str], source: str, *, own: bool) -> list[str]:
    """Notes about images whose mask has a class that the image is not labelled with, or none of its classes.

    Args:
        own: the masks are a user's own.

    Raises DataError where no mask has any class, and where most of a user's own contradict their labels: the masks then
    number the classes otherwise.
    """
    masked = [mask for mask in masks if mask.labels]
    if not masked:
        return []
    empty = [mask for mask in masked if not mask.numbers]
    if len(empty) == len(masked):
        why = " and 255, which is not scored: foreground seems to be 255" if any(mask.open for mask in masked) else ""
        raise DataError(
            f"{source}: {empty[0].file}: no mask has a class: all {len(masked)} have 0{why}; "
            f"expected 1 for {classes[0]}, and so on in the order of the classes"
        )
    wrong = [mask for mask in masked if not set(mask.numbers) <= set(mask.labels)]
    if own and len(wrong) >= _FEWEST and len(wrong) > _MOST * len(masked):
        raise DataError(
            f"{source}: {wrong[0].file}: {len(wrong)} of {len(masked)} masks have a class that their "
            f"image is not labelled with; {_order(classes, masked)}"
        )
    notes = []
    if wrong:
        extra = next(number for number in wrong[0].numbers if number not in wrong[0].labels)
        notes.append(
            f"{len(wrong)} of {len(masked)} masks have a class that their image is not labelled with, such as "
            f"{classes[extra]} in {wrong[0].file}"
        )
    if empty:
        notes.append(f"{len(empty)} masks of labelled images have no class, such as {empty[0].file}")
    return notes


def _order(classes: Sequence[str], masked: Sequence[LabelledMask]) -> str:
    """Which class each number of the masks seems to stand for, as a remedy."""
    count = len(classes)
    together, labelled, drawn = np.zeros((count, count)), np.zeros(count), np.zeros(count)
    for mask in masked:
        labels, numbers = list(mask.labels), list(mask.numbers)
        together[np.ix_(labels, numbers)] += 1
        labelled[labels] += 1
        drawn[numbers] += 1
    likeness = together / np.maximum(labelled[:, None] + drawn[None] - together, 1)
    from scipy.optimize import linear_sum_assignment

    rows, columns = linear_sum_assignment(-likeness)
    meant = {int(number): classes[row] for row, number in zip(rows, columns, strict=True)}
    order = [meant[number] for number in range(count)]
    if order == list(classes):
        return "expected 0 background, then the classes in the order of --classes"
    moved = [
        f"{number + 1} is {name}, not {classes[number]}" for number, name in enumerate(order) if name != classes[number]
    ]
    return f"in the masks, {', '.join(moved[:3])}; --classes FILE with {', '.join(order[:20])} in this order"
