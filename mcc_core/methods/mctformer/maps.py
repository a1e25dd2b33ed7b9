"""From class maps of patches and attention to class maps (sections 3.2 and 3.3).

Shapes: B images, K classes, N = h*w patches.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def fused(patch_cam: Tensor, to_patches: Tensor) -> Tensor:
    """Class maps B,K,h,w: rectified class maps of the patches times the attention of class tokens, both B,K,h,w."""
    return F.relu(patch_cam) * to_patches


def spread(maps: Tensor, affinity: Tensor) -> Tensor:
    """Class maps B,K,h,w where a patch has the sum of all patches' values, weighted by its attention to them B,N,N."""
    return torch.einsum("bnm,bkm->bkn", affinity, maps.flatten(2)).unflatten(2, maps.shape[-2:])


def pooled(maps: Tensor, decay: float = 1.0) -> Tensor:
    """Class scores B,K of class maps B,K,h,w: the mean, in which the value of rank r (from 0) weighs decay^r."""
    if decay == 1:
        return maps.mean((2, 3))
    ranked = maps.flatten(2).sort(dim=2, descending=True).values
    weights = decay ** torch.arange(ranked.shape[2], device=maps.device, dtype=maps.dtype)
    return (ranked * weights).sum(2) / weights.sum()
