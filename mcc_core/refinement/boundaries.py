"""Random walk of scores between the class boundaries that a trained network finds (IRN)."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mcc_core import checkpoint as checkpoints
from mcc_core.data.colours import normalise
from mcc_core.data.label_maps import Supervision
from mcc_core.device import fetched, moved
from mcc_core.errors import UsageError
from mcc_core.methods.registry import method_of
from mcc_core.networks.base import Network
from mcc_core.precision import arithmetic
from mcc_core.pseudo_labels.inter_pixel import random_walk
from mcc_core.refinement.base import Asked, Kind, Picture, Refinement, Step, Viewer

_LEAST = 16  # pixels of a side, of which something is left at the network's stride


class Irn(Step):
    """Scores spread by a random walk that boundaries hold up (Ahn et al. 2019; `inter_pixel` has the formulas).

    The image is seen at its own size and at one scale, with its flip; scores walk at a quarter of it. Afterwards the
    highest score is 1, and a constant background score stays what it is; where the background is a map, it walks too.
    """

    kind: ClassVar[Kind] = "irn"
    learner: ClassVar[str | None] = "irn"

    def asks(self, viewer: Viewer | None, config: Refinement) -> Asked | None:
        network, device = boundary_network(viewer, config.irn.network)

        def answer(image: np.ndarray) -> Tensor:
            return boundaries(network, image, device)

        return answer

    def supervision(self, config: Refinement) -> Supervision:
        if config.irn.network is None:  # that of the seeds, which say it themselves
            return "weak"
        experiment = checkpoints.load(config.irn.network).experiment
        learned = method_of(experiment).labels(experiment)
        return "weak" if learned is None else learned.supervision

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


def boundary_network(viewer: Viewer | None, file: Path | None) -> tuple[Network, torch.device]:
    """The network that finds boundaries: of a checkpoint file, or the one whose maps are refined.

    Raises UsageError where there is none, or it finds no boundaries.
    """
    device = torch.device("cpu") if viewer is None else viewer.device
    if file is not None:
        saved = checkpoints.load(file)
        network = saved.network().to(device)
        if not network.has_boundaries:
            raise UsageError(f"irn.network: {file}: of the method {saved.experiment.method}, which finds no boundaries")
        return network, device
    if viewer is None or not viewer.network.has_boundaries:
        raise UsageError("irn.network: is missing: the checkpoint of a trial of the method irn, which finds boundaries")
    return viewer.network, device


@torch.no_grad()
def boundaries(network: Network, image: np.ndarray, device: torch.device) -> Tensor:
    """Boundaries h,w in [0, 1] at a quarter of the size of an image H,W,3 uint8; on the CPU."""
    height, width = image.shape[:2]
    pixels = moved(normalise(torch.from_numpy(image).permute(2, 0, 1)[None]), device)
    pixels = F.pad(pixels, (0, max(0, _LEAST - width), 0, max(0, _LEAST - height)))
    with arithmetic(network.precision, network.deterministic):
        found = network.boundaries(pixels)[0]
    return fetched([found[: -(-height // 4), : -(-width // 4)].contiguous()])[0]
