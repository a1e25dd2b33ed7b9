"""Refinements by the colours of an image: PAR and dense CRF."""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from mcc_core.pseudo_labels.crf import dense_crf, require_crf
from mcc_core.pseudo_labels.par import refine
from mcc_core.refinement.base import Asked, Kind, Picture, Refinement, Step, Viewer


class Par(Step):
    """Pixel-adaptive refinement of the softmax of the scores, on the image made smaller by `par.downscale`."""

    kind: ClassVar[Kind] = "par"

    def apply(self, scores: Tensor, picture: Picture, config: Refinement) -> Tensor:
        pixels = torch.from_numpy(picture.image).permute(2, 0, 1)[None].float()
        size = pixels.shape[-2:]
        small = [max(1, side // config.par.downscale) for side in size]
        pixels = F.interpolate(pixels, size=small, mode="bilinear", align_corners=False)
        scores = F.interpolate(scores.softmax(0)[None], size=small, mode="bilinear", align_corners=False)
        found = refine(pixels, scores, config.par)
        return F.interpolate(found, size=size, mode="bilinear", align_corners=False)[0]


class Crf(Step):
    """Dense CRF on the scores, scaled to probabilities."""

    kind: ClassVar[Kind] = "crf"

    def asks(self, viewer: Viewer | None, config: Refinement, device: torch.device) -> Asked | None:
        require_crf()
        return None

    def apply(self, scores: Tensor, picture: Picture, config: Refinement) -> Tensor:
        shares = scores / scores.sum(0).clamp(min=torch.finfo(scores.dtype).tiny)
        return torch.from_numpy(dense_crf(picture.image, shares.float().numpy(), config.crf))
