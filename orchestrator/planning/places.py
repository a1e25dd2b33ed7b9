"""What each worker of a sweep gets of a machine or cluster, and how many trials run beside each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mcc_core.errors import UsageError
from orchestrator.cluster.session import Capacity
from orchestrator.planning.configurations import Trial
from orchestrator.spec.space import parse
from orchestrator.spec.stages_file import StagesFile
from orchestrator.spec.sweep_file import SweepFile


@dataclass(frozen=True)
class Places:
    """Places for trials."""

    at_a_time: int
    cpus: float  # reserved for each worker
    gpus: float  # of each worker
    notes: tuple[str, ...] = ()


def places(sweep: SweepFile | StagesFile, source: str, trials: Sequence[Trial], capacity: Capacity | None) -> Places:
    """Places for a sweep's trials, those that a search may still propose among them.

    A worker gets a CPU for its computing thread and one for each loader process, as far as there are so many: a trial
    must fit, as many of them as were asked for, and no GPU may be left without. `capacity` None: of a cluster that is
    not attached yet.

    Raises UsageError, in one line, where a trial could never start, or its workers would share a GPU.
    """
    resources = sweep.resources
    workers, loaders = (largest(sweep, trials, name) for name in ("workers", "loader_workers"))
    wished = resources.cpus_per_worker or 1.0 + loaders
    gpus = resources.gpus_per_worker
    if gpus and gpus < 1 and workers > 1:
        raise UsageError(
            f"{source}: resources.gpus_per_worker: {gpus:g}: the {workers} workers of a trial would share a GPU, which "
            f"NCCL refuses; give each a whole one, or use {_alone(workers)}"
        )
    if capacity is None:
        return Places(resources.max_concurrent or len(trials), wished, gpus or 0.0)
    if gpus is None:
        if 0 < capacity.gpus < workers:
            raise UsageError(
                f"{source}: train.workers: {workers} workers need {workers} GPUs and {capacity.gpus:g} are there; use "
                f"{_alone(workers)}, or train on CPUs with resources.gpus_per_worker: 0"
            )
        gpus = 1.0 if capacity.gpus else 0.0
    try:
        cpus = _reserved(sweep, workers, wished, gpus, capacity)
        fits = capacity.trials_at_a_time(workers, cpus, gpus)
    except UsageError as error:
        raise UsageError(f"{source}: resources: {error}") from None
    wanted = resources.max_concurrent
    notes = [_colours(trials, on_gpu=bool(gpus))]
    if wanted is not None and wanted > fits:
        needs = f"{workers} worker{'s' if workers > 1 else ''} of {cpus:g} CPUs" + (
            f" and {gpus:g} GPUs" if gpus else ""
        )
        notes.append(
            f"resources.max_concurrent: {wanted} trials of {needs} do not fit on {capacity.cpus:g} CPUs and "
            f"{capacity.gpus:g} GPUs; {fits} run at a time"
        )
    at_a_time = min(wanted or fits, fits, len(trials) if sweep.search.kind != "tpe" else fits)
    return Places(at_a_time, cpus, gpus, tuple(note for note in notes if note))


def largest(sweep: SweepFile | StagesFile, trials: Sequence[Trial], name: str) -> int:
    """The largest value of an integer of `train` among the trials and what a search may still propose."""
    drawn = sweep.parameters.get(f"train.{name}")
    ends = (
        [value for p in parse({f"train.{name}": drawn}) for _, s in p.spaces() for value in s.ends()] if drawn else []
    )
    return max([getattr(t.experiment.train, name) for t in trials] + [int(end) for end in ends])


def _reserved(sweep: SweepFile | StagesFile, workers: int, wished: float, gpus: float, capacity: Capacity) -> float:
    """CPUs for each worker: those asked for, or as many of those wished for as leave room for the trials."""
    if sweep.resources.cpus_per_worker is not None:
        return wished
    most = capacity.trials_at_a_time(workers, 1.0, gpus)
    need = min(most, sweep.resources.max_concurrent or (most if gpus else 1))
    for cpus in range(int(wished), 1, -1):
        try:
            if capacity.trials_at_a_time(workers, cpus, gpus) >= need:
                return float(cpus)
        except UsageError:  # not even one
            continue
    return 1.0


def _alone(workers: int) -> str:
    return f"one worker with train.accumulate: {workers}, which trains the same"


def _colours(trials: Sequence[Trial], *, on_gpu: bool) -> str:
    """A line where `compute.augmentation` does not suit the machine."""
    chosen = {t.experiment.compute.augmentation for t in trials}
    if on_gpu and "loader" in chosen:
        return "compute.augmentation: loader: a GPU may wait for its images; device computes their colours on the GPU"
    if not on_gpu and "device" in chosen:
        return "compute.augmentation: device: without a GPU, loader takes less time"
    return ""
