"""Masks against image-level labels: two descriptions of one image that must not contradict each other."""

from __future__ import annotations

import numpy as np

from mcc_core.data.index_file import IndexedImage, IndexFile
from mcc_core.errors import DataError

_MOST = 0.5  # share of the masks that may contradict the labels


def mask_notes(index: IndexFile) -> list[str]:
    """Notes about images whose mask has a class that the image is not labelled with, or none of its classes.

    Raises DataError where no mask has any class, and where most of a user's own contradict their labels: the masks then
    number the classes otherwise.
    """
    masked = {name: image for name, image in index.images.items() if image.mask_classes is not None and image.labels}
    if not masked:
        return []
    empty = [name for name, image in masked.items() if not image.mask_classes]
    if len(empty) == len(masked):
        seems = any(image.mask_open for image in masked.values())
        why = " and 255, which is not scored: foreground seems to be 255" if seems else ""
        raise DataError(
            f"{index.source}: {masked[empty[0]].mask}: no mask has a class: all {len(masked)} have 0{why}; "
            f"expected 1 for {index.classes[0]}, and so on in the order of the classes"
        )
    wrong = [name for name, image in masked.items() if not set(image.mask_classes or ()) <= set(image.labels)]
    if index.source == "folder" and len(wrong) > _MOST * len(masked):
        raise DataError(
            f"{index.source}: {masked[wrong[0]].mask}: {len(wrong)} of {len(masked)} masks have a class that their "
            f"image is not labelled with; {_order(index, masked)}"
        )
    notes = []
    if wrong:
        one = masked[wrong[0]]
        extra = next(number for number in one.mask_classes or () if number not in one.labels)
        notes.append(
            f"{len(wrong)} of {len(masked)} masks have a class that their image is not labelled with, such as "
            f"{index.classes[extra]} in {one.mask}"
        )
    if empty:
        notes.append(f"{len(empty)} masks of labelled images have no class, such as {masked[empty[0]].mask}")
    return notes


def _order(index: IndexFile, masked: dict[str, IndexedImage]) -> str:
    """Which class each number of the masks seems to stand for, as a remedy."""
    count = len(index.classes)
    together, labelled, drawn = np.zeros((count, count)), np.zeros(count), np.zeros(count)
    for image in masked.values():
        labels, numbers = list(image.labels), list(image.mask_classes or ())
        together[np.ix_(labels, numbers)] += 1
        labelled[labels] += 1
        drawn[numbers] += 1
    likeness = together / np.maximum(labelled[:, None] + drawn[None] - together, 1)
    from scipy.optimize import linear_sum_assignment

    rows, columns = linear_sum_assignment(-likeness)
    meant = {int(number): index.classes[row] for row, number in zip(rows, columns, strict=True)}
    order = [meant[number] for number in range(count)]
    if order == list(index.classes):
        return "expected 0 background, then the classes in the order of --classes"
    moved = [
        f"{number + 1} is {name}, not {index.classes[number]}"
        for number, name in enumerate(order)
        if name != index.classes[number]
    ]
    return f"in the masks, {', '.join(moved[:3])}; --classes FILE with {', '.join(order[:20])} in this order"
