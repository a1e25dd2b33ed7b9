"""Runs a plan: Ray Tune starts trials, each of them a Ray Train run of its workers.

Ray schedules, restarts and isolates; what counts (events, checkpoints, results) is in storage. So a sweep can be taken
up again from any machine: trials that finished are not run again, others go on from their last checkpoint.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import yaml

from mcc_core.data.label_source import local_zip
from mcc_core.errors import UsageError
from orchestrator.cluster.session import Capacity, cluster
from orchestrator.environment import environment_record
from orchestrator.execution.choose_queue import queue_of
from orchestrator.execution.queue import population_key
from orchestrator.execution.supervisor import Control, prune_key, stop_key
from orchestrator.execution.tuner import TuneRun
from orchestrator.planning.configurations import Trial
from orchestrator.planning.places import Places, largest, places
from orchestrator.planning.plan import Plan, is_done, plan_document, trial_document
from orchestrator.records import layout
from orchestrator.records.budget import Meter
from orchestrator.records.events import segments, trial_state, trial_states, write_end
from orchestrator.records.label_sets import store_labels
from orchestrator.records.leases import Lease, claimed, held, refuse_deleted
from orchestrator.records.results import Result
from orchestrator.records.status import TrialStatus
from orchestrator.settings import Settings
from orchestrator.storage.store import Storage, retry
from orchestrator.worker.assignment import Assignment

_TICK_S = 0.25
_WATCH_S = 5.0  # between looks at the running trials' events
_STOP_GRACE_S = 120.0  # from asking stalled trials to stop until they are abandoned


def run(
    plan: Plan,
    settings: Settings,
    *,
    force: bool = False,
    only: Collection[str] | None = None,
    on_tick: Callable[[], None] = lambda: None,
    on_trial: Callable[[Trial], None] = lambda trial: None,
    command: Sequence[str] | None = None,
) -> list[Result]:
    """Run what is left of a plan and return every trial's result, in the plan's order.

    Ctrl-C once: running trials write a checkpoint and stop. Twice: KeyboardInterrupt, at once.

    Args:
        force: run finished trials again, from the beginning.
        only: identities of the trials to run; default: all that are left.
        on_tick: called several times a second from the calling thread.
        on_trial: called from the calling thread for each trial that a search proposes beyond the plan.
        command: the command line to put on record.

    Raises UsageError when storage cannot be written, the cluster does not answer or is too small, or another process
    is running or deleting one of the trials.
    """
    storage = Storage(settings.storage)
    storage.check()
    book = _Book(plan, storage, settings.home, list(command or sys.argv), force=force)
    with book.on_record():
        refuse_deleted(storage, (t.identity for t in plan.trials))
        return _run(plan, settings, storage, book, only, on_tick, on_trial)


def _run(
    plan: Plan,
    settings: Settings,
    storage: Storage,
    book: _Book,
    only: Collection[str] | None,
    on_tick: Callable[[], None],
    on_trial: Callable[[Trial], None],
) -> list[Result]:
    launch = f"{time.strftime('%Y%m%d-%H%M%S')}-{socket.gethostname()[:20]}-{os.getpid()}"
    states = trial_states(storage, (t.identity for t in plan.trials))
    todo = [t for t in plan.trials if book.force or not is_done(states[t.identity], plan.file)]
    todo = [t for t in todo if only is None or t.identity in only]
    trials = list(plan.trials)
    meter = Meter(storage, plan.sweep, plan.file.budget)
    if (todo or (plan.open and plan.open.left)) and not meter.reached():
        with held(Lease(storage, launch, plan.sweep, [t.identity for t in todo])) as lease:
            book.begin(todo)

            def grown(trial: Trial) -> None:
                trials.append(trial)
                book.add(trial)
                lease.add(trial.identity)
                on_trial(trial)

            with cluster(settings) as capacity:
                begun = _run_trials(plan, todo, settings, storage, launch, capacity, lease, meter, on_tick, grown)
                _close(begun, storage, launch)
    on_tick()
    return [_result(trial, storage) for trial in trials]


class _Book:
    """Writes down what is going to run, before it runs."""

    def __init__(self, plan: Plan, storage: Storage, home: Path, command: list[str], *, force: bool) -> None:
        self.plan, self.storage, self.home, self.force = plan, storage, home, force
        self.environment = environment_record(command)
        commit = self.environment["git"]["commit"] if self.environment["git"] else None
        self.document = plan_document(plan, command, commit)

    @contextlib.contextmanager
    def on_record(self) -> Iterator[None]:
        """The plan is stored from the beginning, so that nobody removes its trials as unused; one that was not there
        before and is refused leaves nothing."""
        key = layout.plan(self.plan.sweep)
        fresh = not self.storage.exists(key)
        if fresh:
            self._save()
        try:
            yield
        except UsageError:
            if fresh and self.plan.sweep not in claimed(self.storage)[1]:
                self.storage.delete(key)
            raise

    def begin(self, todo: Sequence[Trial]) -> None:
        """The plan and the trials that are known; flags of an earlier launch are taken away."""
        self._save()
        self.storage.delete(stop_key(self.plan.sweep))
        self.storage.delete_folder(layout.prunes(self.plan.sweep))
        if self.force:
            self.storage.delete(population_key(self.plan.sweep))
        for trial in todo:
            self._trial(trial)

    def add(self, trial: Trial) -> None:
        """A trial that a search proposed."""
        self.document["trials"].append(trial_document(trial))
        retry(self._save)
        retry(lambda: self._trial(trial))

    def _save(self) -> None:
        self.storage.write(layout.plan(self.plan.sweep), json.dumps(self.document, indent=1).encode())

    def _trial(self, trial: Trial) -> None:
        folder = layout.trial(trial.identity)
        store_labels(self.storage, trial.experiment, self.home)
        text = yaml.safe_dump(trial.experiment.model_dump(mode="json"), sort_keys=False)
        self.storage.write(f"{folder}/experiment.yaml", text.encode())
        self.storage.write(f"{folder}/environment.json", json.dumps(self.environment, indent=1).encode())
        if self.force:
            self.storage.delete_folder(f"{folder}/checkpoints")
            self.storage.delete_folder(layout.labels(trial.identity))
            local_zip(trial.identity, self.home).unlink(missing_ok=True)


def _run_trials(
    plan: Plan,
    todo: Sequence[Trial],
    settings: Settings,
    storage: Storage,
    launch: str,
    capacity: Capacity,
    lease: Lease,
    meter: Meter,
    on_tick: Callable[[], None],
    on_trial: Callable[[Trial], None],
) -> set[str]:
    """Returns the identities of the trials that were begun."""
    room = places(plan.file, plan.source, plan.trials, capacity)

    def assign(trial: Trial, **changes: Any) -> Assignment:
        return replace(_assignment(plan, trial, settings, launch, room), **changes)

    tune_run = TuneRun(
        queue_of(plan, todo, storage, assign, meter),
        concurrent=room.at_a_time,
        max_failures=plan.file.resources.max_failures,
        name=launch,
        storage_path=storage.where(f"ray/{plan.sweep}"),
        keep=largest(plan.file, plan.trials, "workers") == 1,
    )
    watch = _Watch(storage, settings.stall_minutes)

    def ask_to_stop() -> None:
        tune_run.stopping = True
        retry(lambda: storage.write(stop_key(plan.sweep), b"stop\n"), 30)

    control = Control(plan, storage, meter, tune_run, ask_to_stop, on_trial)
    with _signals(ask_to_stop), _running(tune_run, ask_to_stop, lease):
        while tune_run.alive():
            on_tick()
            lease.refresh()
            control.tick()
            if stalled := watch.stalled(tune_run.running()):
                if not watch.asked:
                    watch.asked = time.monotonic()
                    ask_to_stop()
                elif time.monotonic() - watch.asked > min(_STOP_GRACE_S, 60 * settings.stall_minutes):
                    _abandon(stalled, storage, launch, settings.stall_minutes)
                    return tune_run.begun
            tune_run.wait(_TICK_S)
    control.finish()
    with contextlib.suppress(OSError):
        storage.delete_folder(f"ray/{plan.sweep}")  # Ray's own books: what to go on from is in the trials' folders
    if tune_run.error is not None:
        raise tune_run.error
    return tune_run.begun


def _assignment(plan: Plan, trial: Trial, settings: Settings, launch: str, room: Places) -> Assignment:
    return Assignment(
        identity=trial.identity,
        name=trial.name,
        experiment=trial.experiment.model_dump(mode="json"),
        seed=trial.seed,
        fingerprint=trial.fingerprint,
        metric=plan.scored_by.get(trial.stage, plan.file.metric),
        mode=plan.file.mode,
        storage=settings.storage,
        home=None if settings.ray_address else str(settings.home),
        stop_key=stop_key(plan.sweep),
        prune_key=prune_key(plan.sweep, trial.identity),
        launch=launch,
        cpus_per_worker=room.cpus,
        gpus_per_worker=room.gpus,
        threads=plan.file.resources.threads,
        input=trial.input,
        refine=trial.refine,
        network=trial.network,
        files=trial.files,
    )


class _Watch:
    """Notices that nothing happens any more: no new event of a running trial, for some minutes."""

    def __init__(self, storage: Storage, minutes: float) -> None:
        self.storage, self.limit_s = storage, 60 * minutes
        self.asked: float | None = None  # when the stalled trials were asked to stop
        self._seen: dict[str, tuple[str, float]] = {}
        self._looked = 0.0
        self._stalled: list[str] = []

    def stalled(self, running: Sequence[str]) -> list[str]:
        """Running trials without an event for too long, when no trial has had one; else none."""
        now = time.monotonic()
        if now - self._looked < min(_WATCH_S, self.limit_s / 4):
            return self._stalled if self.asked else []
        self._looked = now
        for identity in running:
            try:
                last = (segments(self.storage, identity) or [""])[-1]
            except OSError:  # storage is away: nothing can be told
                self._seen.clear()
                return []
            if self._seen.get(identity, ("none", 0.0))[0] != last:
                self._seen[identity] = (last, now)
        quiet = [i for i in running if now - self._seen[i][1] > self.limit_s]
        self._stalled = quiet if len(quiet) == len(running) else []
        return self._stalled


def _abandon(stalled: Sequence[str], storage: Storage, launch: str, minutes: float) -> None:
    for identity in stalled:
        if (log := _last_log(storage, identity)) is not None:
            log = f"; its output: {log}"
        message = f"nothing happened for {minutes:g} minutes, so it was ended (MCC_STALL_MINUTES){log or ''}"
        write_end(storage, identity, TrialStatus.FAILED, message, launch=launch)


def _close(begun: Iterable[str], storage: Storage, launch: str) -> None:
    """Give an end to trials that were begun in this launch and whose processes are gone without one."""
    for identity in begun:
        state = retry(partial(trial_state, storage, identity))
        if state.status == TrialStatus.RUNNING or not state.launch.startswith(launch):
            log = _last_log(storage, identity)
            message = "its process ended and left no message" + (f"; its output: {log}" if log else "")
            write_end(storage, identity, TrialStatus.FAILED, message, launch=launch)


def _result(trial: Trial, storage: Storage) -> Result:
    state = trial_state(storage, trial.identity)
    # This process runs nothing any more: what has no end was cut off in an earlier run and not begun again.
    status = TrialStatus.INTERRUPTED if state.status == TrialStatus.RUNNING else state.status
    return Result(
        trial.identity,
        trial.name,
        trial.point,
        trial.varied,
        trial.seed,
        status,
        state.metrics or {},
        state.message,
        _last_log(storage, trial.identity),
        state.cause,
    )


def _last_log(storage: Storage, identity: str) -> str | None:
    logs = storage.list(layout.logs(identity))
    return str(storage.local(logs[-1]) or storage.where(logs[-1])) if logs else None


@contextlib.contextmanager
def _running(tune_run: TuneRun, ask_to_stop: Callable[[], None], lease: Lease) -> Iterator[None]:
    """After a fault of this process its trials write a checkpoint and end, before Ray does: a Tune that goes on without
    Ray ends the whole process."""
    tune_run.start()
    try:
        yield
    except Exception:
        deadline = time.monotonic() + _STOP_GRACE_S
        with contextlib.suppress(OSError):
            ask_to_stop()
            while tune_run.alive() and time.monotonic() < deadline:
                lease.refresh()
                tune_run.wait(_TICK_S)
        raise


@contextlib.contextmanager
def _signals(ask_to_stop: Callable[[], None]) -> Iterator[None]:
    """Ctrl-C or a termination asks once, then interrupts. Only the main thread can hear signals."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    heard = 0

    def handler(number: int, frame: FrameType | None) -> Any:
        nonlocal heard
        heard += 1
        if heard > 1:
            raise KeyboardInterrupt
        threading.Thread(target=ask_to_stop, daemon=True).start()

    before = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)
