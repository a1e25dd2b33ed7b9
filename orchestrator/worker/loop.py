"""What one Ray Train worker runs: the engine, with callbacks that write the event log and report to Ray.

Rank 0 writes. Events, pictures and checkpoints go to storage through one outbox, in order: a checkpoint is stored
only after every event up to it, so a trial that goes on from a checkpoint has no hole in its log. Storage that is away
delays what is sent; a full disk makes the training wait.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import platform
import shutil
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from mcc_core.config import Experiment
from mcc_core.data.index import DataIndex, build_index
from mcc_core.data.label_source import with_labels
from mcc_core.errors import DataError, MCCError, UsageError
from mcc_core.files import file_digest
from mcc_core.methods.registry import experiment_of, files_of, method_of
from mcc_core.training.engine import Callbacks, train
from orchestrator.records import layout, local_places
from orchestrator.records.checkpoints import newest_checkpoint, saved_checkpoints
from orchestrator.records.events import claim_attempt, newest_attempt, trial_state, write_end
from orchestrator.records.label_sets import fetch_labels
from orchestrator.records.status import TrialStatus
from orchestrator.storage.outbox import Outbox, alone, send_leftovers
from orchestrator.storage.store import Storage, retry
from orchestrator.text import reason
from orchestrator.worker.assignment import Assignment
from orchestrator.worker.reporter import DRAIN_S, OtherRank, Reporter, Resume

_STOP_POLL_S = 0.5
_LOG_S = 5.0


def train_loop(config: dict[str, Any], *, by_itself: bool = False) -> None:
    """Run one attempt of a trial on this rank.

    A mistake of the user's and a fault of the training end the trial, without another attempt. Anything else is
    raised, for another attempt.

    Args:
        by_itself: this is the trial's only process, and no worker of Ray Train's.
    """
    task = Assignment(**config)
    rank, world = (0, 1) if by_itself else _ranks()
    storage = Storage(task.storage)
    state = retry(lambda: trial_state(storage, task.identity))
    if state.launch == task.launch and state.status in {TrialStatus.FAILED, TrialStatus.FINISHED, TrialStatus.PRUNED}:
        return
    torch.set_num_threads(max(1, round(task.threads)))
    home = task.local_home()
    work = home / local_places.WORK / task.identity / f"rank{rank}"
    sending = local_places.outbox(home, task.identity, storage)
    outbox: Outbox | None = None
    # A worker whose driver was killed may live for some seconds beside its successor.
    with alone(home / "locks" / f"{task.identity}-rank{rank}"):
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        try:
            resume = _chosen(storage, task, work, rank, world)
            if rank == 0:
                outbox = Outbox(storage, sending / f"{resume.attempt:04d}", _newest(storage, task, resume))
            with _output_in(storage, task.identity, f"{resume.attempt:04d}-rank{rank}.log", work):
                _attempt(task, storage, outbox, resume, work, rank, world, by_itself=by_itself)
        finally:
            if outbox is not None:
                outbox.close(timeout=10)
            shutil.rmtree(work, ignore_errors=True)
            for folder in (sending, work.parent):  # stays when something is left in it
                with contextlib.suppress(OSError):
                    folder.rmdir()


def _ranks() -> tuple[int, int]:
    import ray.train

    context = ray.train.get_context()
    return context.get_world_rank(), context.get_world_size()


def _newest(storage: Storage, task: Assignment, resume: Resume) -> Callable[[], bool]:
    """Whether an attempt is still the trial's newest. One that was given up for dead and comes back is not: another
    went on from what it had stored, and what it measured since is no part of the trial."""
    return lambda: newest_attempt(storage, task.identity) <= resume.attempt


def _chosen(storage: Storage, task: Assignment, work: Path, rank: int, world: int) -> Resume:
    """Rank 0 chooses where to go on from, after what an earlier attempt left here was sent; the others follow."""
    from ray.train.collective import broadcast_from_rank_zero

    if rank == 0:
        newest = retry(lambda: newest_attempt(storage, task.identity))
        home = task.local_home()
        # The second is where versions before kept it, for whichever storage.
        for left in (local_places.outbox(home, task.identity, storage), home / local_places.OUTBOX / task.identity):
            send_leftovers(storage, left, newest, DRAIN_S)
        attempt = retry(lambda: claim_attempt(storage, task.identity))
        record, file, complaints = retry(lambda: newest_checkpoint(storage, task.identity, work))
        choice = (attempt, record.iteration if record else 0, complaints)
        if world > 1:
            broadcast_from_rank_zero(choice)
        return Resume(attempt, choice[1], file, complaints)
    attempt, iteration, complaints = broadcast_from_rank_zero(None)
    file = None
    if iteration:
        _, file, _ = retry(lambda: newest_checkpoint(storage, task.identity, work, only=iteration))
        if file is None:
            where = storage.where(layout.checkpoints(task.identity))
            raise OSError(f"{where}: that of iteration {iteration} cannot be seen from rank {rank}")
    return Resume(attempt, iteration, file, complaints)


def _attempt(
    task: Assignment,
    storage: Storage,
    outbox: Outbox | None,
    resume: Resume,
    work: Path,
    rank: int,
    world: int,
    *,
    by_itself: bool,
) -> None:
    reporter: Reporter | None = None
    stop = _StopFlag(storage, task)
    try:
        experiment = experiment_of(task.experiment, task.name)
        callbacks: Callbacks
        if outbox is not None:
            saved = saved_checkpoints(storage, task.identity)
            callbacks = reporter = Reporter(task, experiment, outbox, resume, saved, to_ray=not by_itself)
        else:
            callbacks = OtherRank()
        _require_same_files(experiment, task)
        index = _with_labels(_same_data(build_index(experiment.data, task.local_home()), task), experiment, task)
        device = _own_device(task) if by_itself else _device()

        def should_stop() -> bool:
            return outbox is not None and (outbox.superseded or stop.asked())

        if task.refine is not None:
            from orchestrator.worker.label_stage import make_labels

            assert reporter is not None
            outcome = make_labels(task, storage, index, reporter, work, device, should_stop)
        else:
            outcome = train(
                experiment,
                task.seed,
                index,
                device=device,
                workdir=work,
                callbacks=callbacks,
                resume=resume.file,
                should_stop=should_stop,
                until=task.until,
            )
        if reporter is not None:
            reporter.end(outcome, stop.pruned)
            if reporter.outbox.superseded:
                print("another attempt went on with this trial: this one is over", flush=True)
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
        write_end(storage, task.identity, TrialStatus.FAILED, message, launch=task.launch, cause=cause)
    if world > 1:
        raise TrialFailedError(message)


class TrialFailedError(RuntimeError):
    """Ends all ranks of a trial that failed for good."""


def _own_device(task: Assignment) -> torch.device:
    return torch.device("cuda" if task.gpus_per_worker else "cpu")


def _device() -> torch.device:
    from ray.train.torch import get_device

    device = get_device()
    return device if isinstance(device, torch.device) else device[0]


def _same_data(index: DataIndex, task: Assignment) -> DataIndex:
    if index.fingerprint != task.fingerprint:
        root = task.experiment["data"]["root"] or "the generated data"
        raise DataError(f"data.root: {root}: differs from what was planned; plan the sweep again")
    return index


def _require_same_files(experiment: Experiment, task: Assignment) -> None:
    """Raise UsageError for a file that this machine lacks, or that is not what it was when the sweep was planned."""
    files = files_of(experiment) if task.files else {}
    for field, digest in task.files.items():
        try:
            same = file_digest(files[field]) == digest
        except OSError as error:
            raise UsageError(f"{field}: {files[field]}: cannot be read on {platform.node()}: {reason(error)}") from None
        if not same:
            raise UsageError(
                f"{field}: {files[field]}: is another file on {platform.node()} than where the sweep was planned; "
                "put the same file there, or plan the sweep again"
            )


def _with_labels(index: DataIndex, experiment: Experiment, task: Assignment) -> DataIndex:
    """The data with the label set that the trial learns from, where it learns from one, fetched from storage."""
    retry(lambda: fetch_labels(Storage(task.storage), experiment, task.local_home()))
    return with_labels(index, method_of(experiment).labels(experiment), task.local_home())


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


@contextlib.contextmanager
def _output_in(storage: Storage, identity: str, name: str, work: Path) -> Iterator[None]:
    """Everything this process prints, and the traceback of a crash, in the trial's log file in storage; in a bucket it
    is brought up to date every few seconds."""
    key = f"{layout.logs(identity)}/{name}"
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
    before = {number: os.dup(number) for number in (1, 2)}
    with file.open("a") as stream:
        for number in before:
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
            for number, own in before.items():  # the process may go on with another trial
                os.dup2(own, number)
                os.close(own)
            over.set()
            if target is None:
                sender.join()
