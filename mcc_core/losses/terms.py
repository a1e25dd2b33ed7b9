"""The terms of Eq. 5, one small function each. All are NaN-free where an image lacks a kind of pixel or pair."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mcc_core.config import EnergyConfig
from mcc_core.losses.permutohedral import bilateral_filter
from mcc_core.pseudo_labels.labels import IGNORE, box_masks, denormalise


def classification(logits: Tensor, labels: Tensor) -> Tensor:
    """Multi-label soft margin loss of logits and 0/1 labels, both B,C."""
    return F.multilabel_soft_margin_loss(logits, labels)


def affinity(features: Tensor, labels: Tensor, form: str = "published") -> Tensor:
    """Token affinity, Eq. 9.

    Over all ordered pairs of reliable tokens of an image except a token with itself: `published` is half of one minus
    the mean absolute cosine of pairs with the same label, plus half of the mean absolute cosine of pairs with different
    labels, with one more than the pairs in each denominator; `equation` has neither the halves, nor the absolute value,
    nor the one. A kind of pair that does not occur contributes 0 there.

    Args:
        features: B,D,h,w final patch features; labels: B,h,w with IGNORE.
    """
    tokens = F.normalize(features.flatten(2), dim=1, eps=1e-8)
    cosine = tokens.transpose(1, 2) @ tokens
    flat = labels.flatten(1)
    known = flat != IGNORE
    pairs = known[:, :, None] & known[:, None, :]
    pairs = pairs & ~torch.eye(flat.shape[1], dtype=torch.bool, device=flat.device)
    same = flat[:, :, None] == flat[:, None, :]
    positive, negative = pairs & same, pairs & ~same
    if form == "equation":
        pull = ((1 - cosine) * positive).sum() / positive.sum().clamp(min=1)
        return pull + (cosine * negative).sum() / negative.sum().clamp(min=1)
    cosine = cosine.abs()
    pull = 1 - (cosine * positive).sum() / (positive.sum() + 1)
    push = (cosine * negative).sum() / (negative.sum() + 1)
    return 0.5 * pull + 0.5 * push


def contrast(
    queries: Tensor, keys: Tensor, flags: Tensor, temperature: float, epsilon: float, empty_term: bool
) -> Tensor:
    """InfoNCE of global queries against global and local keys (Eq. 7 as published).

    Args:
        queries: Q*B,E view-major, without gradient; keys: K*B,E view-major; flags: B,K, 1 = positive.
        empty_term: add log(1 + negatives + epsilon) once per image and query, uncounted in the denominator.
    """
    batch, count = flags.shape
    q = queries.view(-1, batch, queries.shape[1]).transpose(0, 1)
    k = keys.view(count, batch, keys.shape[1]).transpose(0, 1)
    scores = q @ k.transpose(1, 2) / temperature  # B,Q,K
    positive = flags[:, None, :]
    constant = scores.new_full((*scores.shape[:2], 1), math.log(epsilon))
    negatives = torch.cat([scores.masked_fill(positive > 0, -math.inf), constant], dim=2).logsumexp(2)
    per_key = F.softplus(negatives[..., None] - scores)  # -log(e^s / (e^s + negatives)) without overflow
    per_query = (per_key * positive).sum(2)
    if empty_term:
        per_query = per_query + F.softplus(negatives)
    per_image = per_query.mean(1) / (flags.sum(1) + epsilon)
    return per_image.mean()


def segmentation(logits: Tensor, labels: Tensor, form: str = "halves") -> Tensor:
    """Half the mean cross entropy over background pixels plus half of that over foreground pixels.

    `form: mean` is the mean over all labelled pixels.

    Args:
        logits: B,C+1,H,W; labels: B,H,W with IGNORE. An absent kind of pixel contributes 0.
    """
    per_pixel = F.cross_entropy(logits, labels, ignore_index=IGNORE, reduction="none")
    if form == "mean":
        return per_pixel.sum() / (labels != IGNORE).sum().clamp(min=1)
    background = labels == 0
    foreground = (labels != 0) & (labels != IGNORE)
    halves = [(per_pixel * kind).sum() / kind.sum().clamp(min=1) for kind in (background, foreground)]
    return 0.5 * (halves[0] + halves[1])


class _DenseEnergy(torch.autograd.Function):
    """-sum(S * gate * K S) / B with K the bilateral filter; the gradient is -2 gate K S / B, as published."""

    @staticmethod
    def forward(
        ctx: Any, probabilities: Tensor, pixels: Tensor, gate: Tensor, sigma_rgb: float, sigma_xy: float
    ) -> Tensor:
        filtered = bilateral_filter(pixels, probabilities, sigma_rgb, sigma_xy) * gate
        ctx.save_for_backward(filtered)
        return -(probabilities * filtered).sum() / len(pixels)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (filtered,) = ctx.saved_tensors
        return -2 * grad * filtered / len(filtered), None, None, None, None


def dense_energy(images: Tensor, logits: Tensor, labels: Tensor, boxes: Tensor, config: EnergyConfig) -> Tensor:
    """Dense energy regularisation of segmentation logits, times `config.weight`.

    The energy of a pixel is gated by 1 - its largest probability inside the image box, 0 outside, and is fully open
    where the label is IGNORE.

    Args:
        images: B,3,H,W normalised; logits: B,C+1,H,W; labels: B,H,W with IGNORE; boxes: B,4.
    """
    probabilities = logits.softmax(1)
    kind = logits.dtype
    del logits  # large; the backward pass needs only the probabilities
    inside = box_masks(boxes, labels.shape[-2:]).to(kind)[:, None]
    pixels = denormalise(images, quantise=False)
    label_map = labels.to(kind)[:, None]
    if config.scale != 1:
        small = [int(side * config.scale) for side in labels.shape[-2:]]
        pixels, inside, label_map = (F.interpolate(x, size=small, mode="nearest") for x in (pixels, inside, label_map))
        probabilities = F.interpolate(probabilities, size=small, mode="bilinear", align_corners=False)
    gate = (inside - probabilities.detach().amax(1, keepdim=True)).clamp(min=0)
    gate = gate.masked_fill(label_map == IGNORE, 1)
    energy = _DenseEnergy.apply(probabilities * inside, pixels, gate, config.sigma_rgb, config.sigma_xy * config.scale)
    return config.weight * energy
