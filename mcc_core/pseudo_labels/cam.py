"""Multi-scale class activation maps (Eq. 4) of any network."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from mcc_core.networks.base import MapStage, Network, Output

MapPair = tuple[Tensor, Tensor]  # of an image and of its flip


@torch.no_grad()
def multi_scale_maps(
    network: Network,
    images: Tensor,
    scales: Sequence[float],
    known: Output | None = None,
    classes: Tensor | None = None,
) -> dict[MapStage, Tensor]:
    """The network's class maps, each B,K,H,W in [0, 1], of images B,3,H,W.

    Per scale: maximum over the image and its flip, ReLU; then the sum over scales, min-max normalised per class.

    Args:
        known: an output of `images` already computed, which saves the unflipped forward at scale 1.
        classes: K class indices to compute; default all C. Maps of classes do not depend on each other.
    """
    size = (images.shape[-2], images.shape[-1])
    raw = raw_maps(network, images, scales, known, classes)
    return {stage: combined_maps(pairs, size) for stage, pairs in raw.items()}


@torch.no_grad()
def raw_maps(
    network: Network,
    images: Tensor,
    scales: Sequence[float],
    known: Output | None = None,
    classes: Tensor | None = None,
) -> dict[MapStage, list[MapPair]]:
    """Class activations at the network's resolution: by stage, for each scale those of the image and of its flip."""
    if not network.map_stages:
        return {}
    passes, cached = [], []
    for scale in scales:
        cached.append(scale == 1.0 and known is not None)
        if cached[-1]:
            passes.append(images.flip(-1))
            continue
        target = [max(network.stride, int(scale * side)) for side in images.shape[-2:]]
        scaled = F.interpolate(images, size=target, mode="bilinear", align_corners=False)
        passes.append(torch.cat([scaled, scaled.flip(-1)]))
    by_stage: dict[MapStage, list[MapPair]] = {stage: [] for stage in network.map_stages}
    for straight_known, maps in zip(cached, network.class_maps_of(passes, classes), strict=True):
        known_maps = network.class_maps(images, known, classes) if straight_known else None
        for stage, pairs in by_stage.items():
            straight, flipped = maps[stage].chunk(2) if known_maps is None else (known_maps[stage], maps[stage])
            pairs.append((straight, flipped))
    return by_stage


def combined_maps(pairs: Sequence[MapPair], size: tuple[int, int]) -> Tensor:
    """Maps B,K,H,W of `size` from the activations of `raw_maps`."""
    total: Tensor | float = 0.0
    for straight, flipped in pairs:
        enlarged = F.interpolate(straight, size=size, mode="bilinear", align_corners=False)
        two = F.interpolate(flipped, size=size, mode="bilinear", align_corners=False).flip(-1)
        total = total + F.relu(torch.maximum(enlarged, two))
    assert isinstance(total, Tensor)
    return normalise(total)


def normalise(cam: Tensor) -> Tensor:
    """Min-max per image and class over the pixels, with 1e-5 in the denominator."""
    cam = cam - cam.amin((2, 3), keepdim=True)
    return cam / (cam.amax((2, 3), keepdim=True) + 1e-5)


def map_logits(maps: Tensor, cls: Tensor, background: float) -> Tensor:
    """The segmentation of a network without a decoder: its class maps, thresholded. B,C+1,h,w, background first.

    Maps B,C,h,w are rectified and normalised; those of classes that the class logits B,C deny are 0. Logits are
    logarithms, so that their softmax has the proportions of maps and `background`, a threshold above 0.
    """
    scores = normalise(F.relu(maps)) * (cls > 0)[:, :, None, None]
    scores = torch.cat([torch.full_like(scores[:, :1], background), scores], 1)
    return scores.clamp(min=1e-5).log()
