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
    (PAPER_NOTES row 2; a grid that `scale` does not divide is covered by one more draw).
    """
    h, w = grid
    coarse = (-(-h // scale), -(-w // scale))
    draws = torch.rand(images, views, *coarse, generator=generator) < ratio
    fine = draws.repeat_interleave(scale, dim=2).repeat_interleave(scale, dim=3)
    return fine[:, :, :h, :w].to(torch.uint8)


def positiveness(
    cam: Tensor, masks: Tensor, background: float, foreground: float, threshold: float, views_global: int = 2
) -> Tensor:
    """Flags B,G+V (float, 1 = positive) of the global keys, always positive, and the local ones (Eq. 6).

    Args:
        cam: B,C,H,W normalised CAM, zero for absent classes.
        masks: B,V,h,w, 1 = masked.
        threshold: mu; a view is positive if the mean over its kept tokens of the three-valued map exceeds it
            (PAPER_NOTES rows 5 and 6). A view that keeps nothing is negative (row 3).
    """
    resized = F.interpolate(cam, size=masks.shape[-2:], mode="bicubic", align_corners=False).amax(1)
    level = (resized > background).to(cam.dtype) + (resized >= foreground).to(cam.dtype)
    kept = (masks == 0).to(cam.dtype)
    local = (level[:, None] * kept).sum((2, 3)) > threshold * kept.sum((2, 3))
    return torch.cat([local.new_ones(len(cam), views_global), local], dim=1).to(cam.dtype)
