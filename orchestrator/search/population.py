"""Population based training: who takes over whose weights, and with which values it goes on."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from orchestrator.spec.schedulers import Pbt
from orchestrator.spec.space import Parameter, Space, drawn, mixed

if TYPE_CHECKING:
    pass


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
