"""Random walk of scores by the affinity of neighbours that a trained network finds (PSA)."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mcc_core.data.label_maps import Supervision
from mcc_core.pseudo_labels.pixel_affinity import affinity_walk, background_score
from mcc_core.refinement.base import Asked, Kind, Picture, Refinement, Step, Viewer
from mcc_core.refinement.second_network import answered, second_network, supervision_of_file

_CELL = 8  # pixels


class Psa(Step):
    """Scores spread by a random walk of affinities (Ahn and Kwak 2018; `pixel_affinity` has the formulas).

    The image is seen at its own size and at one scale; scores walk at an eighth of it. Of class maps the background's
    score is a power of what the highest leaves of 1, in place of a threshold; it walks as the classes do.
    """

    kind: ClassVar[Kind] = "psa"
    learner: ClassVar[str | None] = "psa"

    def asks(self, viewer: Viewer | None, config: Refinement, device: torch.device) -> Asked | None:
        radius = config.psa.radius
        network = second_network(viewer, config.psa, "psa", "affinities", device)

        def answer(image: np.ndarray) -> Tensor:
            return answered(network, image, device, _CELL, lambda pixels: network.affinities(pixels, radius))

        return answer

    def supervision(self, config: Refinement) -> Supervision:
        return supervision_of_file(config.psa.network)

    def apply(self, scores: Tensor, picture: Picture, config: Refinement) -> Tensor:
        affinity, asked = picture.answers[self.kind].to(scores.dtype), config.psa
        if not picture.has_background:
            scores = torch.cat([background_score(scores[1:], asked.alpha), scores[1:]])
        small = F.interpolate(scores[None], size=tuple(affinity.shape[-2:]), mode="area")[0]
        found = affinity_walk(small, affinity, radius=asked.radius, power=asked.power, log_steps=asked.log_steps)
        return F.interpolate(found[None], size=scores.shape[-2:], mode="bilinear", align_corners=False)[0]
