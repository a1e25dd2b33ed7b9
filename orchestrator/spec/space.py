"""Search spaces, and who proposes the next configuration: a grid, random draws, or Optuna's TPE.

Proposal number n depends on the search's seed, n, and (TPE) the results known by then, on nothing else. So a random
search that grew keeps its first points, and a search that is taken up again from its record goes on as it would have.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, ValidationError, model_validator

from mcc_core.config import Strict
from mcc_core.errors import UsageError
from orchestrator.spec.expressions import Expression

if TYPE_CHECKING:
    import optuna

MOST_POINTS = 10_000


class Space(Strict):
    """What a parameter may be: a list, or a range in one of four distributions. Ends of ranges are included."""

    choice: tuple[Any, ...] | None = Field(None, min_length=1, description="one of these")
    uniform: tuple[float, float] | None = None
    loguniform: tuple[float, float] | None = Field(None, description="uniform in the logarithm")
    quniform: tuple[float, float, float] | None = Field(None, description="low, high, step")
    randint: tuple[int, int] | None = None
    when: str | None = Field(
        None, description="condition on other fields; elsewhere the parameter keeps its base value"
    )

    @model_validator(mode="after")
    def _one(self) -> Space:
        given = [k for k in KINDS if getattr(self, k) is not None]
        if len(given) != 1:
            raise ValueError(f"needs exactly one of {', '.join(KINDS)}; has {', '.join(given) or 'none'}")
        if self.choice is None:
            low, high = self.range
            if not low < high:
                raise ValueError(f"{self.kind}: low ({low:g}) must be below high ({high:g})")
            if self.loguniform is not None and low <= 0:
                raise ValueError(f"loguniform: low ({low:g}) must be above 0")
            if self.quniform is not None and not 0 < self.quniform[2] <= high - low:
                raise ValueError(f"quniform: step ({self.quniform[2]:g}) must be above 0 and fit between low and high")
        return self

    @property
    def kind(self) -> str:
        return next(k for k in KINDS if getattr(self, k) is not None)

    @property
    def range(self) -> tuple[float, float]:
        """Low and high; of a list, its first and last index."""
        if self.choice is not None:
            return 0, len(self.choice) - 1
        given = getattr(self, self.kind)
        return given[0], given[1]

    def ends(self) -> tuple[Any, ...]:
        """Values by which to check the space: all of a list, both ends of a range."""
        return self.choice if self.choice is not None else self.range

    def draw(self, rng: random.Random) -> Any:
        """A raw value: a number, or an index into the list."""
        low, high = self.range
        if self.quniform is not None:
            step = self.quniform[2]
            return round(low + step * rng.randint(0, math.floor((high - low) / step + 1e-9)), 12)
        if self.choice is not None or self.randint is not None:
            return rng.randint(int(low), int(high))
        if self.loguniform is not None:
            return min(high, max(low, math.exp(rng.uniform(math.log(low), math.log(high)))))
        return rng.uniform(low, high)

    def value(self, raw: Any) -> Any:
        """What a raw value stands for; of a continuous range four digits, which is what people can read."""
        if self.choice is not None:
            return self.choice[raw]
        if self.uniform is None and self.loguniform is None:
            return raw
        low, high = self.range
        return min(high, max(low, float(f"{raw:.4g}")))

    def suggested(self, trial: optuna.Trial, name: str) -> Any:
        """A value drawn by Optuna."""
        if self.choice is not None:
            return self.value(trial.suggest_categorical(name, list(range(len(self.choice)))))
        if self.randint is not None:
            return trial.suggest_int(name, *self.randint)
        if self.quniform is not None:
            low, high, step = self.quniform
            drawn = trial.suggest_float(name, low, high, step=step)
            return round(drawn, 12)  # without the dust of adding steps, so that equal values are equal trials
        return self.value(trial.suggest_float(name, *self.range, log=self.loguniform is not None))


KINDS = ("choice", "uniform", "loguniform", "quniform", "randint")
Draw = Callable[[str, Space], Any]


class Grid(Strict):
    """Every combination of the parameters."""

    kind: Literal["grid"] = "grid"


class _Drawn(Strict):
    points: int = Field(ge=1, le=MOST_POINTS, description="configurations to propose; each runs with every seed")
    seed: int = Field(0, ge=0, description="of the proposals, not of the training")


class Random(_Drawn):
    """Independent draws."""

    kind: Literal["random"]


class Objective(Strict):
    """One of several things to optimise at once."""

    metric: str
    mode: Literal["max", "min"] = "max"


class Tpe(_Drawn):
    """Optuna's tree-structured Parzen estimator."""

    kind: Literal["tpe"]
    startup: int = Field(10, ge=1, description="random proposals before the first that learns from results")
    objectives: tuple[Objective, ...] = Field((), max_length=4, description="default: the sweep's metric alone")


Search = Annotated[Grid | Random | Tpe, Field(discriminator="kind")]


@dataclass(frozen=True)
class Parameter:
    """A parsed entry of `parameters`: a value in which spaces stand for what is drawn."""

    key: str
    template: Any  # a Space, or a mapping (a schedule) some of whose fields are Spaces
    when: Expression | None

    def spaces(self) -> list[tuple[str, Space]]:
        """(name, space) of all that is drawn."""
        return list(_spaces(self.key, self.template))

    def filled(self, draw: Draw) -> Any:
        """The value with every space replaced by what `draw` gives."""
        return _filled(self.key, self.template, draw)


def parse(parameters: Mapping[str, Any]) -> list[Parameter]:
    """Entries of a sweep file's `parameters`. Raises UsageError that begins with the parameter's name."""
    return [_parameter(key, value) for key, value in parameters.items()]


def _parameter(key: str, value: Any) -> Parameter:
    when = None
    if isinstance(value, Mapping) and "schedule" in value:
        condition = value.get("when")
        template: Any = {k: _template(f"{key}.{k}", v) for k, v in value.items() if k != "when"}
        if not any(True for _ in _spaces(key, template)):
            raise UsageError(f"{key}: a schedule in which nothing varies; put it into set, or into a list")
    else:
        template = _space(key, {"choice": value} if isinstance(value, list | tuple) else value)
        condition = template.when
    if condition is not None:
        when = Expression(condition, f"{key}.when")
    return Parameter(key, template, when)


def _template(key: str, value: Any) -> Any:
    return _space(key, value) if isinstance(value, Mapping) else value


def _space(key: str, value: Any) -> Space:
    if isinstance(value, Space):
        return value
    if isinstance(value, Mapping) and isinstance(value.get("choice"), list | tuple) and not value["choice"]:
        raise UsageError(f"{key}: needs at least 1 of them")
    if not isinstance(value, Mapping):
        raise UsageError(f"{key}: {value!r}: expected a list of values or a range such as {{uniform: [0.1, 1]}}")
    try:
        return Space.model_validate(value)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in problem["loc"])
        if problem["type"] == "extra_forbidden":
            raise UsageError(f"{key}: {where}: unknown; one of {', '.join(KINDS)}, when") from None
        raise UsageError(
            f"{key}: {where + ': ' if where else ''}{problem['msg'].removeprefix('Value error, ')}"
        ) from None


def _spaces(name: str, template: Any) -> Iterable[tuple[str, Space]]:
    if isinstance(template, Space):
        yield name, template
    elif isinstance(template, Mapping):
        for key, value in template.items():
            yield from _spaces(f"{name}.{key}", value)


def _filled(name: str, template: Any, draw: Draw) -> Any:
    if isinstance(template, Space):
        return draw(name, template)
    if isinstance(template, Mapping):
        return {key: _filled(f"{name}.{key}", value, draw) for key, value in template.items()}
    return template


def drawn(parameters: Sequence[Parameter], draw: Draw, base: Callable[[str], Any]) -> dict[str, Any]:
    """Values of the parameters whose condition holds, in the file's order; a condition sees those before it."""
    values: dict[str, Any] = {}
    for parameter in parameters:
        if parameter.when is None or parameter.when.value(lambda name: values[name] if name in values else base(name)):
            values[parameter.key] = parameter.filled(draw)
    return values


def grid(parameters: Sequence[Parameter], base: Callable[[str], Any]) -> list[dict[str, Any]]:
    """Every combination, the last parameter varying fastest; those that a condition makes equal appear once."""
    spaces = [pair for parameter in parameters for pair in parameter.spaces()]
    names = [name for name, _ in spaces]
    points: list[dict[str, Any]] = []
    seen: set[str] = set()
    for values in itertools.product(*(space.choice or () for _, space in spaces)):
        chosen = dict(zip(names, values, strict=True))
        point = drawn(parameters, lambda name, _, chosen=chosen: chosen[name], base)  # type: ignore[misc]
        if len(parameters) == len(point) or repr(point) not in seen:
            points.append(point)
        seen.add(repr(point))
    return points


def grid_size(parameters: Sequence[Parameter]) -> int:
    """Combinations of a grid, conditions aside."""
    return math.prod(len(space.choice or ()) for p in parameters for _, space in p.spaces())


def random_point(parameters: Sequence[Parameter], seed: int, number: int, base: Callable[[str], Any]) -> dict[str, Any]:
    """Point `number` of a random search."""
    rng = random.Random(mixed(seed, number))
    return drawn(parameters, lambda _, space: space.value(space.draw(rng)), base)


def mixed(*numbers: int | str) -> int:
    """One 32-bit seed of several numbers or texts."""
    return int.from_bytes(hashlib.sha256("/".join(map(str, numbers)).encode()).digest()[:4])
