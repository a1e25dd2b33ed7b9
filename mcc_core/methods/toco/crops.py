"""Local crops of class token contrast: where they may lie, which are taken, and which count as positive.

Shapes: B images of H x W pixels, V crops of s x s pixels each, P x Q places for a crop.
"""

from __future__ import annotations

import torch
from torch import Tensor


def activation_levels(cam: Tensor, background: float, foreground: float) -> Tensor:
    """Three-valued map B,H,W of CAMs B,C,H,W that are zero for absent classes.

    0 at or below `background`, 2 at or above `foreground`, 1 between.
    """
    strongest = cam.amax(1)
    return (strongest > background).to(cam.dtype) + (strongest >= foreground).to(cam.dtype)


def candidates(level: Tensor, size: int, views: int) -> Tensor:
    """Boolean B,P,Q: where the top left corner of a crop of `size` pixels may lie.

    A crop may lie where the level at its middle is at most 1, uncertain or background. The middle keeps half a crop
    from the border. An image with fewer than `views` such places may be cut anywhere.
    """
    margin = size // 2
    inner = level[:, margin : level.shape[1] - margin, margin : level.shape[2] - margin] <= 1
    too_few = inner.sum((1, 2), keepdim=True) < views
    return inner | too_few


def chosen(places: Tensor, priority: Tensor, views: int) -> Tensor:
    """Top and left B,V,2 of the `views` places B,P,Q of highest priority B,P,Q, highest first.

    With independent uniform priorities this draws without replacement, every set of places being equally likely.
    """
    best = priority.masked_fill(~places, -1).flatten(1).topk(views, dim=1).indices
    return torch.stack([best // places.shape[2], best % places.shape[2]], dim=2)


def windows(maps: Tensor, positions: Tensor, size: int) -> Tensor:
    """The windows B,V,...,s,s of maps B,...,H,W at tops and lefts B,V,2."""
    every = maps.unfold(-2, size, 1).unfold(-2, size, 1)  # B,...,H-s+1,W-s+1,s,s without a copy
    every = every.movedim((-4, -3), (1, 2))
    image = torch.arange(len(maps), device=maps.device)[:, None]
    return every[image, positions[..., 0], positions[..., 1]]


def positiveness(level: Tensor, positions: Tensor, size: int, threshold: float) -> Tensor:
    """Flags B,2+V (float, 1 = positive) of the two global views, always positive, and of the crops.

    A crop is positive if its mean level exceeds `threshold`.
    """
    local = windows(level, positions, size).sum((2, 3)) > threshold * size * size
    return torch.cat([local.new_ones(len(level), 2), local], dim=1).to(level.dtype)
