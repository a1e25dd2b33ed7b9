"""Stages that make labels of a frozen CLIP's maps: whether its weights can be had, and how long an image takes."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch

from mcc_core.data.index import DataIndex
from mcc_core.data.pixels import read_rgb
from mcc_core.errors import DataError, UsageError
from mcc_core.methods.clip_es.config import Experiment
from mcc_core.validation import validate
from orchestrator.planning.configurations import Trial

if TYPE_CHECKING:
    from mcc_core.refinement.base import Refinement
    from mcc_core.refinement.clip_seeds import ClipSeeds

_CPU = torch.device("cpu")


def check_frozen(trials: Sequence[Trial], source: str, indexes: Mapping[str, DataIndex], *, download: bool) -> None:
    """Raise UsageError before any trial starts for a frozen network that cannot be had, or prompts that do not suit."""
    from mcc_core.clip.network import require_clip
    from mcc_core.refinement.base import Refinement

    seen: set[str] = set()
    for trial in trials:
        experiment = trial.experiment
        if not (trial.input is None and trial.refine is not None and isinstance(experiment, Experiment)):
            continue
        key = f"{experiment.clip.model_dump_json()} {trial.fingerprint}"
        if key in seen:
            continue
        seen.add(key)
        try:
            require_clip()
            if download or experiment.clip.file is not None or experiment.clip.weights == "random":
                _seeds(trial, indexes[trial.fingerprint], Refinement())
        except UsageError as error:
            raise UsageError(f"{source}: stages.{trial.stage}: {error}") from None


def image_seconds(trial: Trial, index: DataIndex, threads: float) -> float | None:
    """Seconds of one image's labels on this machine's CPU; None where no image can be read."""
    from mcc_core.refinement.base import Refinement, refined
    from mcc_core.refinement.kinds import STEPS

    item = next((item for item in index.train if item.labels), None)
    if item is None or trial.network is not None:
        return None
    before = torch.get_num_threads()
    torch.set_num_threads(max(1, round(threads)))
    try:
        refinement = validate(Refinement, trial.refine or {}, trial.name)
        seeds = _seeds(trial, index, refinement)
        began = time.perf_counter()
        picture = seeds.picture(item, read_rgb(item.image))
        refined(picture, refinement, STEPS)
        return time.perf_counter() - began
    except DataError:
        return None
    finally:
        torch.set_num_threads(before)


def _seeds(trial: Trial, index: DataIndex, refinement: Refinement) -> ClipSeeds:
    from mcc_core.refinement.clip_seeds import ClipSeeds

    assert isinstance(trial.experiment, Experiment)
    return ClipSeeds(trial.experiment.clip, index.classes, refinement, _CPU)
