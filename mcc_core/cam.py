"""Multi-scale class activation maps (Eq. 4, PAPER_NOTES row 18)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from mcc_core.encoder import Features
from mcc_core.model import MCCNet

CamPair = tuple[Tensor, Tensor]


@torch.no_grad()
def multi_scale_cams(
    model: MCCNet,
    images: Tensor,
    scales: Sequence[float],
    known: Features | None = None,
    classes: Tensor | None = None,
) -> CamPair:
    """Final and auxiliary CAMs, each B,K,H,W in [0, 1], of images B,3,H,W.

    Per scale: maximum over the image and its flip, ReLU; then the sum over scales, min-max normalised per class.

    Args:
        known: features of `images` already computed, which saves the unflipped forward at scale 1.
        classes: K class indices to compute; default all C. Maps of classes do not depend on each other.
    """
    final, aux = raw_cams(model, images, scales, known, classes)
    size = (images.shape[-2], images.shape[-1])
    return combined_cams(final, size), combined_cams(aux, size)


@torch.no_grad()
def raw_cams(
    model: MCCNet,
    images: Tensor,
    scales: Sequence[float],
    known: Features | None = None,
    classes: Tensor | None = None,
) -> tuple[list[CamPair], list[CamPair]]:
    """Class activations at token resolution, final and auxiliary: for each scale those of the image and of its flip."""
    weights = _weights(model, classes)
    size = images.shape[-2:]
    found: tuple[list[CamPair], list[CamPair]] = ([], [])
    for scale in scales:
        if scale == 1.0 and known is not None:
            flipped = model.encoder(images.flip(-1))
            both = [(known.patches, flipped.patches), (known.aux, flipped.aux)]
        else:
            target = [max(model.encoder.patch, int(scale * side)) for side in size]
            scaled = F.interpolate(images, size=target, mode="bilinear", align_corners=False)
            features = model.encoder(torch.cat([scaled, scaled.flip(-1)]))
            both = [features.patches.chunk(2), features.aux.chunk(2)]
        for pairs, weight, (a, b) in zip(found, weights, both, strict=True):
            pairs.append((F.conv2d(a, weight), F.conv2d(b, weight)))
    return found


def combined_cams(pairs: Sequence[CamPair], size: tuple[int, int]) -> Tensor:
    """CAMs B,K,H,W of `size` from the activations of `raw_cams`."""
    total: Tensor | float = 0.0
    for straight, flipped in pairs:
        one = F.interpolate(straight, size=size, mode="bilinear", align_corners=False)
        two = F.interpolate(flipped, size=size, mode="bilinear", align_corners=False).flip(-1)
        total = total + F.relu(torch.maximum(one, two))
    assert isinstance(total, Tensor)
    return normalise(total)


def _weights(model: MCCNet, classes: Tensor | None) -> tuple[Tensor, Tensor]:
    pair = (model.classifier.weight, model.aux_classifier.weight)
    return pair if classes is None else (pair[0][classes], pair[1][classes])


def normalise(cam: Tensor) -> Tensor:
    """Min-max per image and class over the pixels, with 1e-5 in the denominator."""
    cam = cam - cam.amin((2, 3), keepdim=True)
    return cam / (cam.amax((2, 3), keepdim=True) + 1e-5)
