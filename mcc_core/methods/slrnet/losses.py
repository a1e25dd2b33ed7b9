"""Formulas of SLRNet: class score, regularisers, class-balanced cross entropy."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from mcc_core.methods.slrnet.config import ScoreConfig
from mcc_core.pseudo_labels.labels import IGNORE


def class_score(logits: Tensor, config: ScoreConfig) -> Tensor:
    """Image-level logits B,C of segmentation logits B,C+1,h,w, background first.

    Normalised global weighted pooling with a size penalty: with the softmax m of logits x,
    sum(m x) / (1 + sum m) + (1 - mean m)^power log(floor + mean m), of each foreground class.
    """
    flat = logits.flatten(2)
    mask = flat.softmax(1)[:, 1:]
    size = mask.mean(2)
    pooled = (mask * flat[:, 1:]).sum(2) / (1 + mask.sum(2))
    return pooled + (1 - size).pow(config.penalty_power) * (config.penalty_floor + size).log()


def mask_difference(first: Tensor, second: Tensor, labels: Tensor) -> Tensor:
    """Mean absolute difference of masks B,C+1,h,w over all foreground classes; absent ones (labels B,C) count as 0."""
    return ((first - second)[:, 1:].abs() * labels[:, :, None, None]).mean()


def code_difference(first: Tensor, second: Tensor) -> Tensor:
    """Mean absolute difference of codes B,K,h,w, in which each pixel keeps its largest atom alone."""
    return (_largest(first) - _largest(second)).abs().mean()


def _largest(code: Tensor) -> Tensor:
    return code * (code == code.amax(1, keepdim=True))


def classification(scores: Tensor, labels: Tensor, positive_weight: Tensor | None) -> Tensor:
    """Multi-label soft margin of class scores and 0/1 labels, both B,C; C weights of classes that images have."""
    return F.binary_cross_entropy_with_logits(scores, labels, pos_weight=positive_weight)


def balanced_cross_entropy(logits: Tensor, label: Tensor, labels: Tensor) -> Tensor:
    """Cross entropy to label B,H,W, a pixel of class c weighted by (N - n_c) / (1 + N).

    N and n_c count an image's labelled pixels, and its mean is over all pixels, so that a class which fills the image
    adds little. An image counts only if each of its classes (labels B,C) and the background have pixels; the mean is
    over all images.

    Args:
        logits: B,C+1,H,W.
    """
    known = label != IGNORE
    flat = label.masked_fill(~known, 0).flatten(1)
    empty = logits.new_zeros(logits.shape[:2])
    # Sums of ones are exact; `bincount` would make a GPU be waited for.
    counts = empty.scatter_add(1, flat, known.to(logits.dtype).flatten(1))
    total = counts.sum(1, keepdim=True)
    weight = (total - counts) / (1 + total)
    per_pixel = F.cross_entropy(logits, label, ignore_index=IGNORE, reduction="none")
    weighted = per_pixel * weight.gather(1, flat).view_as(per_pixel) * known
    complete = (counts > 0).sum(1) == labels.sum(1) + 1
    return (weighted.mean((1, 2)) * complete).mean()
