"""The schema of a sweep of stages: networks make seeds, refinements make labels of them, networks train on the labels.

Each stage takes what another makes (`of`), may bring a network of a third one along (`network`), and has its own
experiment and parameters. One that makes labels may begin with a frozen network in place of another stage.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from mcc_core.config import Strict
from mcc_core.errors import UsageError
from mcc_core.structured_files import read_yaml
from mcc_core.validation import validate
from orchestrator.spec import refinements
from orchestrator.spec import space as spaces
from orchestrator.spec.budget import Budget
from orchestrator.spec.schedulers import NoScheduler
from orchestrator.spec.space import Grid
from orchestrator.spec.sweep_file import Parameters, Point, Resources, Seeds, Slug, SweepFile, known_fields

LABELS = "labels.source"  # field of an experiment that a stage before fills
REFINE = "refine"  # section of the fields of a refinement
_LINKS = ("of", "network")  # fields of a stage that name another
OF_FROZEN = ("data.", "clip.")  # beginnings of fields of an experiment whose network is frozen


class Stage(Strict):
    """One stage: with `base` it trains networks, with `refine` it makes labels."""

    of: Slug | None = Field(None, description="the stage whose maps are refined, or whose labels are trained on")
    network: Slug | None = Field(
        None,
        description="the stage whose trained network a refinement brings along: that of irn, which finds boundaries, "
        "or of psa",
    )
    base: str | None = Field(
        None,
        description="preset or experiment file; this stage trains. With `refine`, that of a frozen network, such as "
        "clip-es, of whose maps this stage makes labels",
    )
    refine: dict[str, Any] | None = Field(
        None,
        description="`kind` of the refinement and its parameters; this stage makes labels of the maps of `of`, or of "
        "the frozen network of `base`",
    )
    set: dict[str, Any] = Field(default_factory=dict, description="dotted fields fixed for every trial of the stage")
    parameters: Parameters = Field(
        default_factory=dict, description="dotted field to a list of values; those of a refinement are `refine.…`"
    )
    derived: dict[str, str | float] = Field(
        default_factory=dict, description="dotted field to arithmetic on other fields"
    )
    points: tuple[Point, ...] = Field((), description="named configurations beside the grid")

    @property
    def trains(self) -> bool:
        return self.base is not None and self.refine is None

    @property
    def frozen(self) -> bool:
        """Whether it makes labels of the maps of a network that no stage trains."""
        return self.base is not None and self.refine is not None

    @property
    def inputs(self) -> tuple[str, ...]:
        """The stages that it takes from."""
        return tuple(name for name in (self.of, self.network) if name is not None)


class StagesFile(Strict):
    """A sweep of stages. Every configuration of a stage is run on every one of the stage before it, with every seed."""

    name: Slug
    description: str = ""
    stages: dict[Slug, Stage] = Field(min_length=1, description="name of a stage to the stage; any order")
    seeds: Seeds = (0,)
    metric: str = Field(
        "val/seg/single/miou", description="what the last stages are compared by: split/stage/protocol/name"
    )
    mode: Literal["max", "min"] = "max"
    budget: Budget = Budget()
    resources: Resources = Resources()

    # What a sweep of one stage may have, and this has not: every stage is a grid whose trials run to their end.
    search: ClassVar[Grid] = Grid()
    scheduler: ClassVar[NoScheduler] = NoScheduler()
    parameters: ClassVar[Mapping[str, Any]] = {}
    baseline: ClassVar[str | None] = None

    @model_validator(mode="after")
    def _linked(self) -> StagesFile:
        for name, stage in self.stages.items():
            where = f"stages.{name}"
            if stage.base is None and stage.refine is None:
                raise ValueError(f"{where}: needs base (what it trains) or refine (how it makes labels)")
            if stage.frozen and stage.of is not None:
                raise ValueError(f"{where}: has base and refine; a stage trains or makes labels: take one out")
            if stage.refine is not None and stage.of is None and stage.base is None:
                raise ValueError(
                    f"{where}.of: is missing: the stage whose maps it refines (or base: clip-es, for a frozen CLIP's)"
                )
            if stage.network is not None and stage.refine is None:
                raise ValueError(f"{where}.network: is of a stage with refine; one that trains takes labels alone (of)")
            for field in _LINKS:
                before = getattr(stage, field)
                if before is not None and before not in self.stages:
                    raise ValueError(f"{where}.{field}: {before!r}: no such stage{_meant(before, name, self.stages)}")
        for name in self.stages:
            _refuse_circle(name, self.stages)
        for name, stage in self.stages.items():
            if stage.trains and stage.of is not None and self.stages[stage.of].trains:
                raise ValueError(
                    f"stages.{name}.of: {stage.of!r} trains a network, which is no set of labels: put a stage with "
                    "refine between (refine: {kind: none} thresholds its maps)"
                )
            if stage.network is not None and not self.stages[stage.network].trains:
                raise ValueError(f"stages.{name}.network: {stage.network!r} makes labels and trains no network")
            _check_keys(f"stages.{name}", stage)
        return self

    @property
    def objectives(self) -> tuple[tuple[str, Literal["max", "min"]], ...]:
        """(metric, mode) of what decides."""
        return ((self.metric, self.mode),)

    def ordered(self) -> list[str]:
        """Names of the stages, each after those that it takes from."""
        return sorted(self.stages, key=lambda name: len(self.line(name)))

    def line(self, name: str) -> list[str]:
        """A stage after all that it comes from, the first first."""
        before = dict.fromkeys(part for other in self.stages[name].inputs for part in self.line(other))
        return [*before, name]

    def last(self) -> list[str]:
        """Stages that no other takes from: what the sweep is for."""
        taken = {name for stage in self.stages.values() for name in stage.inputs}
        return [name for name in self.stages if name not in taken]

    def training(self, name: str, source: str, labels: str | None = None) -> SweepFile:
        """The sweep that a stage with a base is, on the labels under a key of storage. Raises UsageError.

        Of a frozen network it has the network's configurations, and not those of the refinement.
        """
        stage = self.stages[name]
        own = ("base", "set", "parameters", "derived", "points")
        fields = {"name": self.name} | {k: getattr(stage, k) for k in own} | {"seeds": self.seeds}
        if stage.frozen:
            fields |= {part: _of_network(getattr(stage, part)) for part in ("set", "parameters")} | {"points": ()}
        fields["resources"] = dict(self.resources)
        if labels is not None:
            fields["set"] = stage.set | {LABELS: labels}
        return validate(SweepFile, fields, f"{source}: stages.{name}")


def is_staged(file: Path) -> bool:
    """Whether a sweep file names stages. Raises UsageError."""
    return "stages" in read_yaml(file)


def load_stages(path: Path) -> StagesFile:
    """Read and check a sweep file of stages. Raises UsageError, one line per mistake."""
    return validate(StagesFile, read_yaml(path), str(path))


def with_run_options(file: StagesFile, seeds: tuple[int, ...] | None, max_concurrent: int | None) -> StagesFile:
    """The sweep with what the command line replaces. Raises UsageError."""
    changes: dict[str, Any] = {"seeds": seeds} if seeds is not None else {}
    if max_concurrent is not None:
        changes["resources"] = dict(file.resources) | {"max_concurrent": max_concurrent}
    return validate(StagesFile, _given(file) | changes, "--seeds, --max-concurrent")


def with_overrides(file: StagesFile, changes: Mapping[str, Any], source: str) -> StagesFile:
    """The sweep with dotted fields of the command line put into its stages' `set`.

    `STAGE.FIELD` is a field of one stage; a FIELD alone is put into every stage that has it. Raises UsageError for a
    field that no stage has, or that a stage varies.
    """
    fields = {name: fields_of(file, name, source) for name in file.stages}
    sets: dict[str, dict[str, Any]] = {name: dict(stage.set) for name, stage in file.stages.items()}
    for key, value in changes.items():
        first, _, rest = key.partition(".")
        if first in file.stages and _has(fields[first], rest):
            targets, field = [first], rest
        else:
            targets, field = [name for name in file.stages if _has(fields[name], key)], key
        if not targets:
            known = [*dict.fromkeys(k for some in fields.values() for k in some)]
            close = difflib.get_close_matches(rest if first in file.stages else key, known, n=1)
            raise UsageError(f"--set: {key}: no stage has it" + (f", did you mean {close[0]}?" if close else ""))
        for name in targets:
            stage = file.stages[name]
            if field in stage.parameters or field in stage.derived:
                how = "varies" if field in stage.parameters else "derives"
                raise UsageError(f"--set: {key}: stages.{name} of {source} {how} it; remove one of the two")
            sets[name][field] = value
    stages = {name: stage.model_copy(update={"set": sets[name]}) for name, stage in file.stages.items()}
    return validate(StagesFile, _given(file) | {"stages": stages}, "--set")


def _given(file: StagesFile) -> dict[str, Any]:
    """What a file says: a default stays one."""
    return {name: value for name, value in file if name in file.model_fields_set}


def fields_of(file: StagesFile, name: str, source: str) -> list[str]:
    """Dotted fields that a stage may set. Raises UsageError for a base that cannot be read."""
    stage = file.stages[name]
    own = known_fields(file.training(name, source), f"{source}: stages.{name}", own=True) if stage.base else []
    if stage.trains:
        return own
    refined = [f"{REFINE}.{field}" for field in refinements.fields()]
    return [*(field for field in own if field.startswith(OF_FROZEN)), *refined]


def of_refinement(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The dotted fields of a refinement among those of a stage."""
    return {key: value for key, value in fields.items() if key.startswith(f"{REFINE}.")}


def _of_network(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in fields.items() if not key.startswith(f"{REFINE}.")}


def _has(known: list[str], key: str) -> bool:
    return key in known or key.startswith("model.backbone_args.")


def _meant(wrong: str, name: str, stages: Mapping[str, Stage]) -> str:
    others = [other for other in stages if other != name]
    close = difflib.get_close_matches(wrong, others, n=1)
    return f", did you mean {close[0]}?" if close else f"; the others are {', '.join(others) or 'none'}"


def _refuse_circle(name: str, stages: Mapping[str, Stage]) -> None:
    def follow(seen: tuple[str, ...], told: str, first: str | None) -> None:
        for field in _LINKS:
            if (before := getattr(stages[seen[-1]], field)) is None:
                continue
            text, link = f"{told} {field} {before}", first or field
            if before in seen:
                raise ValueError(f"stages.{name}.{link}: goes in a circle: {text}")
            follow((*seen, before), text, link)

    follow((name,), name, None)


def _check_keys(where: str, stage: Stage) -> None:
    """What a stage's kind allows among its fields."""
    places: dict[str, Mapping[str, Any]] = {"set": stage.set, "parameters": stage.parameters, "derived": stage.derived}
    places |= {f"points[{i}].set": point.set for i, point in enumerate(stage.points)}
    for place, keys in places.items():
        for key in keys:
            if stage.trains and stage.of is not None and key == LABELS:
                raise ValueError(f"{where}.{place}: {key}: is what stage {stage.of} makes; take one out")
            if stage.frozen and place in ("set", "parameters") and key.startswith(OF_FROZEN):
                continue
            if not stage.trains and not key.startswith(f"{REFINE}."):
                known = ", ".join(f"{first}…" for first in (f"{REFINE}.", *(OF_FROZEN if stage.frozen else ())))
                raise ValueError(f"{where}.{place}: {key}: the stage trains nothing; its fields are {known}")
    if not stage.trains:
        if stage.derived:
            raise ValueError(f"{where}.derived: a refinement has no derived fields")
        if based := [point.name for point in stage.points if point.base]:
            raise ValueError(f"{where}.points: {based[0]}: base: the stage trains nothing")
    try:
        parsed = spaces.parse(stage.parameters)
    except UsageError as error:
        raise ValueError(f"{where}.parameters: {error}") from None
    if ranges := [drawn for p in parsed for drawn, space in p.spaces() if space.choice is None]:
        raise ValueError(f"{where}.parameters.{ranges[0]}: a range; a stage is a grid, which takes lists")
