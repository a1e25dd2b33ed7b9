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
    size = images.shape[-2:]
    weights = _weights(model, classes)
    sums = [images.new_zeros(()), images.new_zeros(())]
    for scale in scales:
        if scale == 1.0 and known is not None:
            flipped = model.encoder(images.flip(-1))
            both = [(known.patches, flipped.patches), (known.aux, flipped.aux)]
        else:
            target = [int(scale * side) for side in size]
            scaled = F.interpolate(images, size=target, mode="bilinear", align_corners=False)
            found = model.encoder(torch.cat([scaled, scaled.flip(-1)]))
            both = [found.patches.chunk(2), found.aux.chunk(2)]
        for which, (weight, (a, b)) in enumerate(zip(weights, both, strict=True)):
            one = F.interpolate(F.conv2d(a, weight), size=size, mode="bilinear", align_corners=False)
            two = F.interpolate(F.conv2d(b, weight), size=size, mode="bilinear", align_corners=False).flip(-1)
            sums[which] = sums[which] + F.relu(torch.maximum(one, two))
    return normalise(sums[0]), normalise(sums[1])


def _weights(model: MCCNet, classes: Tensor | None) -> tuple[Tensor, Tensor]:
    pair = (model.classifier.weight, model.aux_classifier.weight)
    return pair if classes is None else (pair[0][classes], pair[1][classes])


def normalise(cam: Tensor) -> Tensor:
    """Min-max per image and class over the pixels, with 1e-5 in the denominator."""
    cam = cam - cam.amin((2, 3), keepdim=True)
    return cam / (cam.amax((2, 3), keepdim=True) + 1e-5)
