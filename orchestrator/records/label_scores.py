"""Scores of a label set: under which keys a stage that makes labels records them."""

from __future__ import annotations

from collections.abc import Sequence

from mcc_core.evaluation.metrics import Metric

LABEL_SCORE = "val/pseudo_label/ms/miou"  # of the labels, on the pixels that they decide
NAMES = ("miou", "pixel_accuracy", "coverage")


def label_metrics(classes: Sequence[str]) -> list[str]:
    """Keys of all that is measured of labels of data with these foreground classes."""
    names = [*NAMES, *(f"iou/{name}" for name in ("background", *classes))]
    return [Metric(split, "pseudo_label", "ms", name, 0.0).key for split in ("val", "train") for name in names]
