"""One checkpoint format, loadable with `weights_only=True`."""

from __future__ import annotations

import io
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mcc_core.config import Experiment
from mcc_core.errors import UsageError
from mcc_core.methods.registry import experiment_of, random_network
from mcc_core.networks.base import Network

FORMAT = 1


@dataclass(frozen=True)
class Checkpoint:
    """A trained or half-trained network and what it takes to use it or go on."""

    experiment: Experiment
    classes: tuple[str, ...]  # foreground names
    iteration: int  # finished iterations
    seed: int
    model: dict[str, Tensor]
    optimizer: dict[str, Any] | None
    metrics: dict[str, float]
    window: list[dict[str, Any]] | None = None  # of each rank: what a run stopped between two log records had summed up

    def network(self) -> Network:
        """The network with the checkpoint's weights, on the CPU, in evaluation mode, for float32."""
        network = random_network(self.experiment, len(self.classes))
        network.load_state_dict(self.model)
        return network.eval()


def save(checkpoint: Checkpoint, path: Path) -> None:
    """Write a checkpoint; the file appears whole or not at all. Raises OSError, a full disk among them."""
    content = {
        "format": FORMAT,
        "experiment": checkpoint.experiment.model_dump(mode="json"),
        "classes": list(checkpoint.classes),
        "iteration": checkpoint.iteration,
        "seed": checkpoint.seed,
        "model": checkpoint.model,
        "optimizer": checkpoint.optimizer,
        "metrics": checkpoint.metrics,
        "window": checkpoint.window,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}.part")
    try:
        with partial.open("wb") as file:  # not by name: torch's own writer tells a full disk from no other fault
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def load(path: Path | io.BytesIO) -> Checkpoint:
    """Read a checkpoint. Raises UsageError when the file is missing, cut short or of another kind."""
    if isinstance(path, Path) and not path.is_file():
        raise UsageError(f"{path}: no such checkpoint file")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        detail = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UsageError(f"{path}: not a readable checkpoint: {detail[:160]}") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise UsageError(f"{path}: not an mcc checkpoint of format {FORMAT}")
    return Checkpoint(
        experiment=experiment_of(content["experiment"], str(path)),
        classes=tuple(content["classes"]),
        iteration=content["iteration"],
        seed=content["seed"],
        model=content["model"],
        optimizer=content["optimizer"],
        metrics=content["metrics"],
        window=content.get("window"),
    )
