"""What one Ray Train worker runs: the engine, with callbacks that write the event log and report to Ray.

Rank 0 writes. Events, pictures and checkpoints go to storage through one outbox, in order: a checkpoint is stored
only after every event up to it, so a trial that goes on from a checkpoint has no hole in its log. Storage that is away
delays what is sent; a full disk makes the training wait.
"""

from __future__ import annotations

import contextlib
import faulthandler
import io
import os
import platform
import re
import shutil
import socket
import sys
import threading
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
from orchestrator.events import EventLog, claim_attempt, newest_attempt, trial_state, write_end
from orchestrator.outbox import Outbox, alone, send_leftovers
from orchestrator.storage import PATIENCE_S, Storage, is_full, patiently
from orchestrator.trial_files import CheckpointShelf, Saved, checkpoint_key, newest_checkpoint, saved_checkpoints

_DRAIN_S = 300.0  # how long the end of an attempt waits for storage that does not answer
_STOP_POLL_S = 0.5
_LOG_S = 5.0


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
    home = task.local_home()
    work = home / "work" / task.identity / f"rank{rank}"
    outbox: Outbox | None = None
    # A worker whose driver was killed may live for some seconds beside its successor.
    with alone(home / "locks" / f"{task.identity}-rank{rank}"):
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        try:
            resume = _chosen(storage, task, work, rank)
            if rank == 0:
                outbox = Outbox(storage, _outbox_folder(task) / f"{resume.attempt:04d}")
            with _output_in(storage, task.identity, f"{resume.attempt:04d}-rank{rank}.log", work):
                _attempt(task, storage, outbox, resume, work, rank, world)
        finally:
            if outbox is not None:
                outbox.close(timeout=10)
            shutil.rmtree(work, ignore_errors=True)
            for folder in (_outbox_folder(task), work.parent):  # stays when something is left in it
                with contextlib.suppress(OSError):
                    folder.rmdir()


@dataclass(frozen=True)
class Resume:
    """Where an attempt begins."""

    attempt: int
    iteration: int  # finished iterations
    file: Path | None
    complaints: list[str]


def _outbox_folder(task: Assignment) -> Path:
    return task.local_home() / "outbox" / task.identity


def _chosen(storage: Storage, task: Assignment, work: Path, rank: int) -> Resume:
    """Rank 0 chooses where to go on from, after what an earlier attempt left here was sent; the others follow."""
    from ray.train.collective import broadcast_from_rank_zero

    if rank == 0:
        newest = patiently(lambda: newest_attempt(storage, task.identity))
        send_leftovers(storage, _outbox_folder(task), newest, _DRAIN_S)
        attempt = patiently(lambda: claim_attempt(storage, task.identity))
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
    stop = _StopFlag(storage, task)
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
            should_stop=stop.asked if rank == 0 else lambda: False,
            until=task.until,
        )
        if reporter is not None:
            reporter.end(outcome, stop.pruned)
    except MCCError as error:
        _give_up(task, storage, reporter, str(error), getattr(error, "cause", ""), world)
    except BaseException:
        traceback.print_exc()
        raise
    finally:
        stop.close()
        if reporter is not None:
            reporter.log.close()


def _give_up(
    task: Assignment, storage: Storage, reporter: Reporter | None, message: str, cause: str, world: int
) -> None:
    """End the trial as failed. Ranks that wait for this one must be ended, so it raises when there are others; the
    next attempt then finds the trial ended and does nothing."""
    print(f"error: {message}", flush=True)
    if reporter is not None:
        reporter.fail(message, cause)
    elif trial_state(storage, task.identity).launch != task.launch:
        write_end(storage, task.identity, "failed", message, launch=task.launch, cause=cause)
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
        self.full_since: float | None = None

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
        self.pending, self.full_since = (iteration, file), None

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
        self.log.emit("metrics", record.iteration, metrics=metrics)
        for name, picture in record.panels:
            path = f"trials/{self.task.identity}/images/{record.iteration:07d}-{_slug(name)}.png"
            encoded = io.BytesIO()
            picture.save(encoded, "PNG")
            self.outbox.put(path, encoded.getvalue())
            self.log.emit("image", record.iteration, key=f"panel/{name}", path=path)
        self.store(metrics.get(self.task.metric))
        _report(metrics | {"iteration": record.iteration})
        self.speed.restart()

    def store(self, score: float | None) -> None:
        """Queue the pending checkpoint after every event so far; its own event comes after it."""
        if self.pending is None:
            return
        iteration, file = self.pending
        self.pending = None
        self.log.flush()
        key = self.shelf.add(file, iteration, score)
        self.log.emit("checkpoint", iteration, path=key)
        self.log.flush()

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

    def fail(self, message: str, cause: str) -> None:
        """The run failed for good, perhaps before it began."""
        if not self.started:
            self.on_start(self.iteration, {})
        self._end("failed", message, self.iteration, {}, cause)
        self.outbox.drain(_DRAIN_S)

    def _end(self, status: str, message: str, iteration: int, metrics: dict[str, float], cause: str = "") -> None:
        fields = {"status": status, "message": message, "metrics": metrics, "launch": self.task.launch, "cause": cause}
        self.log.emit("end", iteration, **fields)
        self.log.flush()


class _OtherRank(Callbacks):
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


def _device() -> torch.device:
    from ray.train.torch import get_device

    device = get_device()
    return device if isinstance(device, torch.device) else device[0]


def _same_data(index: DataIndex, task: Assignment) -> DataIndex:
    if index.fingerprint != task.fingerprint:
        root = task.experiment["data"]["root"] or "the generated data"
        raise DataError(f"data.root: {root}: differs from what was planned; plan the sweep again")
    return index


class _StopFlag:
    """Looks for the sweep's stop flag, or the trial's own, in a thread, so that training never waits for the answer."""

    def __init__(self, storage: Storage, task: Assignment) -> None:
        self._storage, self._task = storage, task
        self.pruned: str | None = None  # why the scheduler ends the trial
        self._asked, self._closed = False, threading.Event()
        threading.Thread(target=self._look, name="stop flag", daemon=True).start()

    def asked(self) -> bool:
        return self._asked

    def close(self) -> None:
        self._closed.set()

    def _look(self) -> None:
        storage, task = self._storage, self._task
        while not self._asked and not self._closed.wait(_STOP_POLL_S):
            with contextlib.suppress(OSError):
                if task.prune_key and storage.exists(task.prune_key):
                    self.pruned = storage.read(task.prune_key).decode()
                self._asked = self.pruned is not None or storage.exists(task.stop_key)


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
    """Everything this process prints, and the traceback of a crash, in the trial's log file in storage; in a bucket it
    is brought up to date every few seconds."""
    key = f"trials/{identity}/logs/{name}"
    target = storage.local(key)
    file = target or work / name
    file.parent.mkdir(parents=True, exist_ok=True)
    over = threading.Event()

    def bring_up_to_date() -> None:
        sent, last = 0, False
        while not last:
            last = over.wait(_LOG_S)
            if (size := file.stat().st_size) > sent:
                with contextlib.suppress(OSError):
                    storage.upload(file, key)
                    sent = size

    sender = threading.Thread(target=bring_up_to_date, name="log", daemon=True)
    with file.open("a") as stream:
        for number in (1, 2):
            os.dup2(stream.fileno(), number)
        sys.stdout.flush()
        faulthandler.enable(stream)
        if target is None:
            sender.start()
        try:
            yield
        finally:
            with contextlib.suppress(OSError):  # no space
                sys.stdout.flush()
                sys.stderr.flush()
            faulthandler.disable()
            over.set()
            if target is None:
                sender.join()
