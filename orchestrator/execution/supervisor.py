"""What the runner does every second while trials run: budget, flags, pruning, trials that a search proposed."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable

from orchestrator.execution.tuner import TuneRun
from orchestrator.planning.configurations import Trial
from orchestrator.planning.plan import Plan
from orchestrator.records import layout
from orchestrator.records.budget import Meter
from orchestrator.records.events import trial_state
from orchestrator.records.status import DONE, TrialStatus
from orchestrator.search.pruning import Pruner
from orchestrator.spec.schedulers import Asha, Median
from orchestrator.storage.store import Storage, retry

_POLL_S = 1.0
_SAVE_S = 30.0


def stop_key(sweep: str) -> str:
    """Key of the flag that asks a sweep's trials to stop; whoever writes it stops the sweep."""
    return layout.stop(sweep)


def prune_key(sweep: str, identity: str) -> str:
    """Key of the flag that asks one trial of a sweep to stop; it says why."""
    return layout.prune(sweep, identity)


class Control:
    """Watches over a sweep from the runner's thread. `tick` often, `finish` when Tune is done."""

    def __init__(
        self,
        plan: Plan,
        storage: Storage,
        meter: Meter,
        tune_run: TuneRun,
        ask_to_stop: Callable[[], None],
        on_trial: Callable[[Trial], None],
    ) -> None:
        self.plan, self.storage, self.meter, self.tune_run = plan, storage, meter, tune_run
        self.ask_to_stop, self.on_trial = ask_to_stop, on_trial
        self.reached: str | None = None  # which limit of the budget
        self._workers = {t.identity: t.workers for t in plan.trials}
        self._flagged: set[str] = set()
        self._followed: set[str] = set()
        self._polled, self._saved = 0.0, 0.0
        self._pruner: Pruner | None = None
        if isinstance(plan.file.scheduler, Asha | Median):
            self._pruner = Pruner(plan.file.scheduler, plan.file.metric, plan.file.mode, storage)
            self._recall()

    def tick(self) -> None:
        """Look after everything, at most once a second."""
        self._welcome()
        now = time.monotonic()
        if now - self._polled < _POLL_S:
            return
        self._polled = now
        running = self.tune_run.running()
        self.meter.tick(self._workers.get(identity, 1) for identity in running)
        with contextlib.suppress(OSError):  # storage is away: later
            if not self.tune_run.stopping:
                self.tune_run.stopping = self.storage.exists(stop_key(self.plan.sweep))
            self._prune(running)
            if now - self._saved > _SAVE_S:
                self._saved = now
                self.meter.save("running")
        if self.reached is None and (reached := self.meter.reached()):
            self.reached = reached
            self.ask_to_stop()

    def finish(self) -> None:
        """Write down how the sweep stands."""
        self._welcome()
        self.meter.tick(())
        reason = self.reached or self.meter.out_of_trials(self.tune_run.queue.refused)
        if reason:
            state = "budget reached"
        elif self.tune_run.stopping:
            state = "stopped"
        else:
            state = "ended"
        retry(lambda: self.meter.save(state, reason or ""), 30)

    def _welcome(self) -> None:
        new = self.tune_run.queue.new
        while new:
            trial = new.popleft()
            self._workers[trial.identity] = trial.workers
            self.on_trial(trial)

    def _recall(self) -> None:
        """What trials reached in earlier launches counts for the decisions of this one."""
        assert self._pruner is not None
        for trial in self.plan.trials:
            state = trial_state(self.storage, trial.identity)
            if state.status in DONE:
                self._pruner.ended(trial.identity, pruned=state.status == TrialStatus.PRUNED)
            elif state.status != TrialStatus.NEW:
                self._pruner.look([trial.identity])

    def _prune(self, running: list[str]) -> None:
        if self._pruner is None:
            return
        for identity in self._followed - set(running):
            state = trial_state(self.storage, identity)
            self._pruner.ended(identity, pruned=state.status == TrialStatus.PRUNED)
        self._followed = set(running)
        for identity, reason in self._pruner.look(running).items():
            if identity not in self._flagged:
                self.storage.write(prune_key(self.plan.sweep, identity), reason.encode())
                self._flagged.add(identity)
