"""A trial that makes labels: the maps of its input's network or of a frozen one, or its input's labels, refined, scored
and stored as a set."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import torch

from mcc_core import checkpoint as checkpoints
from mcc_core.data.index import DataIndex
from mcc_core.data.label_maps import DATASET, pack_label_set, read_label_set
from mcc_core.errors import MCCError
from mcc_core.methods.clip_es.config import Experiment as ClipExperiment
from mcc_core.methods.registry import experiment_of
from mcc_core.refinement.base import Refinement
from mcc_core.refinement.clip_seeds import ClipSeeds
from mcc_core.refinement.make import Refined, refine
from mcc_core.refinement.seeds import LabelSeeds, NetworkSeeds, Seeds
from mcc_core.training.engine import Outcome
from mcc_core.validation import validate
from orchestrator.evaluation.map_cache import MapCache
from orchestrator.records import layout
from orchestrator.records.checkpoints import newest_checkpoint
from orchestrator.records.local_places import unfinished_labels
from orchestrator.records.speeds import Speed, refinement_profile, speed_record
from orchestrator.storage.store import Storage, retry
from orchestrator.worker.assignment import Assignment
from orchestrator.worker.brought_network import brought
from orchestrator.worker.reporter import Reporter

_TELL_S = 2.0  # between events of how far it is
_CACHE_BYTES = 4_000_000_000  # of what networks said, for further refinements of the same


def make_labels(
    task: Assignment,
    storage: Storage,
    index: DataIndex,
    reporter: Reporter,
    work: Path,
    device: torch.device,
    should_stop: Callable[[], bool],
) -> Outcome:
    """Make the label set of a trial and put it on its way to storage.

    The images of both splits get labels where val has masks: those of val are for the score alone. What an attempt has
    made when it is stopped or killed stays on this machine, and the next goes on with the other images; what networks
    said of images stays too, for other refinements of the same.

    Raises MCCError when the input's product cannot be had; UsageError or DataError as the refinement does.
    """
    refinement = brought(validate(Refinement, task.refine or {}, f"{task.name}: refine"), task, storage, work)
    seeds = _seeds(task, refinement, storage, index, work, device)
    seeds.origin = {**seeds.origin, DATASET: reporter.experiment.data.model_dump(mode="json")}
    splits: tuple[Literal["train", "val"], ...] = ("train", "val") if index.has_masks else ("train",)
    images = len(index.train) + (len(index.val) if index.has_masks else 0)
    reporter.on_start(0, {"device": str(device), "world_size": 1, "images": images, "input": task.input})
    meter = _Meter(reporter, should_stop)
    unfinished = unfinished_labels(task.local_home(), task.identity, storage)
    try:
        made = refine(
            seeds,
            refinement,
            index,
            unfinished,
            splits=splits,
            identity=task.identity,
            processes=max(0, int(task.cpus_per_worker) - 1),
            on_image=meter,
            goes_on=True,
        )
    except _StoppedError:
        return Outcome("stopped", meter.done, {})
    for line in made.broken:
        print(f"no labels: {line}", flush=True)
    reporter.outbox.put_file(layout.label_set(task.identity), pack_label_set(made.labels, work / "labels.zip"))
    shutil.rmtree(unfinished, ignore_errors=True)
    profile = refinement_profile(reporter.experiment, task.refine or {}, task.threads, task.gpus_per_worker)
    if meter.made:
        reporter.outbox.put(*speed_record(profile, task.identity, Speed(meter.seconds / meter.made, None)))
    metrics = _metrics(made)
    reporter.log.emit("metrics", images, metrics=metrics)
    return Outcome("finished", images, metrics)


def _seeds(
    task: Assignment, refinement: Refinement, storage: Storage, index: DataIndex, work: Path, device: torch.device
) -> Seeds:
    if task.input is None:
        experiment = experiment_of(task.experiment, task.name)
        assert isinstance(experiment, ClipExperiment)
        return ClipSeeds(experiment.clip, index.classes, refinement, device)
    if (labels := retry(lambda: fetched_labels(storage, task.input or "", work))) is not None:
        return LabelSeeds(read_label_set(labels), refinement, device)
    record, file, complaints = retry(lambda: newest_checkpoint(storage, task.input or "", work))
    if record is None or file is None:
        why = "; ".join(complaints) or "storage has none"
        raise MCCError(f"{task.name}: no checkpoint of its input {task.input}: {why}")
    seeds = NetworkSeeds(checkpoints.load(file), refinement, device, name=task.input, digest=record.sha256)
    cache = MapCache(task.local_home() / "maps", _CACHE_BYTES, seeds.scorer, record.sha256, index.fingerprint)
    seeds.maps_of = cache.maps
    return seeds


def fetched_labels(storage: Storage, identity: str, work: Path) -> Path | None:
    """The label set of a trial as a local file, fetched from a bucket; None where storage has none."""
    key = layout.label_set(identity)
    if not storage.exists(key):
        return None
    local = storage.local(key)
    if local is not None:
        return local
    file = work / f"{identity}.zip"
    storage.download(key, file)
    return file


def _metrics(made: Refined) -> dict[str, float]:
    """Scores of the labels and of what they were made of, by split."""
    every = [metric for some in (*made.seeds.values(), *made.refined.values()) for metric in some]
    return {metric.key: metric.value for metric in every} | {"labels/broken": float(len(made.broken))}


class _StoppedError(Exception):
    """The sweep is asked to stop."""


class _Meter:
    """Tells now and then how many images have labels, and asks whether to go on."""

    def __init__(self, reporter: Reporter, should_stop: Callable[[], bool]) -> None:
        self.reporter, self.should_stop = reporter, should_stop
        self.done = 0
        self.made = 0  # by this attempt
        self._left: int | None = None  # by an earlier one
        self._began = self._told = time.monotonic()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._began

    def __call__(self, done: int, total: int) -> None:
        if self._left is None:
            self._left = done
            if done:
                print(f"{done} of {total} images have labels from an earlier attempt", flush=True)
        self.done, self.made = done, done - self._left
        if self.should_stop():
            raise _StoppedError
        if time.monotonic() - self._told > _TELL_S and done < total:
            self._told = time.monotonic()
            rate = self.made / self.seconds
            self.reporter.on_images(done, rate)
