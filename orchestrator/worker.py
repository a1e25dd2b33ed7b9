"""What one Ray Train worker runs: the engine, with callbacks that write the event log and report to Ray.

Rank 0 writes. Events, pictures and checkpoints go to storage through one outbox, in order: a checkpoint is stored
only after every event up to it, so a trial that goes on from a checkpoint has no hole in its log.
"""

from __future__ import annotations

import contextlib
import faulthandler
import io
import json
import os
import platform
import re
import shutil
import socket
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mcc_core.config import Experiment, validate
from mcc_core.data.index import DataIndex, build_index
from mcc_core.engine import Callbacks, Outcome, StepRecord, train
from mcc_core.errors import DataError, MCCError
from mcc_core.evaluation import EvaluationRecord
from orchestrator.assignment import Assignment
from orchestrator.estimate import Speed, speed_profile, speed_record
from orchestrator.events import EventLog, trial_state, write_end
from orchestrator.outbox import Outbox
from orchestrator.storage import Storage, patiently
from orchestrator.trial_files import CheckpointShelf, Saved, checkpoint_key, newest_checkpoint, saved_checkpoints

_DRAIN_S = 300.0  # how long the end of an attempt waits for storage that does not answer
_STOP_POLL_S = 1.0


def train_loop(config: dict[str, Any]) -> None:
    """Run one attempt of a trial on this rank.

    A mistake of the user's and a fault of the training end the trial, without another attempt. Anything else is
    raised, for Ray Train to start another attempt.
    """
    import ray.train

    task = Assignment(**config)
    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    storage = Storage(task.storage)
    state = patiently(lambda: trial_state(storage, task.identity))
    if state.launch == task.launch and state.status in {"failed", "finished", "pruned"}:
        return
    torch.set_num_threads(max(1, round(task.cpus_per_worker)))
    work = task.local_home() / "work" / task.identity / f"rank{rank}"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    outbox = _leftovers_sent(storage, task) if rank == 0 else None
    resume = _chosen(storage, task, work, rank)
    try:
        with _output_in(storage, task.identity, f"{resume.attempt:04d}-rank{rank}.log", work):
            _attempt(task, storage, outbox, resume, work, rank, world)
    finally:
        if outbox is not None:
            outbox.close(timeout=10)
        shutil.rmtree(work, ignore_errors=True)
        with contextlib.suppress(OSError):
            work.parent.rmdir()


@dataclass(frozen=True)
class Resume:
    """Where an attempt begins."""

    attempt: int
    iteration: int  # finished iterations
    file: Path | None
    complaints: list[str]


def _leftovers_sent(storage: Storage, task: Assignment) -> Outbox:
    """The trial's outbox, after what an earlier attempt on this machine left in it was sent."""
    outbox = Outbox(storage, task.local_home() / "outbox" / task.identity)
    if not outbox.drain(_DRAIN_S):
        raise OSError(f"{storage.url}: does not answer: {outbox.error}")
    return outbox


def _chosen(storage: Storage, task: Assignment, work: Path, rank: int) -> Resume:
    """Rank 0 chooses where to go on from; the others follow."""
    from ray.train.collective import broadcast_from_rank_zero

    if rank == 0:
        attempt = patiently(lambda: trial_state(storage, task.identity)).attempt + 1
        one, file, complaints = patiently(lambda: newest_checkpoint(storage, task.identity, work))
        choice = (attempt, one.iteration if one else 0, complaints)
        broadcast_from_rank_zero(choice)
        return Resume(attempt, choice[1], file, complaints)
    attempt, iteration, complaints = broadcast_from_rank_zero(None)
    file = None
    if iteration:
        _, file, _ = patiently(lambda: newest_checkpoint(storage, task.identity, work, only=iteration))
        if file is None:
            raise OSError(f"{storage.where(checkpoint_key(task.identity, iteration))}: not to be seen from rank {rank}")
    return Resume(attempt, iteration, file, complaints)


def _attempt(
    task: Assignment, storage: Storage, outbox: Outbox | None, resume: Resume, work: Path, rank: int, world: int
) -> None:
    reporter: Reporter | None = None
    asked = _StopAsked(storage, task)
    try:
        experiment = validate(Experiment, task.experiment, task.name)
        callbacks: Callbacks
        if outbox is not None:
            callbacks = reporter = Reporter(task, experiment, outbox, resume, saved_checkpoints(storage, task.identity))
        else:
            callbacks = _OtherRank()
        index = _same_data(build_index(experiment.data, task.local_home()), task)
        outcome = train(
            experiment,
            task.seed,
            index,
            device=_device(),
            workdir=work,
            callbacks=callbacks,
            resume=resume.file,
            should_stop=asked if rank == 0 else lambda: False,
            until=task.until,
        )
        if reporter is not None:
            reporter.end(outcome, asked.pruned)
    except MCCError as error:
        _give_up(task, storage, reporter, str(error), world)
    except BaseException:
        traceback.print_exc()
        raise
    finally:
        if reporter is not None:
            reporter.log.close()


def _give_up(task: Assignment, storage: Storage, reporter: Reporter | None, message: str, world: int) -> None:
    """End the trial as failed. Ranks that wait for this one must be ended, so it raises when there are others; the
    next attempt then finds the trial ended and does nothing."""
    print(f"error: {message}", flush=True)
    if reporter is not None:
        reporter.fail(message)
    elif trial_state(storage, task.identity).launch != task.launch:
        write_end(storage, task.identity, "failed", message, launch=task.launch)
    if world > 1:
        raise TrialFailedError(message)


class TrialFailedError(RuntimeError):
    """Ends all ranks of a trial that failed for good."""


class Reporter(Callbacks):
    """Rank 0: events, pictures, checkpoints, and the report to Ray."""

    def __init__(
        self, task: Assignment, experiment: Experiment, outbox: Outbox, resume: Resume, saved: list[Saved]
    ) -> None:
        self.task, self.experiment, self.outbox, self.resume = task, experiment, outbox, resume
        self.log = EventLog(outbox, task.identity, resume.attempt)
        self.shelf = CheckpointShelf(outbox, task.identity, task.mode, saved, resume.iteration)
        self.iteration = resume.iteration
        self.speed = _SpeedMeter(experiment, resume.iteration)
        self.pending: tuple[int, Path] | None = None
        self.started = False

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

    def on_checkpoint(self, iteration: int, file: Path) -> None:
        # Stored after the evaluation's events: a trial that goes on from it does not evaluate this iteration again.
        self.pending = (iteration, file)

    def on_evaluation(self, record: EvaluationRecord) -> None:
        self.speed.evaluation()
        metrics = {metric.key: metric.value for metric in record.metrics}
        self.log.emit("metrics", record.iteration, metrics=metrics)
        for name, picture in record.panels:
            path = f"trials/{self.task.identity}/images/{record.iteration:07d}-{_slug(name)}.png"
            encoded = io.BytesIO()
            picture.save(encoded, "PNG")
            self.outbox.put(path, encoded.getvalue())
            self.log.emit("image", record.iteration, key=f"panel/{name}", path=path)
        key = self.store(metrics.get(self.task.metric))
        _report(metrics | {"iteration": record.iteration}, {"checkpoint": key, "iteration": record.iteration})
        self.speed.restart()

    def store(self, score: float | None) -> str | None:
        """Queue the pending checkpoint after every event so far; its own event comes after it."""
        if self.pending is None:
            return None
        iteration, file = self.pending
        self.pending = None
        self.log.flush()
        key = self.shelf.add(file, iteration, score)
        self.log.emit("checkpoint", iteration, path=key)
        self.log.flush()
        return key

    def end(self, outcome: Outcome, pruned: str | None = None) -> None:
        """The run is over, or stopped by the scheduler for the reason `pruned`; returns when everything is in storage.

        Raises OSError when storage does not answer."""
        self.store(None)
        if outcome.status == "finished" and (speed := self.speed.result()):
            profile = speed_profile(self.experiment, self.task.cpus_per_worker, self.task.gpus_per_worker)
            self.outbox.put(*speed_record(profile, self.task.identity, speed))
        stopped_by_scheduler = outcome.status == "stopped" and pruned is not None
        status, message = ("pruned", pruned or "") if stopped_by_scheduler else (outcome.status, "")
        self._end(status, message, outcome.iteration, outcome.metrics)
        if not self.outbox.drain(_DRAIN_S):
            raise OSError(f"{self.outbox.storage.url}: does not answer: {self.outbox.error}; the rest waits on disk")

    def fail(self, message: str) -> None:
        """The run failed for good, perhaps before it began."""
        if not self.started:
            self.on_start(self.iteration, {})
        self._end("failed", message, self.iteration, {})
        self.outbox.drain(_DRAIN_S)

    def _end(self, status: str, message: str, iteration: int, metrics: dict[str, float]) -> None:
        self.log.emit("end", iteration, status=status, message=message, metrics=metrics, launch=self.task.launch)
        self.log.flush()


class _OtherRank(Callbacks):
    """Ranks above 0 only report to Ray, as often as rank 0 does."""

    def on_evaluation(self, record: EvaluationRecord) -> None:
        _report({"iteration": record.iteration}, None)


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


def _report(metrics: dict[str, Any], pointer: dict[str, Any] | None) -> None:
    """Tell Ray. Its checkpoint is a pointer: the file itself is kept once, by us."""
    import ray.train

    if pointer is None:
        ray.train.report(metrics)
        return
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "pointer.json").write_text(json.dumps(pointer))
        ray.train.report(metrics, checkpoint=ray.train.Checkpoint.from_directory(folder))


def _device() -> torch.device:
    from ray.train.torch import get_device

    device = get_device()
    return device if isinstance(device, torch.device) else device[0]


def _same_data(index: DataIndex, task: Assignment) -> DataIndex:
    if index.fingerprint != task.fingerprint:
        root = task.experiment["data"]["root"] or "the generated data"
        raise DataError(f"data.root: {root}: differs from what was planned; plan the sweep again")
    return index


class _StopAsked:
    """Whether the sweep's stop flag is set, or the trial's own; asks storage at most once a second."""

    def __init__(self, storage: Storage, task: Assignment) -> None:
        self.storage, self.task = storage, task
        self.pruned: str | None = None  # why the scheduler ends the trial
        self._asked, self._answer = 0.0, False

    def __call__(self) -> bool:
        if not self._answer and time.monotonic() - self._asked >= _STOP_POLL_S:
            self._asked = time.monotonic()
            with contextlib.suppress(OSError):
                if self.task.prune_key and self.storage.exists(self.task.prune_key):
                    self.pruned = self.storage.read(self.task.prune_key).decode()
                self._answer = self.pruned is not None or self.storage.exists(self.task.stop_key)
        return self._answer


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


@contextlib.contextmanager
def _output_in(storage: Storage, identity: str, name: str, work: Path) -> Iterator[None]:
    """Everything this process prints, and the traceback of a crash, in the trial's log file in storage."""
    key = f"trials/{identity}/logs/{name}"
    target = storage.local(key)
    file = target or work / name
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a") as stream:
        for number in (1, 2):
            os.dup2(stream.fileno(), number)
        sys.stdout.flush()
        faulthandler.enable(stream)
        try:
            yield
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            faulthandler.disable()
            if target is None:
                with contextlib.suppress(OSError):
                    storage.upload(file, key)
