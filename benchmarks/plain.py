"""The same training step written as the paper's text reads, as the baseline that the benchmarks state ratios against.

Every view gets its own full forward with explicit, masked attention over all tokens, the momentum branch encodes both
global views again, CAMs are computed for all classes with no shared forward, each refinement has its own affinity.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor

from mcc_core.config import ParConfig
from mcc_core.methods.mcc.network import MCCOutput
from mcc_core.methods.mcc.objective import Batch, Contrast, MCCObjective
from mcc_core.pseudo_labels.cam import multi_scale_maps


class PlainObjective(MCCObjective):
    """Losses equal to `MCCObjective`'s, without the savings."""

    def _forward(self, batch: Batch, with_view2: bool, masks: Tensor | None) -> MCCOutput:
        return self.model(batch["view1"])

    def _cams(self, batch: Batch, output: MCCOutput, classes: Tensor) -> tuple[Tensor, Tensor]:
        maps = multi_scale_maps(self.model, batch["view1"], self.experiment.cam.scales)
        return maps["cam"][:, classes], maps["aux_cam"][:, classes]

    def _contrast(self, batch: Batch, output: MCCOutput, masks: Tensor, flags: Tensor) -> Contrast:
        model = self.model
        views = (batch["view1"], batch["view2"])
        with torch.no_grad():
            queries = torch.cat([model.momentum_projector(model.encoder(view).cls) for view in views])
        keys = [model.projector(model.encoder(view).cls) for view in views]
        for view in range(masks.shape[1]):
            one = model.encoder.masked_cls(batch["local"], masks[:, view : view + 1], drop=False)
            keys.append(model.projector(one))
        return Contrast(queries, torch.cat(keys), flags)


def explicit_attention() -> AbstractContextManager[object]:
    """Attention as matrix product, softmax and matrix product while inside."""
    return mock.patch.object(F, "scaled_dot_product_attention", _attention)


def _attention(q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None) -> Tensor:
    scores = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5
    if attn_mask is not None:
        scores = scores.masked_fill(~attn_mask, -torch.inf)
    return scores.softmax(-1) @ v


def refine_separately(images: Tensor, scores: Tensor, config: ParConfig) -> Tensor:
    """The two packed score sets one after the other, each with an affinity of its own."""
    return torch.cat([plain_refine(images, half, config) for half in scores.chunk(2, dim=1)], dim=1)


def plain_refine(images: Tensor, scores: Tensor, config: ParConfig) -> Tensor:
    """Pixel-adaptive refinement with every neighbour of every iteration in memory."""
    scores = F.interpolate(scores, size=images.shape[-2:], mode="bilinear", align_corners=True)
    near = neighbours(images, config.dilations)
    spread = near.std(2, keepdim=True) + 1e-8
    colour = -(((near - images[:, :, None]).abs() / spread / config.color_weight) ** 2).mean(1, keepdim=True)
    steps = [(dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1) if dy or dx]
    distance = images.new_tensor([d * (dy * dy + dx * dx) ** 0.5 for d in config.dilations for dy, dx in steps])
    place = -((distance / (distance.std() + 1e-8) / config.color_weight) ** 2)
    weights = colour.softmax(2) + config.position_weight * place.softmax(0)[None, None, :, None, None]
    for _ in range(config.iterations):
        scores = (neighbours(scores, config.dilations) * weights).sum(2)
    return scores


def neighbours(x: Tensor, dilations: tuple[int, ...]) -> Tensor:
    """The 8 neighbours of every pixel at each dilation: B,K,n,h,w of B,K,h,w."""
    h, w = x.shape[-2:]
    found = []
    for d in dilations:
        padded = F.pad(x, [d] * 4, mode="replicate")
        found += [
            padded[..., d + dy : d + dy + h, d + dx : d + dx + w] for dy in (-d, 0, d) for dx in (-d, 0, d) if dy or dx
        ]
    return torch.stack(found, 2)
