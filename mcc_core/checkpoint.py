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
from mcc_core.files import whole
from mcc_core.methods.registry import experiment_of, random_network
from mcc_core.networks.base import Network
from mcc_core.weights_file import read_content, require_finite, top_names

FORMAT = 1
_FIELDS = ("classes", "iteration", "seed", "model", "optimizer", "metrics")  # beside format and experiment


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
        """The network with the checkpoint's weights, on the CPU, in evaluation mode, of its trial's precision.

        Raises UsageError where they are those of another network.
        """
        network = random_network(self.experiment, len(self.classes))
        own, there = network.state_dict(), self.model
        if odd := [
            n for n in own.keys() | there.keys() if n not in own or n not in there or own[n].shape != there[n].shape
        ]:
            raise UsageError(f"checkpoint: its weights are not those of its own experiment: {min(odd)}")
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
    # Opened here and not by name: torch's own writer tells a full disk from no other fault.
    with whole(path) as partial, partial.open("wb") as file:
        torch.save(content, file)
        file.flush()
        os.fsync(file.fileno())


class ForeignFile(UsageError):  # noqa: N818  a kind of UsageError
    """A file that is no checkpoint of ours; `mcc import-weights` may read it."""


def load(path: Path | io.BytesIO) -> Checkpoint:
    """Read a checkpoint.

    Raises UsageError when the file is missing, cut short, of a newer version or not finite; ForeignFile when it is of
    another kind.
    """
    where = str(path) if isinstance(path, Path) else "checkpoint"
    content = read_content(path)
    if not isinstance(content.get("format"), int) or "experiment" not in content:
        raise ForeignFile(
            f"{where}: not an mcc checkpoint; {top_names(content)} (mcc import-weights makes a checkpoint of a "
            "published network or a backbone)"
        )
    if content["format"] != FORMAT:
        raise UsageError(f"{where}: a checkpoint of format {content['format']}; this version reads {FORMAT}")
    if lacking := [name for name in _FIELDS if name not in content]:
        raise UsageError(f"{where}: a checkpoint that lacks {', '.join(lacking)}")
    require_finite({name: content[name] for name in ("model", "optimizer") if content[name]}, where)
    return Checkpoint(
        experiment=experiment_of(content["experiment"], where),
        classes=tuple(content["classes"]),
        iteration=content["iteration"],
        seed=content["seed"],
        model=content["model"],
        optimizer=content["optimizer"],
        metrics=content["metrics"],
        window=content.get("window"),
    )
