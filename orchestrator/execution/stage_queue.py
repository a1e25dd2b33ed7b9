"""The trials of a sweep of stages in the plan's order, each when what it takes is there."""

from __future__ import annotations

from collections.abc import Sequence

from orchestrator.execution.queue import Assign, TrialQueue
from orchestrator.planning.configurations import Trial
from orchestrator.planning.plan import Plan
from orchestrator.records.budget import Meter
from orchestrator.records.status import TrialStatus
from orchestrator.storage.store import Storage
from orchestrator.worker.assignment import Assignment


class StageQueue(TrialQueue):
    """Hands out a trial when its inputs have finished. What follows one that did not is left out, and counted."""

    def __init__(self, plan: Plan, todo: Sequence[Trial], storage: Storage, assign: Assign, meter: Meter) -> None:
        super().__init__(plan, todo, storage, assign, meter)
        self.blocked: list[str] = []  # identities that have no input in this launch
        coming = {trial.identity for trial in todo}
        needed = {identity for t in todo for identity in t.inputs} - coming
        self._finished = {i for i in needed if self.state(i).status == TrialStatus.FINISHED}
        for identity in needed - self._finished:
            self._leave_out(identity, self.blocked)

    def take(self) -> Assignment | None:
        for trial in list(self.waiting):
            if trial not in self.waiting or not self._finished.issuperset(trial.inputs):
                continue
            self.waiting.remove(trial)
            if self._allowed(trial) is not None:
                return self.assign(trial)
            self._leave_out(trial.identity, self.refused)  # the budget does not let what follows begin either
        return None

    def ended(self, identity: str) -> None:
        status = self.state(identity).status
        if status == TrialStatus.FINISHED:
            self._finished.add(identity)
        else:
            self._leave_out(identity, self.blocked)

    def _leave_out(self, identity: str, where: list[str]) -> None:
        """Take what follows a trial off the list."""
        for trial in [t for t in self.waiting if identity in t.inputs]:
            if trial not in self.waiting:  # it takes from one that was left out with what follows
                continue
            self.waiting.remove(trial)
            where.append(trial.identity)
            self._leave_out(trial.identity, where)
