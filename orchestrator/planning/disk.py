"""How much a sweep will put into storage: checkpoints as its trials keep them, and pictures."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from mcc_core.config import Experiment
from orchestrator.records.checkpoints import KEPT
from orchestrator.records.speeds import past_speeds, speed_profile
from orchestrator.storage.store import Storage

_PICTURE = 200_000  # bytes of a panel, where no trial left any
_REST = 100_000  # events, logs and records of a trial
_ADAM = 8  # bytes of AdamW's two moments of a weight


def predicted_bytes(
    experiments: Sequence[Experiment], classes: int, threads: float, gpus_per_worker: float, storage: Storage
) -> float:
    """Bytes that trials which are still to run will keep, at most: the newest checkpoints and the best, all panels.

    Sizes are those of earlier trials of the same network where there are any, else counted from its weights.
    """
    sizes: dict[str, tuple[float, float]] = {}
    total = 0.0
    for experiment in experiments:
        profile = speed_profile(experiment, threads, gpus_per_worker)
        if profile not in sizes:
            past = past_speeds(storage, profile)
            checkpoints = [s.checkpoint_bytes for s in past if s.checkpoint_bytes]
            pictures = [s.picture_bytes for s in past if s.picture_bytes]
            sizes[profile] = (
                median(checkpoints) if checkpoints else checkpoint_bytes(experiment, classes),
                median(pictures) if pictures else _PICTURE,
            )
        checkpoint, picture = sizes[profile]
        train = experiment.train
        evaluations = -(-train.iterations // train.eval_every)
        total += min(evaluations, KEPT + 1) * checkpoint + evaluations * train.panels * picture + _REST
    return total


def checkpoint_bytes(experiment: Experiment, classes: int) -> float:
    """Bytes of a checkpoint: the network's weights and the optimiser's moments of those that are trained."""
    import torch

    from mcc_core.methods.registry import random_network

    with torch.device("meta"):
        network = random_network(experiment, classes)
    weights = sum(t.numel() * t.element_size() for t in network.state_dict().values())
    return float(weights + _ADAM * sum(p.numel() for p in network.parameters() if p.requires_grad))
