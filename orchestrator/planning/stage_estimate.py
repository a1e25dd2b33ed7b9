"""How long the trials of a sweep of stages will take, each on its own and all after one another's products."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from mcc_core.data.index import DataIndex
from mcc_core.data.label_maps import LabelSetWriter
from mcc_core.data.pixels import image_size
from orchestrator.planning.configurations import Trial
from orchestrator.planning.estimate import TRIAL_OVERHEAD_S, Estimate, evaluation_s, known_speed, training_s
from orchestrator.planning.frozen import image_seconds
from orchestrator.records.speeds import Speed, past_speeds, refinement_profile, speed_profile
from orchestrator.storage.store import Storage


def estimate_stages(
    trials: Sequence[Trial],
    indexes: Mapping[str, DataIndex],
    concurrent: int,
    threads: float,
    gpus_per_worker: float,
    storage: Storage,
    *,
    may_probe: bool,
) -> tuple[Estimate | None, dict[str, float]]:
    """(of all, seconds of each by identity) for trials that are still to run; None when a time is not known.

    One trial of a network stands for all of it, each with its own number of iterations. A refinement that never ran is
    taken for an evaluation of its network on the images that it labels.
    """
    if not trials:
        return Estimate(0.0, 0.0, "nothing is left to run"), {}
    speeds: dict[str, tuple[Speed, str] | None] = {}
    images: dict[str, float | None] = {}  # seconds of each, of labels of a frozen network's maps
    seconds: dict[str, float] = {}
    sources: list[str] = []
    for trial in trials:
        index, experiment = indexes[trial.fingerprint], trial.experiment
        processors = (threads, gpus_per_worker)
        if trial.refine is not None:
            past = past_speeds(storage, refinement_profile(experiment, trial.refine, *processors))
            if past:
                image_s = sum(s.iteration_s for s in past) / len(past)
                seconds[trial.identity] = TRIAL_OVERHEAD_S + image_s * (len(index.train) + len(index.val))
                sources.append(f"{len(past)} earlier refinement{'s' if len(past) > 1 else ''}")
                continue
        if trial.input is None and trial.refine is not None:
            key = f"{speed_profile(experiment, *processors)} {trial.refine}"
            if key not in images:
                images[key] = image_seconds(trial, index, threads) if may_probe and not gpus_per_worker else None
            if (each := images[key]) is None:
                return None, {}
            seconds[trial.identity] = TRIAL_OVERHEAD_S + each * (len(index.train) + len(index.val))
            sources.append("labels of one image")
            continue
        key = speed_profile(experiment, *processors)
        if key not in speeds:
            with _with_labels(trial, index) as labelled:
                speeds[key] = known_speed(experiment, labelled, *processors, storage, may_probe=may_probe)
        found = speeds[key]
        if found is None:
            return None, {}
        speed, source = found
        if trial.refine is None:
            seconds[trial.identity] = training_s(experiment, speed, len(index.val))
            sources.append(source)
        else:
            scored = min(len(index.val), experiment.train.eval_images or len(index.val)) or 1
            image_s = evaluation_s(experiment, speed, len(index.val)) / scored
            seconds[trial.identity] = TRIAL_OVERHEAD_S + image_s * (len(index.train) + len(index.val))
            sources.append("evaluations of the networks that are refined")
    worked = sum(seconds[t.identity] * t.workers for t in trials)
    first = next((speeds[k] for k in speeds if speeds[k] is not None), None)
    told = ", ".join(dict.fromkeys(sources))
    whole = makespan(seconds, {t.identity: t.inputs for t in trials}, concurrent)
    return Estimate(whole, first[0].iteration_s if first else 0.0, told, worked), seconds


@contextmanager
def _with_labels(trial: Trial, index: DataIndex) -> Iterator[DataIndex]:
    """The data of a trial; where it trains on labels that are not made yet, a few images with empty ones for timing."""
    if trial.input is None or trial.refine is not None:
        yield index
        return
    items = index.train[: max(2, trial.experiment.train.global_batch)]
    with TemporaryDirectory() as folder:
        writer = LabelSetWriter(Path(folder) / "labels", index.classes)
        for item in items:
            width, height = image_size(item.image)
            writer.add(item.name, np.zeros((height, width), np.uint8))
        yield replace(index, train=items, labels=writer.close())


def makespan(seconds: Mapping[str, float], inputs: Mapping[str, Sequence[str]], slots: int) -> float:
    """Seconds until all are done, so many at a time, in their order, each after its input where that is among them."""
    free, ends, left = [0.0] * max(1, slots), dict[str, float](), list(seconds)
    while left:
        now = min(free)

        def ready(identity: str) -> float:
            before = [other for other in inputs.get(identity, ()) if other in seconds]
            return max((ends.get(other, float("inf")) for other in before), default=0.0)

        chosen = next((i for i in left if ready(i) <= now), None) or min(left, key=ready)
        left.remove(chosen)
        ends[chosen] = max(now, ready(chosen)) + seconds[chosen]
        free[free.index(now)] = ends[chosen]
    return max(ends.values(), default=0.0)
