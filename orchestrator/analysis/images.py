"""Two evaluations image by image: whether they may be compared at all, by how much they differ, and where."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np

from mcc_core.errors import UsageError
from mcc_core.evaluation.protocols import PROTOCOLS
from mcc_core.evaluation.scoring import Counts as PixelCounts
from mcc_core.pseudo_labels.labels import IGNORE
from orchestrator.analysis.statistics import Counts, Difference, bootstrap, mean_iou
from orchestrator.records.scores import read_scores


@dataclass(frozen=True)
class Scored:
    """One setting of an evaluation, as counts per image."""

    label: str  # for people
    header: Mapping[str, Any]
    setting: Mapping[str, Any]
    images: Mapping[str, PixelCounts]

    @property
    def measures(self) -> str:
        """What the number is: stage, protocol, split."""
        stage, how = PROTOCOLS[self.setting["protocol"]]
        return f"{stage}/{how} on {self.header['split']}"


@dataclass(frozen=True)
class ImageComparison:
    """The second less the first."""

    first: Scored
    second: Scored
    scores: tuple[float, float]  # mIoU of each
    difference: Difference  # of mIoU, resampled over images
    classes: tuple[tuple[str, float, float], ...]  # (class, IoU of the first, of the second), worst change first
    moved: tuple[tuple[str, float, float], ...]  # (image, mIoU of the first, of the second), largest change first
    by_class: Mapping[str, tuple[tuple[str, float, float], ...]]  # the same with one class's IoU, where it occurs
    seeds: int = 1  # trained networks on each side


def read_scored(folder: Path, setting: str | None, label: str) -> Scored:
    """One setting of the evaluation in `folder`. Raises UsageError; a setting must be named where there are several."""
    header, images = read_scores(folder / "scores.jsonl")
    settings: Any = header["settings"]
    known = {s["name"]: s for s in settings}
    chosen = setting or (next(iter(known)) if len(known) == 1 else "")
    if chosen not in known:
        raise UsageError(f"{folder}: has {', '.join(known)}; choose with --protocol")
    return Scored(label, header, known[chosen], {name: counts[chosen] for name, counts in images.items()})


def check_comparable(first: Scored, second: Scored) -> None:
    """Raise UsageError, in a sentence, unless both numbers mean the same."""
    if first.measures != second.measures:
        raise UsageError(
            f"{first.label} is {first.measures} and {second.label} is {second.measures}: they measure different things "
            "and are not compared"
        )
    for key, what in (("data", "images, labels or masks"), ("classes", "classes")):
        if first.header[key] != second.header[key]:
            raise UsageError(f"{first.label} and {second.label} were scored on different {what} and are not compared")
    changed = _changed(first.setting["config"], second.setting["config"])
    if changed:
        key, value, other = changed[0]
        raise UsageError(
            f"{first.label} was scored with {key} {value} and {second.label} with {other}: not the same protocol, "
            "so they are not compared"
        )
    if first.images.keys() != second.images.keys():
        raise UsageError(
            f"{first.label} has scores of {len(first.images)} images and {second.label} of {len(second.images)}, not "
            "the same ones: finish both evaluations first"
        )


def compare_images(first: Scored, second: Scored, *, seed: int = 0) -> ImageComparison:
    """Compare two evaluations over the images that both scored. Raises UsageError where `check_comparable` does."""
    return over_seeds([(first, second)], seed=seed)


def over_seeds(pairs: Sequence[tuple[Scored, Scored]], *, seed: int = 0) -> ImageComparison:
    """Compare two configurations by their evaluations of each shared seed: scores are means over the seeds, and the
    interval resamples the images, the same ones in every seed. Raises UsageError where `check_comparable` does."""
    first, second = pairs[0]
    for side_a, other in pairs:
        check_comparable(first, side_a)
        check_comparable(side_a, other)
    names = sorted(first.images)
    labels = ["background", *first.header["classes"]]
    a, b = (  # seeds, images, labels, 2
        np.stack([iou_counts([side_a.images[name] for name in names], len(labels)) for side_a in side])
        for side in zip(*pairs, strict=True)
    )
    each = zip(labels, *(_known_mean([_class_iou(side_a) for side_a in side]) for side in (a, b)), strict=True)
    changes = [(name, side_a, other) for name, side_a, other in each if not (math.isnan(side_a) and math.isnan(other))]
    images = zip(names, *(_known_mean([_image_iou(side_a) for side_a in side]) for side in (a, b)), strict=True)
    a_all, b_all = a.sum(0), b.sum(0)
    return ImageComparison(
        first,
        second,
        (float(mean_iou(a).mean()), float(mean_iou(b).mean())),
        bootstrap(b, a, seed=seed),
        tuple(sorted(changes, key=lambda c: c[2] - c[1])),
        tuple(sorted(images, key=_least_moved)),
        {label: _moved(names, a_all[:, i], b_all[:, i]) for i, label in enumerate(labels)},
        len(pairs),
    )


def iou_counts(images: Sequence[PixelCounts], num_labels: int) -> Counts:
    """images,labels,2 (intersection, union) of pixel counts per image."""
    table = np.zeros((len(images), num_labels, 2), np.int64)
    for row, counts in zip(table, images, strict=True):
        for truth, guess, pixels in counts:
            if guess == IGNORE:
                continue  # left open: scored by its share alone
            if truth == guess:
                row[truth] += pixels
            else:
                row[truth, 1] += pixels
                row[guess, 1] += pixels
    return table


def _class_iou(counts: Counts) -> list[float]:
    both, union = counts.sum(0).T
    return [float(i / u) if u else math.nan for i, u in zip(both, union, strict=True)]


def _known_mean(rows: Sequence[Sequence[float]]) -> list[float]:
    """Mean of each column over the rows that have a number there."""
    known = [[value for value in column if not math.isnan(value)] for column in zip(*rows, strict=True)]
    return [mean(column) if column else math.nan for column in known]


def _image_iou(counts: Counts) -> list[float]:
    return [float(mean_iou(image[None])) for image in counts]


def _moved(names: Sequence[str], first: Counts, second: Counts) -> tuple[tuple[str, float, float], ...]:
    """(image, IoU of the first, of the second) of one class, images,2 each, largest change first."""
    here = [
        (name, float(a[0] / max(1, a[1])), float(b[0] / max(1, b[1])))
        for name, a, b in zip(names, first, second, strict=True)
        if a[1] or b[1]
    ]
    return tuple(sorted(here, key=_least_moved))


def _least_moved(entry: tuple[str, float, float]) -> float:
    return -abs(entry[2] - entry[1])


def _changed(first: Mapping[str, Any], second: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any, Any]]:
    differences: list[tuple[str, Any, Any]] = []
    for key in sorted({*first, *second}):
        value, other = first.get(key), second.get(key)
        if isinstance(value, Mapping) and isinstance(other, Mapping):
            differences += _changed(value, other, f"{prefix}{key}.")
        elif value != other:
            differences.append((prefix + key, value, other))
    return differences
