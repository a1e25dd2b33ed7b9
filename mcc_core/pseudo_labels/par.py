"""Pixel-adaptive refinement (PAR) of class scores by the image around each pixel.

Shapes: B images, K score maps, n neighbours (8 at each dilation), N = h * w pixels of one image.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mcc_core.config import ParConfig
from mcc_core.device import constant

_RING = tuple((dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1) if dy or dx)
_EPSILON = 1e-8
_CHUNK = 16384  # pixels whose affinities are computed together, so that temporaries stay small
# Where images one by one and pixels in chunks are fastest: what fits a cache. Elsewhere few large operations are.
PIECEWISE = {"cpu"}


@torch.no_grad()
def refine(images: Tensor, scores: Tensor, config: ParConfig) -> Tensor:
    """Replace each score, `iterations` times, by the mean of its neighbours' weighted by likeness of colour.

    The weight of neighbour i is softmax_i(a) + w2 * softmax_i(p), with a = -(|I_i - I| / std(I) / w1)^2, the mean over
    the colour channels, and p the same of the distance; the spread is taken over all neighbours. Border pixels repeat.

    Args:
        images: B,3,h,w in 0..255. scores: B,K,h',w', resized bilinearly (corners aligned) to the images; K may pack
            several score sets, which then share the affinities.

    Returns:
        B,K,h,w, float32 or, where the scores are, float64. No gradient flows through.
    """
    size = images.shape[-2:]
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    if scores.shape[-2:] != size:
        scores = F.interpolate(scores, size=size, mode="bilinear", align_corners=True)
    near = neighbours(size[0], size[1], config.dilations, images.device)
    images, count = images.to(scores.dtype), len(images)
    if images.device.type in PIECEWISE:
        pairs = zip(images.flatten(2), scores.flatten(2), strict=True)
        return torch.stack([_refined(*pair, near, config, _CHUNK) for pair in pairs]).view_as(scores)
    # All images as one long image, whose pixels have their neighbours in their own.
    first = torch.arange(0, count * len(near), len(near), device=near.device, dtype=near.dtype)
    every = (first[:, None, None] + near).flatten(0, 1)
    pixels, flat = (x.transpose(0, 1).flatten(1) for x in (images, scores))
    return _refined(pixels, flat, every, config, len(every)).unflatten(1, (count, *size)).transpose(0, 1)


def _refined(pixels: Tensor, scores: Tensor, neighbours: Tensor, config: ParConfig, chunk: int) -> Tensor:
    """Scores K,N of pixels 3,N, refined."""
    place = _place_weights(config, scores.dtype, scores.device)
    weights = _colour_weights(pixels, neighbours, config.color_weight, chunk).add_(place)
    table = scores.T.contiguous()  # N,K: one gather fetches all of a neighbour's scores
    for _ in range(config.iterations):
        # Gathers, weighs and sums in one pass: no neighbour's scores are ever written out.
        table = F.embedding_bag(neighbours, table, per_sample_weights=weights, mode="sum")
    return table.T


def neighbours(height: int, width: int, dilations: tuple[int, ...], device: torch.device) -> Tensor:
    """Pixel numbers N,n of every pixel's neighbours; those outside the image are moved onto its border."""
    steps = constant(tuple((d * dy, d * dx) for d in dilations for dy, dx in _RING), torch.int32, device)
    rows = torch.arange(height, device=device, dtype=torch.int32)[:, None] + steps[:, 0]
    columns = torch.arange(width, device=device, dtype=torch.int32)[:, None] + steps[:, 1]
    rows = rows.clamp_(0, height - 1).mul_(width)
    return (rows[:, None] + columns.clamp_(0, width - 1)).flatten(0, 1)


def _colour_weights(pixels: Tensor, neighbours: Tensor, width: float, chunk: int) -> Tensor:
    """softmax(a) of `refine`, N,n, of pixels 3,N, so many at a time."""
    weights = pixels.new_empty(neighbours.shape)
    for begin in range(0, len(neighbours), chunk):
        part = slice(begin, begin + chunk)
        unlike = torch.zeros_like(weights[part])
        for channel in pixels:
            near = channel.index_select(0, neighbours[part].flatten()).view_as(unlike)
            variance = (near - near.mean(1, keepdim=True)).square_().sum(1, keepdim=True) / (near.shape[1] - 1)
            scale = (variance.sqrt_() + _EPSILON).mul_(width).reciprocal_().square_()
            unlike.addcmul_((near - channel[part, None]).square_(), scale)
        weights[part] = unlike.div_(-len(pixels)).softmax(1)
    return weights


def _place_weights(config: ParConfig, dtype: torch.dtype, device: torch.device) -> Tensor:
    """w2 * softmax(p) of `refine`, one per neighbour: the same for all pixels."""
    distance = constant(
        tuple(d * (dy * dy + dx * dx) ** 0.5 for d in config.dilations for dy, dx in _RING), dtype, device
    )
    unlike = (distance / (distance.std() + _EPSILON) / config.color_weight).square()
    return config.position_weight * (-unlike).softmax(0)
