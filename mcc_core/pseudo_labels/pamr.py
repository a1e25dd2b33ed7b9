"""Pixel-adaptive mask refinement (PAMR, Araslanov and Roth 2020), the forerunner of PAR, and labels by it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mcc_core.config import PamrConfig
from mcc_core.pseudo_labels.labels import IGNORE, denormalise
from mcc_core.pseudo_labels.par import neighbours

_EPSILON = 1e-8


def mask_label(images: Tensor, masks: Tensor, labels: Tensor, config: PamrConfig) -> Tensor:
    """Pseudo-label B,H,W of masks B,C+1,h,w: refined at their own resolution, enlarged, thresholded.

    Args:
        images: B,3,H,W normalised; labels: B,C, 1 for classes present.
    """
    pixels = denormalise(images, quantise=False) / 255
    refined = refine_masks(
        pixels, masks, iterations=config.iterations, dilations=config.dilations, spread=config.spread
    )
    whole = F.interpolate(refined, size=images.shape[-2:], mode="bilinear", align_corners=True)
    return thresholded(whole, labels, config)


@torch.no_grad()
def thresholded(masks: Tensor, labels: Tensor, config: PamrConfig) -> Tensor:
    """Labels B,H,W of refined masks B,C+1,H,W: 0 background, 1..C, IGNORE where no class or several claim a pixel.

    A class claims what is above a share of its maximum and above `least`; classes absent in labels B,C claim nothing.
    """
    present = F.pad(labels.to(masks.dtype), (1, 0), value=1)[:, :, None, None]
    masks = masks * present
    most = masks.amax((2, 3), keepdim=True)
    share = torch.full_like(masks[0, :, 0, 0], config.foreground)
    share[0].fill_(config.background)
    claimed = masks > (most * share[:, None, None]).clamp(min=config.least)
    if config.background_is == "rest":
        claimed[:, 0] = ~(masks[:, 1:] > config.background * most[:, 1:]).any(1)
    return claimed.to(torch.uint8).max(1).indices.masked_fill(claimed.sum(1) != 1, IGNORE)


@torch.no_grad()
def refine_masks(
    images: Tensor, masks: Tensor, *, iterations: int, dilations: tuple[int, ...], spread: float
) -> Tensor:
    """Replace each mask value, `iterations` times, by the mean of its neighbours' weighted by likeness of colour.

    The weight of neighbour i is the softmax over neighbours of the mean over colours of -|I_i - I| / (spread s + 1e-8);
    s is the standard deviation over the 3x3 windows of all dilations, centres included. Border pixels repeat.

    Args:
        images: B,3,H,W in any linear scale, resized bilinearly (corners aligned) to the masks B,K,h,w.
    """
    images = F.interpolate(images.to(masks.dtype), size=masks.shape[-2:], mode="bilinear", align_corners=True)
    table = neighbours(masks.shape[-2], masks.shape[-1], dilations, masks.device)
    refined = []
    for image, mask in zip(images, masks, strict=True):
        weights = colour_weights(image.flatten(1), table, len(dilations), spread)
        values = mask.flatten(1).T.contiguous()
        for _ in range(iterations):
            values = F.embedding_bag(table, values, per_sample_weights=weights, mode="sum")
        refined.append(values.T.reshape(mask.shape))
    return torch.stack(refined)


def colour_weights(pixels: Tensor, table: Tensor, windows: int, spread: float) -> Tensor:
    """Weights N,n of pixels 3,N and the numbers N,n of their neighbours, 8 in each of so many windows."""
    unlike = torch.zeros(table.shape, dtype=pixels.dtype, device=pixels.device)
    for channel in pixels:
        near, own = channel[table.long()], channel[:, None]
        deviation = torch.cat([near, own.expand(-1, windows)], 1).std(1, keepdim=True)
        unlike += (near - own).abs() / (spread * deviation + _EPSILON)
    return (-unlike / len(pixels)).softmax(1)
