"""What a worker reports while it trains: rank 0 writes events, pictures and checkpoints; every rank tells Ray."""

from __future__ import annotations

import io
import os
import platform
import re
import socket
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from mcc_core.config import Experiment
from mcc_core.evaluation.in_training import EvaluationRecord
from mcc_core.training.compile_cost import CompileCost
from mcc_core.training.engine import Callbacks, Outcome, StepRecord
from orchestrator.records import layout
from orchestrator.records.checkpoints import CheckpointRecord, CheckpointStore
from orchestrator.records.events import EventLog
from orchestrator.records.speeds import Speed, speed_profile, speed_record
from orchestrator.records.status import TrialStatus
from orchestrator.storage.outbox import Outbox
from orchestrator.storage.store import PATIENCE_S, is_full
from orchestrator.worker.assignment import Assignment
from orchestrator.worker.machine import MachineWatch

DRAIN_S = 300.0  # how long the end of an attempt waits for storage that does not answer


@dataclass(frozen=True)
class Resume:
    """Where an attempt begins."""

    attempt: int
    iteration: int  # finished iterations
    file: Path | None
    complaints: list[str]


class Reporter(Callbacks):
    """Rank 0: events, pictures, checkpoints, and the report to Ray."""

    def __init__(
        self,
        task: Assignment,
        experiment: Experiment,
        outbox: Outbox,
        resume: Resume,
        saved: list[CheckpointRecord],
        *,
        to_ray: bool = True,
    ) -> None:
        self.to_ray = to_ray  # whether this is a worker of Ray Train's
        self.task, self.experiment, self.outbox, self.resume = task, experiment, outbox, resume
        self.log = EventLog(outbox, task.identity, resume.attempt)
        self.checkpoints = CheckpointStore(outbox, task.identity, task.mode, saved, resume.iteration, resume.attempt)
        self.iteration = resume.iteration
        self.speed = _SpeedMeter(experiment, resume.iteration)
        self.scores: dict[int, float | None] = {}  # of evaluations whose checkpoints are not written yet
        self.started = False
        self.full_since: float | None = None
        self.pictures: list[int] = []  # bytes of each
        self.machine = MachineWatch()

    def on_start(self, iteration: int, info: dict[str, Any]) -> None:
        self.started = True
        self.log.emit("start", self.resume.iteration, attempt=self.resume.attempt, info=_machine(self.resume) | info)
        if self.task.clone and self.task.clone["iteration"] == self.resume.iteration:
            self.log.emit(
                "clone", self.resume.iteration, **{k: v for k, v in self.task.clone.items() if k != "iteration"}
            )
        if self.task.fields:
            self.log.emit("metrics", self.resume.iteration + 1, metrics=self.task.fields)
        self.log.flush()

    def on_step(self, record: StepRecord) -> None:
        self.iteration = record.iteration
        self.speed.step(record)
        self.log.emit("metrics", record.iteration, metrics=record.metrics)
        self._tell_machine()

    def on_compile(self, iteration: int, cost: CompileCost) -> None:
        print(f"iteration {iteration}: {cost}", flush=True)  # into the trial's log
        self.speed.leave_out(cost.seconds)
        self.log.emit("metrics", iteration, metrics=cost.whole)

    def on_images(self, done: int, rate: float) -> None:
        """So many images have labels, by `rate` images a second."""
        self.iteration = done
        self.log.emit("metrics", done, metrics={"images_per_second": rate})
        self._tell_machine()

    def _tell_machine(self, *, last: bool = False) -> None:
        if metrics := self.machine.measured(last=last):
            self.log.emit("machine", self.iteration, metrics=metrics)

    def on_checkpoint(self, iteration: int, file: Path, sha256: str) -> None:
        # Stored after the evaluation's events: a trial that goes on from it does not evaluate this iteration again.
        self.full_since = None
        self.log.flush()
        key = self.checkpoints.add(file, iteration, self.scores.pop(iteration, None), sha256)
        self.log.emit("checkpoint", iteration, path=key)
        self.log.flush()

    def on_write_error(self, error: OSError) -> None:
        """Somebody may make room on a full disk; until then the training waits."""
        if self.full_since is None:
            print(f"waiting for space: {error}", flush=True)
            self.full_since = time.monotonic()
        if not is_full(error) or time.monotonic() - self.full_since > PATIENCE_S:
            raise error
        time.sleep(1)

    def on_evaluation(self, record: EvaluationRecord) -> None:
        self.speed.evaluation()
        metrics = {metric.key: metric.value for metric in record.metrics}
        self.log.emit("metrics", record.iteration, metrics=metrics, precision=record.precision)
        for name, picture in record.panels:
            path = f"{layout.images(self.task.identity)}/{record.iteration:07d}-{_slug(name)}.png"
            encoded = io.BytesIO()
            picture.save(encoded, "PNG")
            self.outbox.put(path, encoded.getvalue())
            self.pictures.append(len(encoded.getvalue()))
            self.log.emit("image", record.iteration, key=f"panel/{name}", path=path)
        self.scores[record.iteration] = metrics.get(self.task.metric)
        if self.to_ray:
            _report(metrics | {"iteration": record.iteration})
        self.speed.restart()

    def end(self, outcome: Outcome, pruned: str | None = None) -> None:
        """The run is over, or stopped by the scheduler for the reason `pruned`; returns when everything is in storage.

        Raises OSError when storage does not answer."""
        if outcome.status == "finished" and (speed := self.speed.result()):
            profile = speed_profile(self.experiment, self.task.threads, self.task.gpus_per_worker)
            size = self.checkpoints.saved[-1].size if self.checkpoints.saved else None
            drawn = sum(self.pictures) / len(self.pictures) if self.pictures else None
            measured = replace(speed, checkpoint_bytes=size, picture_bytes=drawn)
            self.outbox.put(*speed_record(profile, self.task.identity, measured))
        stopped_by_scheduler = outcome.status == "stopped" and pruned is not None
        status, message = (TrialStatus.PRUNED, pruned or "") if stopped_by_scheduler else (outcome.status, "")
        self._end(status, message, outcome.iteration, outcome.metrics)
        if not self.outbox.drain(DRAIN_S):
            raise OSError(f"{self.outbox.storage.url}: does not answer: {self.outbox.error}; the rest waits on disk")

    def fail(self, message: str, cause: str) -> None:
        """The run failed for good, perhaps before it began."""
        if not self.started:
            self.on_start(self.iteration, {})
        self._end(TrialStatus.FAILED, message, self.iteration, {}, cause)
        self.outbox.drain(DRAIN_S)

    def _end(self, status: str, message: str, iteration: int, metrics: dict[str, float], cause: str = "") -> None:
        self._tell_machine(last=True)
        fields = {"status": status, "message": message, "metrics": metrics, "launch": self.task.launch, "cause": cause}
        self.log.emit("end", iteration, **fields)
        self.log.flush()


class OtherRank(Callbacks):
    """Ranks above 0 only report to Ray, as often as rank 0 does."""

    def on_evaluation(self, record: EvaluationRecord) -> None:
        _report({"iteration": record.iteration})


class _SpeedMeter:
    """Seconds per iteration and per evaluation, for later estimates."""

    def __init__(self, experiment: Experiment, iteration: int) -> None:
        self._images = experiment.train.global_batch
        self._last = iteration
        self._iterations, self._train_s = 0, 0.0
        self._evaluations: list[float] = []
        self.restart()

    def restart(self) -> None:
        self._began = time.perf_counter()

    def leave_out(self, seconds: float) -> None:
        """So many seconds went into compiling."""
        self._began += seconds

    def step(self, record: StepRecord) -> None:
        steps = record.iteration - self._last
        self._last = record.iteration
        if (rate := record.metrics.get("images_per_second")) and steps > 0:
            self._iterations += steps
            self._train_s += steps * self._images / rate
        self.restart()

    def evaluation(self) -> None:
        self._evaluations.append(time.perf_counter() - self._began)

    def result(self) -> Speed | None:
        if not self._iterations:
            return None
        mean = sum(self._evaluations) / len(self._evaluations) if self._evaluations else None
        return Speed(self._train_s / self._iterations, mean)


def _report(metrics: dict[str, Any]) -> None:
    """Tell Ray, without a checkpoint: those are ours to keep, and Ray would fail where storage is away for a while."""
    import ray.train

    ray.train.report(metrics)


def _machine(resume: Resume) -> dict[str, Any]:
    info: dict[str, Any] = {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
    if torch.cuda.is_available():
        info["gpu"] = torch.cuda.get_device_name()
    return info | ({"skipped_checkpoints": resume.complaints} if resume.complaints else {})


def _slug(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "_", name)[:80]
