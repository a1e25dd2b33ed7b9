"""How long a sweep will take: from trials that ran before, else from a few training steps measured now."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from statistics import median

from mcc_core.config import Experiment
from mcc_core.data.index import DataIndex
from mcc_core.methods.registry import method_of
from orchestrator.records.speeds import Speed, past_speeds, speed_profile
from orchestrator.storage.store import Storage

TRIAL_OVERHEAD_S = 12.0  # start and end of a trial's processes
_EVALUATION_SHARE = 0.5  # cost of scoring an image against training on it: no backward pass, but every CAM scale
_LONG_PROBE_S = 20.0


@dataclass(frozen=True)
class Estimate:
    """Predicted duration of what is left of a sweep."""

    total_s: float
    iteration_s: float
    source: str  # what it rests on
    worker_s: float = 0.0  # seconds of every worker, added up


def estimate_sweep(
    experiments: Sequence[Experiment],
    index: DataIndex,
    concurrent: int,
    threads: float,
    gpus_per_worker: float,
    storage: Storage,
    *,
    may_probe: bool,
) -> Estimate | None:
    """Estimate for trials that are still to run; `index` is the data of the first. None when nothing is known.

    The first trial of each method stands for all of that method.
    """
    if not experiments:
        return Estimate(0.0, 0.0, "nothing is left to run")
    speeds: dict[str, Speed] = {}
    sources: dict[str, str] = {}
    for first in {e.method: e for e in reversed(experiments)}.values():
        known = known_speed(first, index, threads, gpus_per_worker, storage, may_probe=may_probe)
        if known is None:
            return None
        speeds[first.method], sources[first.method] = known
    told = dict.fromkeys(sources.values())
    source = ", ".join(told) + (" of each method" if len(speeds) > len(told) == 1 else "")
    durations = [training_s(e, speeds[e.method], len(index.val)) for e in experiments]
    worked = sum(d * e.train.workers for d, e in zip(durations, experiments, strict=True))
    return Estimate(_makespan(durations, concurrent), speeds[experiments[0].method].iteration_s, source, worked)


def known_speed(
    experiment: Experiment,
    index: DataIndex,
    threads: float,
    gpus_per_worker: float,
    storage: Storage,
    *,
    may_probe: bool,
) -> tuple[Speed, str] | None:
    """How fast trials of a kind are, and what that rests on: earlier ones, else a few steps now; None: not known."""
    if past := past_speeds(storage, speed_profile(experiment, threads, gpus_per_worker)):
        evaluations = [s.evaluation_s for s in past if s.evaluation_s is not None]
        speed = Speed(median(s.iteration_s for s in past), median(evaluations) if evaluations else None)
        return speed, f"{len(past)} earlier trial{'s' if len(past) > 1 else ''}"
    return _probe(experiment, index, threads, gpu=bool(gpus_per_worker)) if may_probe else None


def evaluation_s(experiment: Experiment, speed: Speed, val_images: int) -> float:
    """Seconds of an evaluation: as measured, else by its share of a training step."""
    train = experiment.train
    if speed.evaluation_s is not None:
        return speed.evaluation_s
    images = min(val_images, train.eval_images or val_images) / train.workers
    return images * speed.iteration_s / (train.batch_size * train.accumulate) * _EVALUATION_SHARE


def training_s(experiment: Experiment, speed: Speed, val_images: int) -> float:
    """Seconds of a whole trial that trains."""
    train, evaluation = experiment.train, evaluation_s(experiment, speed, val_images)
    evaluations = -(-train.iterations // train.eval_every)
    return TRIAL_OVERHEAD_S + train.iterations * speed.iteration_s + evaluations * evaluation


def _makespan(durations: Sequence[float], slots: int) -> float:
    ends = [0.0] * max(1, slots)
    for duration in durations:
        heapq.heapreplace(ends, ends[0] + duration)
    return max(ends)


def _probe(experiment: Experiment, index: DataIndex, threads: float, *, gpu: bool) -> tuple[Speed, str] | None:
    """Seconds per iteration by a few real steps; None where that cannot be said.

    On a GPU in a process of its own, whose end gives back all that it held of the GPU, its context among it.
    """
    if method_of(experiment).labels(experiment) is not None and index.labels is None:
        return None  # a stage makes them
    if not gpu:
        return _measured(experiment, index, threads, "cpu")
    import torch

    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        try:
            return pool.submit(_measured, experiment, index, threads, "cuda").result()
        except (torch.OutOfMemoryError, BrokenProcessPool):
            return None  # the GPU may be in use now and free when the trial begins


def _measured(experiment: Experiment, index: DataIndex, threads: float, device: str) -> tuple[Speed, str]:
    """By steps as they are; where they would take long, by steps of one image."""
    import torch

    from mcc_core.training.engine import probe

    model = experiment.model.model_copy(update={"weights": "random"})
    compute = experiment.compute.model_copy(update={"compile": False})  # compiling takes longer than the steps
    plain = experiment.model_copy(update={"model": model, "compute": compute})
    how = ", not compiled" if experiment.compute.compile else ""
    train = experiment.train.model_copy(update={"batch_size": 1, "loader_workers": 0})
    before = torch.get_num_threads()
    torch.set_num_threads(max(1, round(threads)))
    try:
        single = plain.model_copy(update={"train": train})
        estimate = probe(single, index, torch.device(device), steps=1) * experiment.train.batch_size
        if estimate * 4 > _LONG_PROBE_S:
            return Speed(estimate, None), f"one measured step of one image{how}"
        return Speed(probe(plain, index, torch.device(device), steps=2), None), f"2 measured steps{how}"
    finally:
        torch.set_num_threads(before)
