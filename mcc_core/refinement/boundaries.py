"""Random walk of scores between the class boundaries that a trained network finds (IRN)."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mcc_core.data.label_maps import Supervision
from mcc_core.pseudo_labels.inter_pixel import random_walk
from mcc_core.refinement.base import Asked, Kind, Picture, Refinement, Step, Viewer
from mcc_core.refinement.second_network import answered, second_network, supervision_of_file

_CELL = 4  # pixels


class Irn(Step):
    """Scores spread by a random walk that boundaries hold up (Ahn et al. 2019; `inter_pixel` has the formulas).

    The image is seen at its own size and at one scale, with its flip; scores walk at a quarter of it. Afterwards the
    highest score is 1, and a constant background score stays what it is; where the background is a map, it walks too.
    """

    kind: ClassVar[Kind] = "irn"
    learner: ClassVar[str | None] = "irn"

    def asks(self, viewer: Viewer | None, config: Refinement, device: torch.device) -> Asked | None:
        network = second_network(viewer, config.irn, "irn", "boundaries", device)

        def answer(image: np.ndarray) -> Tensor:
            return answered(network, image, device, _CELL, network.boundaries)

        return answer

    def supervision(self, config: Refinement) -> Supervision:
        return supervision_of_file(config.irn.network)

    def apply(self, scores: Tensor, picture: Picture, config: Refinement) -> Tensor:
        boundary, asked = picture.answers[self.kind].to(scores.dtype), config.irn
        walking = scores if picture.has_background else scores[1:]
        small = F.interpolate(walking[None], size=tuple(boundary.shape), mode="bilinear", align_corners=False)[0]
        found = random_walk(small, boundary, radius=asked.radius, power=asked.power, log_steps=asked.log_steps)
        found = F.interpolate(found[None], size=scores.shape[-2:], mode="bilinear", align_corners=False)[0]
        if picture.has_background:
            return found
        highest = found.amax((1, 2), keepdim=True) if asked.normalise == "class" else found.amax()
        return torch.cat([scores[:1], found / highest.clamp(min=torch.finfo(found.dtype).tiny)])
