"""Which running trials are not worth their time (ASHA, median stopping), and population based training.

Decisions are taken here, from the events in storage, and carried out by the trials themselves: a trial that is pruned
is asked to stop, writes its checkpoint and its last metrics, and may be trained to its end by a later sweep.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from mcc_core.config import Strict
from orchestrator.records.events import EventReader
from orchestrator.spec.space import Parameter, Space, drawn, mixed, study
from orchestrator.storage.store import Storage

if TYPE_CHECKING:
    import optuna


class NoScheduler(Strict):
    """Every trial runs to its end."""

    kind: Literal["none"] = "none"


class Asha(Strict):
    """Asynchronous successive halving: at min_iterations x eta^k only the best 1/eta of those that came there go on."""

    kind: Literal["asha"]
    min_iterations: int = Field(ge=1, description="the first decision comes with the first evaluation from here on")
    eta: int = Field(3, ge=2)


class Median(Strict):
    """A trial whose best score so far is below the median of the finished trials at the same iteration stops."""

    kind: Literal["median"]
    min_iterations: int = Field(0, ge=0, description="no decision before")
    min_trials: int = Field(4, ge=1, description="finished trials before the first decision")


class Pbt(Strict):
    """Population based training: after every `interval` iterations the worst members take over the weights of the
    best, and go on with changed parameters. All members reach the end of an interval before any goes on."""

    CHANGEABLE: ClassVar = ("loss.", "thresholds.", "mask.", "contrast.", "optim.lr")

    kind: Literal["pbt"]
    population: int = Field(ge=2, le=1000)
    interval: int = Field(ge=1, description="iterations between two selections")
    quantile: float = Field(0.25, gt=0, le=0.5, description="share of the worst that clones, and of the best it clones")
    factors: tuple[float, float] = Field((0.8, 1.25), description="a changed number is multiplied by one of these")
    resample: float = Field(0.25, ge=0, le=1, description="probability that a value is drawn afresh instead")
    seed: int = Field(0, ge=0, description="of draws and selections")

    @model_validator(mode="after")
    def _factors(self) -> Pbt:
        if not 0 < self.factors[0] < 1 < self.factors[1]:
            raise ValueError(f"factors: {list(self.factors)}: one must be between 0 and 1, the other above 1")
        return self


Scheduler = Annotated[NoScheduler | Asha | Median | Pbt, Field(discriminator="kind")]
PRUNING = ("asha", "median")


class Pruner:
    """Follows trials by their events and says which should stop. Not for several threads at a time."""

    def __init__(self, config: Asha | Median, metric: str, mode: str, storage: Storage) -> None:
        import optuna

        self.config, self.metric, self.storage = config, metric, storage
        self._study = study(optuna.samplers.RandomSampler(seed=0), [mode], _optuna_pruner(config))
        self._watched: dict[str, _Watched] = {}

    def look(self, identities: Sequence[str]) -> dict[str, str]:
        """Read what is new of these trials. Returns those that should stop, with the reason."""
        found = {}
        for identity in identities:
            if identity not in self._watched:
                self._watched[identity] = _Watched(self._study.ask(), EventReader(self.storage, identity))
            if reason := self._update(self._watched[identity]):
                found[identity] = reason
        return found

    def ended(self, identity: str, *, pruned: bool) -> None:
        """A trial is over; what it reached counts for the others."""
        import optuna

        self.look([identity])
        watched = self._watched[identity]
        if not watched.told:
            watched.told = True
            state = optuna.trial.TrialState
            if watched.value is None or pruned:
                self._study.tell(watched.trial, state=state.FAIL if watched.value is None else state.PRUNED)
            else:
                self._study.tell(watched.trial, watched.value)

    def _update(self, watched: _Watched) -> str | None:
        if watched.told:
            return None
        for _, events in watched.reader:
            for event in events:
                value = event.get("metrics", {}).get(self.metric) if event["kind"] == "metrics" else None
                if value is None or event["iteration"] <= watched.iteration:
                    continue
                watched.value, watched.iteration = value, event["iteration"]
                watched.trial.report(value, event["iteration"])
                if watched.trial.should_prune() and watched.verdict is None:
                    others = len(self._study.get_trials(deepcopy=False)) - 1
                    which = "low" if self._study.direction.name == "MAXIMIZE" else "high"
                    watched.verdict = (
                        f"{self.config.kind}: {self.metric} {value:.4g} at iteration {event['iteration']} is too "
                        f"{which} beside {others} other trials"
                    )
        return watched.verdict


@dataclass
class _Watched:
    trial: optuna.Trial
    reader: EventReader
    iteration: int = 0
    value: float | None = None
    verdict: str | None = None
    told: bool = False


def _optuna_pruner(config: Asha | Median) -> optuna.pruners.BasePruner:
    import optuna

    if isinstance(config, Asha):
        return optuna.pruners.SuccessiveHalvingPruner(config.min_iterations, config.eta)
    return optuna.pruners.MedianPruner(config.min_trials, config.min_iterations)


# --- population based training ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Clone:
    """A member that takes over another's weights."""

    member: int
    donor: int


def selected(config: Pbt, scores: Sequence[float | None], mode: str, generation: int) -> list[Clone]:
    """Who clones whom after a generation: the worst share, each one of the best share. None (failed) is worst."""
    sign = 1 if mode == "max" else -1
    ranked = sorted(
        range(len(scores)), key=lambda m: (scores[m] is not None, sign * (scores[m] or 0.0), -m), reverse=True
    )
    share = max(1, int(len(scores) * config.quantile))
    best = [m for m in ranked[:share] if scores[m] is not None]
    worst = [m for m in ranked[-share:] if m not in best]
    failed = [m for m in ranked if scores[m] is None and m not in worst]
    return [
        Clone(m, random.Random(mixed(config.seed, "donor", generation, m)).choice(best))
        for m in (*worst, *failed)
        if best
    ]


def first_values(config: Pbt, parameters: Sequence[Parameter], member: int, base: Callable[[str], Any]) -> Drawn:
    """What a member begins with."""
    rng = random.Random(mixed(config.seed, "member", member))
    return _drawn(parameters, lambda name, space: space.draw(rng), base)


def perturbed(
    config: Pbt,
    parameters: Sequence[Parameter],
    raw: Mapping[str, Any],
    generation: int,
    member: int,
    attempt: int,
    base: Callable[[str], Any],
) -> Drawn:
    """What a clone goes on with: each of its donor's values moved, or drawn afresh."""
    rng = random.Random(mixed(config.seed, "explore", generation, member, attempt))

    def draw(name: str, space: Space) -> Any:
        if name not in raw or rng.random() < config.resample:
            return space.draw(rng)
        return moved(space, raw[name], config.factors, rng)

    return _drawn(parameters, draw, base)


@dataclass(frozen=True)
class Drawn:
    """`raw` values by the names of spaces (of a list: an index), and the dotted fields made of them."""

    raw: dict[str, Any]
    fields: dict[str, Any]


def _drawn(parameters: Sequence[Parameter], draw: Callable[[str, Space], Any], base: Callable[[str], Any]) -> Drawn:
    raw: dict[str, Any] = {}

    def keep(name: str, space: Space) -> Any:
        raw[name] = draw(name, space)
        return space.value(raw[name])

    fields = drawn(parameters, keep, base)
    return Drawn(raw, fields)


def moved(space: Space, raw: Any, factors: tuple[float, float], rng: random.Random) -> Any:
    """A neighbour within the space: the next of a list, a number times one of the factors."""
    low, high = space.range
    up = rng.random() < 0.5
    for direction in (up, not up):
        if space.choice is not None:
            there = raw + (1 if direction else -1)
        else:
            there = raw * factors[direction] if raw else (high - low) * (factors[1] - 1) * (1 if direction else -1)
            step = space.quniform[2] if space.quniform else 1.0 if space.randint else 0.0
            if step:
                steps = max(1, round(abs(there - raw) / step)) * (1 if there > raw else -1)
                there = round(raw + steps * step, 12)
        there = min(high, max(low, there))
        if there != raw:
            return type(raw)(there)
    return raw
