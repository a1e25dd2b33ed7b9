"""A second network that a step of a refinement asks: of a checkpoint, or the one whose maps are refined."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

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
from mcc_core.refinement.base import IrnConfig, Kind, PsaConfig, Viewer, content_digest

Ability = Literal["boundaries", "affinities"]
_LEAST = 16  # pixels of a side, of which something is left at a network's stride


def second_network(
    viewer: Viewer | None, asked: IrnConfig | PsaConfig, kind: Kind, finds: Ability, device: torch.device
) -> Network:
    """The network that finds something: of a checkpoint file, or the one whose maps are refined.

    Args:
        asked: names the file.
        kind: of the step, which is also the name of the method.
        device: of a checkpoint's network; that of the seeds is where it is.

    Raises UsageError where there is none, it is another one than was planned with, or it does not find such a thing.
    """
    if (file := asked.network) is not None:
        if asked.digest is not None and content_digest(file, f"{kind}.network") != asked.digest:
            raise UsageError(f"{kind}.network: {file}: was changed since the plan was made: plan and submit again")
        saved = checkpoints.load(file)
        network = saved.network().to(device)
        if not _can(network, finds):
            raise UsageError(f"{kind}.network: {file}: of the method {saved.experiment.method}, which finds no {finds}")
        return network
    if viewer is None or not _can(viewer.network, finds):
        raise UsageError(
            f"{kind}.network: is missing: the checkpoint of a trial of the method {kind}, which finds {finds}"
        )
    return viewer.network


def supervision_of_file(file: Path | None) -> Supervision:
    """Of what the network of a checkpoint was trained on; without one it is the seeds', who say it themselves."""
    if file is None:
        return "weak"
    experiment = checkpoints.load(file).experiment
    learned = method_of(experiment).labels(experiment)
    return "weak" if learned is None else learned.supervision


@torch.no_grad()
def answered(
    network: Network, image: np.ndarray, device: torch.device, cell: int, ask: Callable[[Tensor], Tensor]
) -> Tensor:
    """What a network says of an image H,W,3 uint8 at its own size: ...,h,w with a side of `cell` pixels; on the CPU.

    `ask` gets the pixels 1,3,H,W, normalised, and gives 1,...,h,w.
    """
    height, width = image.shape[:2]
    pixels = moved(normalise(torch.from_numpy(image).permute(2, 0, 1)[None]), device)
    pixels = F.pad(pixels, (0, max(0, _LEAST - width), 0, max(0, _LEAST - height)))
    with arithmetic(network.precision, network.deterministic):
        found = ask(pixels)[0]
    return fetched([found[..., : -(-height // cell), : -(-width // cell)].contiguous()])[0]


def _can(network: Network, finds: Ability) -> bool:
    return network.has_boundaries if finds == "boundaries" else network.has_affinities
