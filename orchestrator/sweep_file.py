"""The sweep schema: which trials there are, what they are compared by, what each may use.

A sweep file is YAML data. Mistakes are found here, before anything runs, and named with file, field and value.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, field_validator, model_validator

from mcc_core.config import Experiment, Strict, field_names, load_base, merge, read_yaml, validate
from mcc_core.errors import UsageError


def _unique(values: tuple[int, ...]) -> tuple[int, ...]:
    twice = [v for v in values if values.count(v) > 1]
    if twice:
        raise ValueError(f"{twice[0]} is there twice")
    return values


Slug = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=64)]
Seeds = Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1), AfterValidator(_unique)]
Grid = dict[str, tuple[Any, ...]]


class Point(Strict):
    """A named configuration beside the grid."""

    name: Slug
    set: dict[str, Any] = Field(default_factory=dict, description="dotted fields and their values")


class HeatMap(Strict):
    """Two swept parameters to draw results over, as in the paper's Figure 4."""

    x: str
    y: str


class Resources(Strict):
    """What one trial may use."""

    cpus_per_worker: float = Field(1.0, gt=0, description="also the number of computing threads of a worker")
    gpus_per_worker: float | None = Field(None, ge=0, description="default: 1 where there are GPUs for it, else 0")
    max_concurrent: int | None = Field(None, ge=1, description="trials at a time; default: as many as fit")
    max_failures: int = Field(2, ge=0, description="how often a trial whose worker dies is taken up again")


class Variant(Strict):
    """What differs with another base. A key that is given replaces the sweep's own, whole."""

    set: dict[str, Any] | None = None
    parameters: Grid | None = None
    points: tuple[Point, ...] | None = None
    seeds: Seeds | None = None
    heatmap: HeatMap | None = None
    resources: Resources | None = None


class SweepFile(Strict):
    """One sweep: every combination of `parameters`, and `points`, each with every seed."""

    name: Slug
    description: str = ""
    base: str = Field(description="preset or experiment file")
    set: dict[str, Any] = Field(default_factory=dict, description="dotted fields fixed for every trial")
    parameters: Grid = Field(default_factory=dict, description="dotted field to values; a value may be a schedule")
    points: tuple[Point, ...] = ()
    seeds: Seeds = (0,)
    metric: str = Field("val/seg/single/miou", description="what trials are compared by: split/stage/protocol/name")
    mode: Literal["max", "min"] = "max"
    heatmap: HeatMap | None = None
    resources: Resources = Resources()
    bases: dict[str, Variant] = Field(default_factory=dict)

    @field_validator("parameters")
    @classmethod
    def _not_empty(cls, parameters: Grid) -> Grid:
        for key, values in parameters.items():
            if not values:
                raise ValueError(f"{key}: needs at least one value")
        return parameters

    @model_validator(mode="after")
    def _consistent(self) -> SweepFile:
        if self.heatmap:
            for axis, key in (("x", self.heatmap.x), ("y", self.heatmap.y)):
                if key not in self.parameters:
                    raise ValueError(f"heatmap.{axis}: {key!r} is not among parameters ({', '.join(self.parameters)})")
        names = [point.name for point in self.points]
        if len(set(names)) < len(names):
            raise ValueError(f"points: two are called {next(n for n in names if names.count(n) > 1)!r}")
        return self

    def for_base(self, base: str | None = None) -> SweepFile:
        """The sweep on `base` (default: its own), with what `bases` says differs there."""
        chosen = base or self.base
        variant = self.bases.get(chosen, Variant())
        changes = {k: getattr(variant, k) for k in type(variant).model_fields if getattr(variant, k) is not None}
        try:
            return type(self).model_validate(dict(self) | changes | {"base": chosen})
        except ValueError as error:
            detail = str(error.errors()[0]["msg"]) if hasattr(error, "errors") else str(error)
            raise UsageError(f"bases.{chosen}: {detail.removeprefix('Value error, ')}") from None


def load_sweep(path: Path) -> SweepFile:
    """Read and check a sweep file, with the values of its parameters on its own base.

    Raises UsageError, one line per mistake.
    """
    fields = read_yaml(path)
    sweep = validate(SweepFile, fields, str(path))
    check_fields(sweep, str(path))
    for base in sweep.bases:
        try:
            check_keys(sweep.for_base(base), f"{path}: bases.{base}")
        except UsageError as error:
            text = str(error)
            raise UsageError(text if text.startswith(str(path)) else f"{path}: {text}") from None
    return sweep


def with_run_options(sweep: SweepFile, seeds: tuple[int, ...] | None, max_concurrent: int | None) -> SweepFile:
    """The sweep with what the command line replaces, in every variant too. Raises UsageError."""
    changes: dict[str, Any] = {"seeds": seeds} if seeds is not None else {}
    if max_concurrent is not None:
        changes["resources"] = dict(sweep.resources) | {"max_concurrent": max_concurrent}
    bases = {name: dict(variant) | {key: None for key in changes} for name, variant in sweep.bases.items()}
    return validate(SweepFile, dict(sweep) | changes | {"bases": bases}, "--seeds, --max-concurrent")


def check_keys(sweep: SweepFile, source: str) -> None:
    """Raise UsageError unless every dotted key of the sweep is a field of the experiment schema."""
    wrong = [message for where, key in _keys(sweep) if (message := unknown_field(f"{source}: {where}", key))]
    if wrong:
        raise UsageError("\n".join(wrong))


def check_fields(sweep: SweepFile, source: str) -> None:
    """Raise UsageError unless every key and every single value fits the experiment schema on the sweep's base."""
    check_keys(sweep, source)
    base = load_base(sweep.base)
    fixed = merge(base, sweep.set, f"{source}: set")
    mistakes = _mistakes(fixed, f"{source}: set", sweep.set)
    if not mistakes:
        for key, values in sweep.parameters.items():
            for i, value in enumerate(values):
                mistakes += _mistakes(merge(fixed, {key: value}, source), f"{source}: parameters.{key}[{i}]", {key: 0})
        for i, point in enumerate(sweep.points):
            merged = merge(fixed, point.set, f"{source}: points[{i}].set")
            mistakes += _mistakes(merged, f"{source}: points[{i}].set", point.set)
    if mistakes:
        raise UsageError("\n".join(mistakes))


def unknown_field(source: str, key: str) -> str | None:
    """A line that says what is wrong with a dotted key, or None when it names a field that can be set."""
    known = _settable()
    if key in known or key.startswith("model.backbone_args."):
        return None
    sections = {name.rsplit(".", 1)[0] for name in known if "." in name}
    if key in sections:
        return f"{source}: {key}: is a section; name one of its fields, such as {_first_in(key, known)}"
    close = difflib.get_close_matches(key, known, n=1) or [k for k in known if k.rsplit(".", 1)[-1] == key][:1]
    return f"{source}: {key}: unknown field" + (f", did you mean {close[0]}?" if close else "")


def _settable() -> list[str]:
    names = field_names(Experiment)
    return [n for n in names if n != "description" and not any(other.startswith(f"{n}.") for other in names)]


def _first_in(section: str, known: list[str]) -> str:
    return next(name for name in known if name.startswith(f"{section}."))


def _keys(sweep: SweepFile) -> list[tuple[str, str]]:
    found = [("set", key) for key in sweep.set] + [("parameters", key) for key in sweep.parameters]
    for i, point in enumerate(sweep.points):
        found += [(f"points[{i}].set", key) for key in point.set]
    return found


def _mistakes(fields: Mapping[str, Any], source: str, changed: Mapping[str, Any]) -> list[str]:
    """Lines about an experiment that is not valid. A line about the one changed field names it once."""
    try:
        validate(Experiment, fields, source)
    except UsageError as error:
        lines = str(error).splitlines()
        if len(changed) == 1:
            key = next(iter(changed))
            lines = [re.sub(rf"^({re.escape(source)}): {re.escape(key)}(?=[.:])", r"\1", line) for line in lines]
            lines = [line.replace(f"{source}.", f"{source}: ", 1) for line in lines]
        return lines
    return []
