"""The sweep schema: which trials there are, what they are compared by, what each may use.

A sweep file is YAML data. Mistakes are found here, before anything runs, and named with file, field and value.
"""

from __future__ import annotations

import difflib
import itertools
import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, ValidationError, field_validator, model_validator

from mcc_core.config import Strict
from mcc_core.errors import UsageError
from mcc_core.experiment_files import load_base, merge
from mcc_core.methods.registry import METHODS, experiment_of, method_of_fields
from mcc_core.structured_files import read_yaml
from mcc_core.validation import settable, validate
from orchestrator.spec import space as spaces
from orchestrator.spec.budget import Budget
from orchestrator.spec.design import Design
from orchestrator.spec.expressions import Expression
from orchestrator.spec.schedulers import NoScheduler, Pbt, Scheduler
from orchestrator.spec.space import Grid, Search, Tpe


def _unique(values: tuple[int, ...]) -> tuple[int, ...]:
    twice = [v for v in values if values.count(v) > 1]
    if twice:
        raise ValueError(f"{twice[0]} is there twice")
    return values


Slug = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=64)]
Seeds = Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1), AfterValidator(_unique)]
Parameters = dict[str, Any]  # lists and spaces; `search.parse` reads them


class Point(Strict):
    """A named configuration beside the grid."""

    name: Slug
    base: str | None = Field(
        None, description="preset or experiment file to start from, of another method perhaps; default: the sweep's"
    )
    set: dict[str, Any] = Field(default_factory=dict, description="dotted fields and their values")


class HeatMap(Strict):
    """Two swept parameters to draw results over, as in the paper's Figure 4."""

    x: str
    y: str


class Resources(Strict):
    """What one trial may use."""

    cpus_per_worker: float | None = Field(
        None,
        gt=0,
        description="also the number of computing threads of a worker; default: one computing thread, and a CPU for it "
        "and for each of train.loader_workers, as far as there are so many",
    )
    gpus_per_worker: float | None = Field(
        None, ge=0, description="may be a share, such as 0.5; default: 1 where there are GPUs for it, else 0"
    )
    max_concurrent: int | None = Field(None, ge=1, description="trials at a time; default: as many as fit")
    max_failures: int = Field(2, ge=0, description="how often a trial whose worker dies is taken up again")

    @property
    def threads(self) -> float:
        """Computing threads of a worker."""
        return self.cpus_per_worker or 1.0

    @field_validator("gpus_per_worker")
    @classmethod
    def _whole_or_share(cls, gpus: float | None) -> float | None:
        if gpus is not None and gpus > 1 and gpus != int(gpus):
            raise ValueError("above 1 it must be a whole number: a share is of one device")
        return gpus


class Variant(Strict):
    """What differs with another base. A key that is given replaces the sweep's own, whole."""

    set: dict[str, Any] | None = None
    parameters: Parameters | None = None
    derived: dict[str, str | float] | None = None
    points: tuple[Point, ...] | None = None
    design: Design | None = None
    baseline: Slug | None = None
    search: Search | None = None
    scheduler: Scheduler | None = None
    budget: Budget | None = None
    seeds: Seeds | None = None
    heatmap: HeatMap | None = None
    resources: Resources | None = None


class SweepFile(Strict):
    """One sweep: what `search` makes of `parameters`, and `points`, each with every seed."""

    name: Slug
    description: str = ""
    base: str = Field(description="preset or experiment file")
    set: dict[str, Any] = Field(default_factory=dict, description="dotted fields fixed for every trial")
    parameters: Parameters = Field(
        default_factory=dict, description="dotted field to a list of values, or to a range; a value may be a schedule"
    )
    derived: dict[str, str | float] = Field(
        default_factory=dict, description="dotted field to arithmetic on other fields"
    )
    points: tuple[Point, ...] = ()
    design: Design | None = Field(None, description="named loss terms left out, or added, one at a time")
    baseline: Slug | None = Field(None, description="the point that others are tested against")
    search: Search = Grid()
    scheduler: Scheduler = NoScheduler(kind="none")
    budget: Budget = Budget()
    seeds: Seeds = (0,)
    metric: str = Field("val/seg/single/miou", description="what trials are compared by: split/stage/protocol/name")
    mode: Literal["max", "min"] = "max"
    heatmap: HeatMap | None = None
    resources: Resources = Resources()
    bases: dict[str, Variant] = Field(default_factory=dict)

    @field_validator("parameters")
    @classmethod
    def _parsed(cls, parameters: Parameters) -> Parameters:
        for key, values in parameters.items():
            if isinstance(values, list | tuple) and not values:
                raise ValueError(f"{key}: needs at least one value")
        try:
            spaces.parse(parameters)
        except UsageError as error:
            raise ValueError(str(error)) from None
        return parameters

    @model_validator(mode="after")
    def _once(self) -> SweepFile:
        places = {"set": self.set, "parameters": self.parameters, "derived": self.derived}
        for (place, first), (other, second) in itertools.combinations(places.items(), 2):
            if both := [key for key in first if key in second]:
                raise ValueError(f"{both[0]}: in {place} and in {other}; take one out")
        return self

    @model_validator(mode="after")
    def _compared(self) -> SweepFile:
        several = self.search.objectives if isinstance(self.search, Tpe) else ()
        names = [objective.metric for objective in several]
        if twice := [name for name in names if names.count(name) > 1]:
            raise ValueError(f"search.objectives: {twice[0]} is there twice")
        if names and "metric" in self.model_fields_set and self.metric not in names:
            raise ValueError(
                f"metric: {self.metric!r} is not among search.objectives ({', '.join(names)}), which decide"
            )
        return self

    @model_validator(mode="after")
    def _consistent(self) -> SweepFile:
        if self.heatmap and self.heatmap.x == self.heatmap.y:
            raise ValueError(f"heatmap: x and y are both {self.heatmap.x!r}")
        if self.heatmap:
            for axis, key in (("x", self.heatmap.x), ("y", self.heatmap.y)):
                if key not in self.parameters:
                    raise ValueError(f"heatmap.{axis}: {key!r} is not among parameters ({', '.join(self.parameters)})")
        names = [point.name for point in self.points]
        if len(set(names)) < len(names):
            raise ValueError(f"points: two are called {next(n for n in names if names.count(n) > 1)!r}")
        names += self.design.names() if self.design else []
        if self.baseline is not None and self.baseline not in names:
            raise ValueError(
                f"baseline: {self.baseline!r} is not among points ({', '.join(names) or 'there are none'})"
            )
        self._check_search()
        return self

    def _check_search(self) -> None:
        """What search and scheduler need of each other and of the parameters."""
        ranges = [k for p in spaces.parse(self.parameters) for k, space in p.spaces() if space.choice is None]
        if isinstance(self.search, Grid) and ranges and not isinstance(self.scheduler, Pbt):
            raise ValueError(
                f"parameters: {ranges[0]}: a range; a grid takes lists (or set search.kind to random or tpe)"
            )
        if not isinstance(self.search, Grid) and not self.parameters:
            raise ValueError(f"search: {self.search.kind} has nothing to draw: parameters is empty")
        several = isinstance(self.search, Tpe) and len(self.search.objectives) > 1
        if several and self.scheduler.kind != "none":
            raise ValueError(f"scheduler: {self.scheduler.kind} compares by one metric; search.objectives has several")
        if isinstance(self.scheduler, Pbt):
            if not isinstance(self.search, Grid) or self.points or self.design or len(self.seeds) > 1:
                raise ValueError(
                    "scheduler: pbt draws its own members: it goes without search, points, design and further seeds"
                )
            if (self.budget.trials or self.scheduler.population) < self.scheduler.population:
                raise ValueError(f"budget.trials: {self.budget.trials} is less than the population, which needs all")
            if not self.parameters:
                raise ValueError("scheduler: pbt has nothing to perturb: parameters is empty")
            for key in self.parameters:
                if not key.startswith(Pbt.CHANGEABLE):
                    raise ValueError(
                        f"parameters: {key}: pbt can change only what training reads at every iteration: "
                        f"{', '.join(Pbt.CHANGEABLE)}"
                    )

    @property
    def objectives(self) -> tuple[tuple[str, Literal["max", "min"]], ...]:
        """(metric, mode) of everything that is optimised, the sweep's own first where no other is named."""
        if isinstance(self.search, Tpe) and self.search.objectives:
            return tuple((o.metric, o.mode) for o in self.search.objectives)
        return ((self.metric, self.mode),)

    def all_points(self, base: Mapping[str, Any]) -> tuple[Point, ...]:
        """The named points, those of the design among them, on the fields of `base` with `set` in them."""
        made = self.design.points(base) if self.design else {}
        return (*self.points, *(Point(name=name, set=fields) for name, fields in made.items()))

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
    given = {name: value for name, value in sweep if name in sweep.model_fields_set}  # a default stays one
    return validate(SweepFile, given | changes | {"bases": bases}, "--seeds, --max-concurrent")


def check_keys(sweep: SweepFile, source: str) -> None:
    """Raise UsageError unless every dotted key of the sweep is a field of the experiment schema."""
    known = known_fields(sweep, source)
    wrong = [message for where, key in _keys(sweep) if (message := unknown_field(f"{source}: {where}", key, known))]
    if wrong:
        raise UsageError("\n".join(wrong))


def check_fields(sweep: SweepFile, source: str) -> None:
    """Raise UsageError unless every key and every single value fits the experiment schema on the sweep's base."""
    check_keys(sweep, source)
    fixed = fixed_fields(sweep, None, source)
    mistakes = _mistakes(fixed, f"{source}: set", sweep.set)
    if not mistakes:
        mistakes = [m for p in spaces.parse(sweep.parameters) for m in _mistakes_of_parameter(sweep, p, fixed, source)]
        for i, point in enumerate(sweep.points):
            merged = merge(fixed_fields(sweep, point.base, source), point.set, f"{source}: points[{i}].set")
            mistakes += _mistakes(merged, f"{source}: points[{i}].set", point.set)
    if not mistakes:
        with_derived(sweep, fixed, source)
    if mistakes:
        raise UsageError("\n".join(mistakes))


def _mistakes_of_parameter(
    sweep: SweepFile, parameter: spaces.Parameter, fixed: Mapping[str, Any], source: str
) -> list[str]:
    """Lines about values of a parameter, those of a list and the ends of a range, each alone on the base."""
    key, mistakes = parameter.key, []
    first = {name: space.ends()[0] for name, space in parameter.spaces()}
    for name, space in parameter.spaces():
        for i, value in enumerate(space.ends()):
            chosen = first | {name: value}
            drawn = parameter.filled(lambda n, _, chosen=chosen: chosen[n])  # type: ignore[misc]
            fields = merge(fixed, {key: drawn}, source)
            if not _wrong_alone(fields):
                fields = with_derived(sweep, fields, source)
            if space.choice is None and not _wrong_alone(fields):
                continue  # ends that clash with other fields: each drawn point is checked whole
            where = f"{source}: parameters.{name}" + (f"[{i}]" if space.choice is not None else f": {space.kind}")
            mistakes += _mistakes(fields, where, {key: 0})
    return mistakes


def _wrong_alone(fields: Mapping[str, Any]) -> bool:
    """Whether a field of the experiment is wrong by itself, not only together with others."""
    try:
        method_of_fields(fields).experiment.model_validate(fields)
    except ValidationError as error:
        return any(problem["loc"] for problem in error.errors())
    return False


def with_derived(sweep: SweepFile, fields: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Fields of an experiment with the derived ones put in, in the file's order. Raises UsageError."""
    result = dict(fields)
    for key, text in sweep.derived.items():
        where = f"{source}: derived.{key}"
        value = Expression(text, where).value(partial(field_value, result, source=where))
        result = merge(result, {key: value}, where)
    return result


def field_value(fields: Mapping[str, Any], name: str, source: str) -> Any:
    """Value of a dotted field of raw experiment fields, its default where it is not given. Raises UsageError."""
    node: Any = fields
    defaults: Any = method_of_fields(fields, source).experiment
    if wrong := unknown_field(source, name, settable(defaults)):
        raise UsageError(wrong)
    for part in name.split("."):
        node = node.get(part) if isinstance(node, Mapping) else None
        annotation = defaults.model_fields[part]
        defaults = annotation.annotation if isinstance(annotation.annotation, type) else None
    return annotation.get_default(call_default_factory=True) if node is None else node


def known_fields(sweep: SweepFile, source: str, *, own: bool = False) -> list[str]:
    """Fields that a sweep's keys may name: of every method of the package, and of its own, or with `own` of that alone.

    Whether its own method has one is seen when its experiments are read. Raises UsageError for a base that cannot be
    read.
    """
    bases = dict.fromkeys((sweep.base, *(point.base for point in sweep.points if point.base)))
    named = [method_of_fields(fixed_fields(sweep, base, source), source) for base in bases]
    methods = dict.fromkeys((*named, *(() if own else METHODS.values())))
    return list(dict.fromkeys(name for method in methods for name in settable(method.experiment)))


def fixed_fields(sweep: SweepFile, base: str | None, source: str) -> dict[str, Any]:
    """Raw fields of a base (default: the sweep's own) with what the sweep sets in every trial. Raises UsageError."""
    return merge(load_base(base or sweep.base), sweep.set, f"{source}: set")


def unknown_field(source: str, key: str, known: list[str]) -> str | None:
    """A line that says what is wrong with a dotted key, or None when it names one of the known fields."""
    if key in known or key.startswith("model.backbone_args."):
        return None
    sections = {name.rsplit(".", 1)[0] for name in known if "." in name}
    if key in sections:
        return f"{source}: {key}: is a section; name one of its fields, such as {_first_in(key, known)}"
    close = difflib.get_close_matches(key, known, n=1) or [k for k in known if k.rsplit(".", 1)[-1] == key][:1]
    return f"{source}: {key}: unknown field" + (f", did you mean {close[0]}?" if close else "")


def _first_in(section: str, known: list[str]) -> str:
    return next(name for name in known if name.startswith(f"{section}."))


def _keys(sweep: SweepFile) -> list[tuple[str, str]]:
    named = [(part, key) for part in ("set", "parameters", "derived") for key in getattr(sweep, part)]
    named += [("design.terms", key) for keys in (sweep.design.terms.values() if sweep.design else ()) for key in keys]
    for i, point in enumerate(sweep.points):
        named += [(f"points[{i}].set", key) for key in point.set]
    return named


def _mistakes(fields: Mapping[str, Any], source: str, changed: Mapping[str, Any]) -> list[str]:
    """Lines about an experiment that is not valid. A line about the one changed field names it once."""
    try:
        experiment_of(fields, source)
    except UsageError as error:
        lines = str(error).splitlines()
        if len(changed) == 1:
            key = next(iter(changed))
            lines = [re.sub(rf"^({re.escape(source)}): {re.escape(key)}(?=[.:])", r"\1", line) for line in lines]
            lines = [line.replace(f"{source}.", f"{source}: ", 1) for line in lines]
        return lines
    return []
