"""Pixel-adaptive mask refinement (PAMR, Araslanov and Roth 2020), the forerunner of PAR."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mcc_core.pseudo_labels.par import neighbours

_EPSILON = 1e-8


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
    for image, one in zip(images, masks, strict=True):
        weights = colour_weights(image.flatten(1), table, len(dilations), spread)
        values = one.flatten(1).T.contiguous()
        for _ in range(iterations):
            values = F.embedding_bag(table, values, per_sample_weights=weights, mode="sum")
        refined.append(values.T.reshape(one.shape))
    return torch.stack(refined)


def colour_weights(pixels: Tensor, table: Tensor, windows: int, spread: float) -> Tensor:
    """Weights N,n of pixels 3,N and the numbers N,n of their neighbours, 8 in each of so many windows."""
    unlike = torch.zeros(table.shape, dtype=pixels.dtype, device=pixels.device)
    for channel in pixels:
        near, own = channel[table.long()], channel[:, None]
        deviation = torch.cat([near, own.expand(-1, windows)], 1).std(1, keepdim=True)
        unlike += (near - own).abs() / (spread * deviation + _EPSILON)
    return (-unlike / len(pixels)).softmax(1)
