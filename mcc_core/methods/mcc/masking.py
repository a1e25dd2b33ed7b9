"""Key masks of the local views and which views count as positive (section 3.3)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def sample_masks(
    images: int, views: int, grid: tuple[int, int], ratio: float, scale: int, generator: torch.Generator
) -> Tensor:
    """Random key masks B,V,h,w (uint8, 1 = masked) on the CPU.

    Bernoulli(`ratio`) on the grid divided by `scale`, enlarged by nearest neighbour and cut to the grid
    (docs/method.md; a grid that `scale` does not divide is covered by one more draw).
    """
    return on_grid(square_noise(images, views, grid, scale, generator) < ratio, grid, scale).to(torch.uint8)


def square_noise(images: int, views: int, grid: tuple[int, int], scale: int, generator: torch.Generator) -> Tensor:
    """Uniform numbers B,V,h',w' for the squares of `scale` tokens a side that cover the grid."""
    return torch.rand(images, views, -(-grid[0] // scale), -(-grid[1] // scale), generator=generator)


def on_grid(squares: Tensor, grid: tuple[int, int], scale: int) -> Tensor:
    """Squares B,V,h',w' as tokens B,V,h,w of the grid."""
    fine = squares.repeat_interleave(scale, dim=2).repeat_interleave(scale, dim=3)
    return fine[:, :, : grid[0], : grid[1]]


def uncertain_squares(cam: Tensor, grid: tuple[int, int], scale: int, low: float, high: float) -> Tensor:
    """Boolean B,1,h',w': where the strongest class of CAMs B,C,H,W is between `low` and `high`, both excluded.

    CAMs are zero for absent classes. A square is what its first token is, a token what its nearest pixel is.
    """
    strongest = cam.amax(1, keepdim=True)
    between = ((strongest > low) & (strongest < high)).to(cam.dtype)
    return F.interpolate(between, size=grid, mode="nearest")[..., ::scale, ::scale] > 0


def uncertain_first(noise: Tensor, counts: Tensor, uncertain: Tensor) -> Tensor:
    """Boolean B,V,h',w', true = masked: `counts` B,V squares of each view, uncertain ones first, then least noise.

    Without any uncertain square, or with uncertain ones alone, those of the least noise.
    """
    order = (noise - uncertain.to(noise.dtype)).flatten(2).argsort(dim=2, stable=True).argsort(dim=2)
    return (order < counts[..., None]).view(noise.shape)


def activation_levels(cam: Tensor, grid: tuple[int, int], background: float, foreground: float, resize: str) -> Tensor:
    """Three-valued map B,h,w of CAMs B,C,H,W that are zero for absent classes.

    0 at or below `background`, 2 at or above `foreground`, 1 between. `resize`: bicubic or bilinear, to the grid.
    """
    resized = F.interpolate(cam, size=grid, mode=resize, align_corners=False).amax(1)
    return (resized > background).to(cam.dtype) + (resized >= foreground).to(cam.dtype)


def positiveness(level: Tensor, masks: Tensor, threshold: float, views_global: int = 2) -> Tensor:
    """Flags B,G+V (float, 1 = positive) of the global keys, always positive, and the local ones (Eq. 6).

    Args:
        level: B,h,w how much object each token shows.
        masks: B,V,h,w, 1 = masked.
        threshold: mu; a view is positive if the mean level of its kept tokens exceeds it. A view that keeps nothing
            is negative.
    """
    kept = (masks == 0).to(level.dtype)
    local = (level[:, None] * kept).sum((2, 3)) > threshold * kept.sum((2, 3))
    return torch.cat([local.new_ones(len(level), views_global), local], dim=1).to(level.dtype)
