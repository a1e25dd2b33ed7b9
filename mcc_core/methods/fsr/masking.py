"""Which blocks of view 2 the student does not see.

Shapes: B images, h x w blocks.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def uncertain_blocks(cam: Tensor, blocks: tuple[int, int], low: float, high: float) -> Tensor:
    """Boolean B,h,w: where the strongest class of CAMs B,C,H,W is between `low` and `high`, both excluded.

    CAMs are zero for absent classes. A block is what its pixel of nearest-neighbour sampling is.
    """
    strongest = cam.amax(1, keepdim=True)
    between = ((strongest > low) & (strongest < high)).to(cam.dtype)
    return F.interpolate(between, size=blocks, mode="nearest")[:, 0] > 0


def masked_blocks(noise: Tensor, ratio: float, first: Tensor | None = None) -> Tensor:
    """Boolean B,h,w, true = masked: the share `ratio` of blocks, rounded up, that have the largest noise.

    Args:
        noise: B,h,w uniform in [0, 1).
        first: B,h,w blocks that are masked before any other.
    """
    flat = noise.flatten(1)
    if first is not None:
        flat = flat + first.flatten(1)
    count = masked_count(ratio, flat.shape[1])
    chosen = flat.topk(count, dim=1).indices
    return torch.zeros_like(flat, dtype=torch.bool).scatter(1, chosen, True).view(noise.shape)


def masked_count(ratio: float, blocks: int) -> int:
    """How many of an image's blocks are masked."""
    return math.ceil(ratio * blocks - 1e-9)


def true_places(mask: Tensor, count: int) -> Tensor:
    """The flat places, in order, of the `count` true values of a mask; `nonzero` would wait for a GPU to count them."""
    return (~mask).flatten().to(torch.uint8).sort(stable=True).indices[:count]


def on_grid(blocks: Tensor, grid: tuple[int, int]) -> Tensor:
    """Blocks B,h,w as tokens of a `grid` that is a multiple of them."""
    rows, columns = grid[0] // blocks.shape[1], grid[1] // blocks.shape[2]
    return blocks.repeat_interleave(rows, dim=1).repeat_interleave(columns, dim=2)
