"""A number, or a function of the iteration: the same syntax for every loss weight, threshold and masking field.

In a YAML file a schedule is a mapping, for example ``{schedule: linear, start: 0.5, end: 0.95}``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


class _Schedule(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    def at(self, iteration: int, total: int) -> float:
        """Value at a 0-based `iteration` of a run of `total` iterations."""
        raise TypeError(f"{type(self).__name__} has no value")

    def extremes(self) -> Iterable[float]:
        """Values that bound every other value of the schedule."""
        raise TypeError(f"{type(self).__name__} has no value")


class Constant(_Schedule):
    """The same value at every iteration."""

    schedule: Literal["constant"]
    value: float

    def at(self, iteration: int, total: int) -> float:
        return self.value

    def extremes(self) -> Iterable[float]:
        return (self.value,)

    def __str__(self) -> str:
        return f"{self.value:g}"


class _Ramp(_Schedule):
    start: float
    end: float
    first: int = Field(default=0, ge=0, description="iteration up to which the value is `start`")
    last: int | None = Field(default=None, ge=1, description="iteration from which it is `end` (default: the last)")

    @model_validator(mode="after")
    def _ordered(self) -> _Ramp:
        if self.last is not None and self.last <= self.first:
            raise ValueError(f"last ({self.last}) must be after first ({self.first})")
        return self

    def progress(self, iteration: int, total: int) -> float:
        """Fraction of the ramp done at `iteration`, in [0, 1]."""
        last = max(self.first + 1, total - 1) if self.last is None else self.last
        return min(1.0, max(0.0, (iteration - self.first) / (last - self.first)))

    def extremes(self) -> Iterable[float]:
        return (self.start, self.end)

    def _label(self, kind: str) -> str:
        where = "" if self.first == 0 and self.last is None else f" @{self.first}-{self.last or 'end'}"
        return f"{kind} {self.start:g} to {self.end:g}{where}"


class Linear(_Ramp):
    """A straight line from `start` to `end`."""

    schedule: Literal["linear"]

    def at(self, iteration: int, total: int) -> float:
        return self.start + (self.end - self.start) * self.progress(iteration, total)

    def __str__(self) -> str:
        return self._label("linear")


class Cosine(_Ramp):
    """Half a cosine from `start` to `end`: flat at both ends."""

    schedule: Literal["cosine"]

    def at(self, iteration: int, total: int) -> float:
        done = 0.5 * (1 - math.cos(math.pi * self.progress(iteration, total)))
        return self.start + (self.end - self.start) * done

    def __str__(self) -> str:
        return self._label("cosine")


class Step(_Schedule):
    """`values[0]` before iteration `at_iterations[0]`, then `values[1]` and so on."""

    schedule: Literal["step"]
    values: tuple[float, ...] = Field(min_length=2)
    at_iterations: tuple[int, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _lengths(self) -> Step:
        if len(self.values) != len(self.at_iterations) + 1:
            raise ValueError("values must have one more entry than at_iterations")
        if list(self.at_iterations) != sorted(set(self.at_iterations)):
            raise ValueError("at_iterations must increase")
        return self

    def at(self, iteration: int, total: int) -> float:
        return self.values[sum(iteration >= edge for edge in self.at_iterations)]

    def extremes(self) -> Iterable[float]:
        return self.values

    def __str__(self) -> str:
        edges = ", ".join(f"{v:g} @{i}" for v, i in zip(self.values[1:], self.at_iterations, strict=True))
        return f"step {self.values[0]:g}, {edges}"


Schedule = Annotated[Constant | Linear | Cosine | Step, Field(discriminator="schedule")]
Scheduled = float | Schedule


def value_at(value: Scheduled, iteration: int, total: int) -> float:
    """Value of a number or schedule at a 0-based `iteration` of a run of `total` iterations."""
    return float(value) if isinstance(value, int | float) else value.at(iteration, total)


def extremes(value: Scheduled) -> tuple[float, ...]:
    """Values that bound a number or schedule over the whole run."""
    return (float(value),) if isinstance(value, int | float) else tuple(value.extremes())


def always_zero(value: Scheduled) -> bool:
    """Whether the value is 0 at every iteration, so that what it weights need not be computed."""
    return all(v == 0 for v in extremes(value))
