"""What runs next: the trials of a plan in order, a search that proposes as results come in, a population.

`take` and `ended` are called from Tune's thread, one at a time; everything that must outlive the process is in storage
before the trial that needs it is handed out.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Sequence
from statistics import mean
from typing import Any, Protocol

from mcc_core.errors import UsageError
from orchestrator.planning.configurations import OpenSearch, Trial
from orchestrator.planning.plan import Plan, is_done, search_key
from orchestrator.records import layout
from orchestrator.records.budget import Meter
from orchestrator.records.checkpoints import copy_checkpoint, newest_iteration
from orchestrator.records.events import TrialState, history, trial_state
from orchestrator.records.status import DONE, TrialStatus
from orchestrator.search.population import Clone, Drawn, perturbed, selected
from orchestrator.spec.schedulers import Pbt
from orchestrator.storage.store import Storage, retry
from orchestrator.worker.assignment import Assignment


class Assign(Protocol):
    """Makes a trial's assignment, with changed fields."""

    def __call__(self, trial: Trial, **changes: Any) -> Assignment: ...


class TrialQueue:
    """Hands out trials in the plan's order, as far as the budget allows."""

    def __init__(self, plan: Plan, todo: Sequence[Trial], storage: Storage, assign: Assign, meter: Meter) -> None:
        self.plan, self.storage, self.assign, self.meter = plan, storage, assign, meter
        self.trials = {trial.identity: trial for trial in plan.trials}
        self.new: deque[Trial] = deque()  # proposed while running; whoever shows trials takes them from here
        self.waiting = deque(todo)
        self.refused: list[str] = []  # identities that the budget did not let begin

    def take(self) -> Assignment | None:
        """What to run now; None: nothing, for now or for ever (`over`)."""
        while self.waiting or self.more():
            if self.waiting and (trial := self._allowed(self.waiting.popleft())) is not None:
                return self.assign(trial)
        return None

    def more(self) -> bool:
        """Whether there is something to look at in `waiting` now, which this call may have put there."""
        return False

    def over(self) -> bool:
        """Whether `take` will have nothing any more."""
        return not self.waiting

    def ended(self, identity: str) -> None:
        """A trial that was handed out has ended, however that went."""

    def state(self, identity: str) -> TrialState:
        """How a trial stands. Waits for storage that is away."""
        return retry(lambda: trial_state(self.storage, identity))

    def _allowed(self, trial: Trial) -> Trial | None:
        if not self.meter.may_begin(trial.identity):
            self.refused.append(trial.identity)
            return None
        self.meter.begun.add(trial.identity)
        return trial


class SearchQueue(TrialQueue):
    """Asks a TPE search for points when the planned trials are out, and tells it what came of them."""

    def __init__(self, plan: Plan, todo: Sequence[Trial], storage: Storage, assign: Assign, meter: Meter) -> None:
        super().__init__(plan, todo, storage, assign, meter)
        assert plan.open is not None
        self.open: OpenSearch = plan.open
        self._states: dict[str, TrialState] = {}
        again = {trial.identity for trial in todo}
        for identity in self.trials.keys() - again:
            self._states[identity] = self.state(identity)
        self._told: set[int] = set()
        self._save()
        self._tell()

    def more(self) -> bool:
        if not self.open.left or self.refused:
            return False
        for trial in self.open.propose():
            if trial.identity not in self.trials:
                self.trials[trial.identity] = trial
                state = self.state(trial.identity)
                if is_done(state, self.plan.file):
                    self._states[trial.identity] = state
                else:
                    self.waiting.append(trial)
                self.new.append(trial)
        self._save()
        self._tell()
        return True

    def over(self) -> bool:
        return not self.waiting and (not self.open.left or bool(self.refused))

    def ended(self, identity: str) -> None:
        state = self.state(identity)
        if state.status in {TrialStatus.FINISHED, TrialStatus.FAILED, TrialStatus.PRUNED}:
            self._states[identity] = state
            self._tell()

    def _tell(self) -> None:
        """Tell the search every point whose trials have all ended."""
        for number, identities in self.open.identities.items():
            states = [self._states.get(identity) for identity in identities]
            if number in self._told or not states or None in states:
                continue
            self._told.add(number)
            good = [s for s in states if s is not None and s.status in DONE]
            pruned_at = None
            if any(s.status == TrialStatus.PRUNED for s in good):
                pruned_at = min(newest_iteration(self.storage, i) for i in identities)
            self.open.search.tell(number, _objectives(self.plan, good), pruned_at)

    def _save(self) -> None:
        content = json.dumps(self.open.record, indent=1).encode()
        retry(lambda: self.storage.write(search_key(self.plan.sweep), content))


def _objectives(plan: Plan, states: Sequence[TrialState]) -> list[float] | None:
    """ExecutionOptions over a point's trials of every objective; None when one of them was not measured."""
    reached = []
    for metric, _ in plan.file.objectives:
        values = [s.metrics[metric] for s in states if s.metrics and metric in s.metrics]
        if not values:
            return None
        reached.append(mean(values))
    return reached


class PopulationQueue(TrialQueue):
    """Population based training, one generation after the other.

    A generation is decided, written down, and carried out by copying checkpoints, in this order; a launch that was cut
    off in between carries it out again, which changes nothing.
    """

    def __init__(self, plan: Plan, todo: Sequence[Trial], storage: Storage, assign: Assign, meter: Meter) -> None:
        super().__init__(plan, (), storage, assign, meter)
        assert isinstance(plan.file.scheduler, Pbt) and plan.builder is not None
        self.config: Pbt = plan.file.scheduler
        self.builder, self.members = plan.builder, list(plan.trials)
        self.total = plan.trials[0].experiment.train.iterations
        self._load()
        self._begin()

    def _load(self) -> None:
        self.generation = 0
        self.clones: dict[str, dict[str, Any]] = {}  # identity of each clone of this generation to its clone event
        self.drawn = [self.builder.member(number) for number in range(len(self.members))]
        try:
            content = json.loads(retry(lambda: self.storage.read(population_key(self.plan.sweep))))
        except FileNotFoundError:
            return
        self.generation, self.clones = content["generation"], content["clones"]
        self.drawn = [Drawn(**draw) for draw in content["drawn"]]
        self._carry_out()

    @property
    def until(self) -> int:
        """Iteration at which the generation ends."""
        return min(self.total, (self.generation + 1) * self.config.interval)

    def take(self) -> Assignment | None:
        while self.waiting:
            trial = self._allowed(self.waiting.popleft())
            if trial is None:
                continue
            number = self.members.index(trial)
            self._out.add(trial.identity)
            drawn = self.drawn[number]
            return self.assign(
                trial,
                experiment=self.builder.candidate(drawn.fields, trial.point).experiment.model_dump(mode="json"),
                until=self.until,
                launch=f"{self.assign(trial).launch}-g{self.generation}",
                clone=self.clones.get(trial.identity),
                fields={f"pbt/{name}": value for name, value in drawn.raw.items()},
            )
        return None

    def over(self) -> bool:
        return not self.waiting and (not self._out or self._stuck)

    def ended(self, identity: str) -> None:
        self._out.discard(identity)
        reached = (
            self.state(identity).status == TrialStatus.FAILED or newest_iteration(self.storage, identity) >= self.until
        )
        if not reached:
            self._stuck = True  # stopped before its time: the sweep is being stopped
        if self._out or self.waiting or self._stuck or self.refused or self.until >= self.total:
            return
        self._select()
        self._begin()

    def _begin(self) -> None:
        """Put the members on the list that have not reached the generation's end."""
        self._out: set[str] = set()
        self._stuck = False
        for trial in self.members:
            state = self.state(trial.identity)
            failed = state.status == TrialStatus.FAILED and state.launch.endswith(f"-g{self.generation}")
            if not failed and newest_iteration(self.storage, trial.identity) < self.until:
                self.waiting.append(trial)
        if not self.waiting and self.until < self.total:
            self._select()
            self._begin()

    def _select(self) -> None:
        """Decide who clones whom, write it down, and do it."""
        scores = [self._score(trial) for trial in self.members]
        pairs = selected(self.config, scores, self.plan.file.mode, self.generation)
        at, drawn = self.until, {pair.member: self._explored(pair) for pair in pairs}
        self.generation += 1
        self.clones.clear()
        for pair in pairs:
            donor, clone = self.members[pair.donor], self.members[pair.member]
            self.drawn[pair.member] = drawn[pair.member]
            self.clones[clone.identity] = {
                "iteration": at,
                "donor": donor.identity,
                "donor_name": donor.name,
                "fields": drawn[pair.member].fields,
            }
        self._save()
        self._carry_out()

    def _explored(self, pair: Clone) -> Drawn:
        raw = self.drawn[pair.donor].raw
        for attempt in range(20):
            perturbation = perturbed(
                self.config, self.builder.parameters, raw, self.generation, pair.member, attempt, self.builder.base
            )
            try:
                self.builder.candidate(perturbation.fields)
                return perturbation
            except UsageError:  # such as a background threshold above that of the foreground
                continue
        return self.drawn[pair.donor]

    def _carry_out(self) -> None:
        for identity, clone in self.clones.items():
            if newest_iteration(self.storage, clone["donor"]) <= clone["iteration"]:
                retry(lambda i=identity, c=clone: copy_checkpoint(self.storage, c["donor"], c["iteration"], i))  # type: ignore[misc]

    def _score(self, trial: Trial) -> float | None:
        """The metric of a member's last evaluation; None for one that failed."""
        if newest_iteration(self.storage, trial.identity) < self.until:
            return None
        score = None
        for event in retry(lambda: history(self.storage, trial.identity)):
            if event["kind"] == "metrics" and event["iteration"] <= self.until:
                score = event["metrics"].get(self.plan.file.metric, score)
        return score if score == score else None

    def _save(self) -> None:
        drawn = [{"raw": draw.raw, "fields": draw.fields} for draw in self.drawn]
        content = json.dumps({"generation": self.generation, "clones": self.clones, "drawn": drawn}, indent=1).encode()
        retry(lambda: self.storage.write(population_key(self.plan.sweep), content))


def population_key(sweep: str) -> str:
    """Key of the state of a population."""
    return layout.population(sweep)
