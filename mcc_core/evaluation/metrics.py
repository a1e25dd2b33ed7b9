"""Confusion matrices, IoU, multi-label F1, and metrics that say what they measured and how."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from mcc_core.errors import DataError

Stage = Literal["cam", "aux_cam", "pseudo_label", "seg", "cls", "all_background"]
Protocol = Literal["single", "ms", "ms_crf"]


@dataclass(frozen=True)
class Metric:
    """A value with what it measures (stage), how (protocol) and on which split; unlike ones are never compared."""

    split: str
    stage: Stage
    protocol: Protocol
    name: str  # miou, pixel_accuracy, f1, iou/<class>
    value: float

    @property
    def key(self) -> str:
        """`split/stage/protocol/name`."""
        return f"{self.split}/{self.stage}/{self.protocol}/{self.name}"


class ConfusionMatrix:
    """Counts of (truth, prediction) pairs; exact under any order of updates and merges.

    Args:
        num_labels: labels 0..num_labels-1, background included.
    """

    def __init__(self, num_labels: int) -> None:
        self.num_labels = num_labels
        self._counts = torch.zeros(num_labels, num_labels, dtype=torch.long)
        self._pending: Tensor | None = None  # counted on a device, and not fetched yet

    @property
    def counts(self) -> Tensor:
        """truth x prediction, long, on the host. Raises ValueError for a label that was none."""
        if self._pending is not None:
            valid, strange, _ = self._pending.cpu().split([self.num_labels**2, 1, 1])
            self._pending = None
            if strange.any():
                raise ValueError(f"{int(strange)} pixels have labels that are not 0..{self.num_labels - 1}")
            self._counts += valid.view_as(self._counts)
        return self._counts

    def update(self, prediction: Tensor, target: Tensor, ignore: int = 255) -> None:
        """Add label maps of the same shape, on one device; pixels whose target is `ignore` do not count.

        Raises ValueError for other shapes, and for labels that would be counted as a pair of other ones: at once on
        the host, when the counts are read where a GPU would have to be waited for.
        """
        if prediction.shape != target.shape:
            raise ValueError(f"prediction is {tuple(prediction.shape)}, target {tuple(target.shape)}")
        if target.device.type != "cpu":
            self._count_there(prediction, target, ignore)
            return
        known = target != ignore
        truth, guess = target[known].long(), prediction[known].long()
        for name, labels in (("prediction", guess), ("target", truth)):
            if labels.numel() and not 0 <= int(labels.min()) <= int(labels.max()) < self.num_labels:
                raise ValueError(
                    f"{name}: labels {int(labels.min())}..{int(labels.max())}, not 0..{self.num_labels - 1}"
                )
        pairs = truth * self.num_labels + guess
        self._counts += torch.bincount(pairs.flatten(), minlength=self.num_labels**2).view_as(self._counts)

    def _count_there(self, prediction: Tensor, target: Tensor, ignore: int) -> None:
        """Add to the pending counts: those of pairs, of pixels whose labels are none, of pixels that do not count."""
        n = self.num_labels
        if self._pending is None:
            self._pending = torch.zeros(n * n + 2, dtype=torch.long, device=target.device)
        truth, guess = target.flatten().long(), prediction.flatten().long()
        strange = (truth < 0) | (truth >= n) | (guess < 0) | (guess >= n)
        place = (truth * n + guess).masked_fill(strange, n * n).masked_fill(truth == ignore, n * n + 1)
        self._pending.scatter_add_(0, place, torch.ones_like(place))

    def merge(self, other: ConfusionMatrix) -> None:
        """Add another matrix's counts."""
        self._counts += other.counts

    def iou(self) -> Tensor:
        """Intersection over union per label, float64; NaN where a label is neither in truth nor in prediction."""
        both = self.counts.diagonal().double()
        return both / (self.counts.sum(0) + self.counts.sum(1) - both)

    def miou(self) -> float:
        """Mean IoU over the labels that occur; NaN when nothing was counted."""
        return float(self.iou().nanmean())

    def pixel_accuracy(self) -> float:
        """Share of counted pixels that are right; NaN when nothing was counted."""
        return float(self.counts.diagonal().sum() / self.counts.sum())


def f1_counts(prediction: Tensor, truth: Tensor) -> Tensor:
    """True positives, false positives, false negatives per class, 3,C, of boolean B,C."""
    return torch.stack([(prediction & truth).sum(0), (prediction & ~truth).sum(0), (~prediction & truth).sum(0)])


def f1_score(counts: Tensor) -> float:
    """F1 of all decisions together (micro); 0 when there is nothing to find."""
    hit, false, missed = counts.sum(1).tolist()
    return 2 * hit / max(1, 2 * hit + false + missed)


def require_foreground(matrix: ConfusionMatrix, split: str) -> None:
    """Raise DataError where no scored pixel is of a foreground class: nothing to score is not a score."""
    if not matrix.counts[1:].any():
        raise DataError(
            f"{split}: no pixel of its masks is of a class, so there is nothing to score; is foreground 255 in them? "
            "255 is not scored: expected 0 background, then the classes in order"
        )
