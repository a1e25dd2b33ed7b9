"""SLRNet's training step without its savings, as the baseline that the benchmarks state ratios against.

Passes are the same; the refinement of masks holds every neighbour of every iteration, and gradients of the segmentation
loss are computed with all others.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from plain import neighbours
from torch import Tensor

from mcc_core.methods.slrnet.network import SLRNet
from mcc_core.methods.slrnet.objective import SLRObjective as PlainObjective
from mcc_core.pseudo_labels import pamr

__all__ = ["PlainObjective", "REPLACED", "one_forward"]


def one_forward(model: SLRNet, images: Tensor) -> Tensor:
    """The pass that others are counted in: one view through the whole network."""
    return model(images).seg


@torch.no_grad()
def _refine_masks(
    images: Tensor, masks: Tensor, *, iterations: int, dilations: tuple[int, ...], spread: float
) -> Tensor:
    images = F.interpolate(images.to(masks.dtype), size=masks.shape[-2:], mode="bilinear", align_corners=True)
    near = neighbours(images, dilations)
    own = images[:, :, None]
    windows = torch.cat([near, own.expand(-1, -1, len(dilations), -1, -1)], 2)
    unlike = (near - own).abs() / (spread * windows.std(2, keepdim=True) + 1e-8)
    weights = (-unlike).mean(1, keepdim=True).softmax(2)
    for _ in range(iterations):
        masks = (neighbours(masks, dilations) * weights).sum(2)
    return masks


# What stands in for ours while the plain step runs: where, which, by what.
REPLACED = ((pamr, "refine_masks", _refine_masks),)
