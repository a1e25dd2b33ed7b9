"""The configurations of a sweep: what its file makes of the base, and their trials with names and identities."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mcc_core.config import DataConfig, Experiment
from mcc_core.data.index import DataIndex, build_index
from mcc_core.data.label_source import stored_identity
from mcc_core.errors import UsageError
from mcc_core.experiment_files import merge
from mcc_core.files import json_digest
from mcc_core.methods.registry import experiment_of, method_of
from orchestrator.planning.identity import file_contents, trial_identity
from orchestrator.planning.label_sets import labelled, named
from orchestrator.search.population import Drawn, first_values
from orchestrator.search.tpe import Proposal, TpeSearch
from orchestrator.spec import space as spaces
from orchestrator.spec.schedulers import Pbt
from orchestrator.spec.space import Random, Tpe
from orchestrator.spec.sweep_file import SweepFile, field_value, fixed_fields, with_derived

MAX_TRIALS = 10_000


@dataclass(frozen=True)
class Trial:
    """One experiment with one seed."""

    identity: str
    name: str  # short, unique within the sweep
    varied: dict[str, str]  # dotted field to value as text: what makes it differ from other trials
    experiment: Experiment
    seed: int
    point: str  # name of the configuration, the same for all of its seeds
    fingerprint: str  # of the data
    stage: str = ""  # of a sweep of stages: the name of this trial's
    input: str | None = None  # identity of the trial whose product this one takes
    refine: dict[str, Any] | None = None  # fields of a refinement: labels are made, nothing is trained
    network: str | None = None  # identity of the trial whose network the refinement brings along
    files: dict[str, str] = field(default_factory=dict)  # SHA-256 of each file of the experiment that it reads

    @property
    def inputs(self) -> tuple[str, ...]:
        """Identities of the trials that must have finished before."""
        return tuple(identity for identity in (self.input, self.network) if identity is not None)

    @property
    def workers(self) -> int:
        """Processes that run it."""
        return 1 if self.refine is not None else self.experiment.train.workers


@dataclass(frozen=True)
class Candidate:
    """A configuration, not yet known to differ from others."""

    point: str
    varied: dict[str, str]
    experiment: Experiment


class ConfigurationBuilder:
    """Makes configurations of a sweep on its base. Raises UsageError for those that are not valid."""

    def __init__(self, sweep: SweepFile, source: str) -> None:
        self.sweep, self.source = sweep, source
        self.fixed = fixed_fields(sweep, None, source)
        self.parameters = spaces.parse(sweep.parameters)
        self._short = _short_names(sweep.parameters)
        self._unlike = any(point.base for point in sweep.points)

    def base(self, name: str) -> Any:
        """A field's value before anything is varied."""
        return field_value(self.fixed, name, self.source)

    def candidate(
        self,
        values: Mapping[str, Any],
        name: str | None = None,
        number: int | None = None,
        base: str | None = None,
    ) -> Candidate:
        """The configuration with these fields changed, called `name` or by its values (after its `number`).

        Args:
            base: what it starts from, where that is not the sweep's base.
        """
        fixed = self.fixed if base is None else fixed_fields(self.sweep, base, self.source)
        where = f"{self.source}: {name or dict(values)}" if values else self.source
        fields = with_derived(self.sweep, merge(fixed, values, self.source), self.source)
        experiment = experiment_of(fields, where)
        experiment = _absolute(experiment)
        varied = {key: text(_get(experiment, key)) for key in ("method", *values) if key in values or self._unlike}
        if name is None:
            brief = text if number is None else _rounded
            shown = [f"{self._short[k]}={brief(_get(experiment, k))}" for k in values]
            name = " ".join(shown if number is None else [f"#{number}", *shown]) or Path(self.sweep.base).stem
        return Candidate(named(name, experiment), varied, experiment)

    def planned(self) -> tuple[list[Candidate], list[str]]:
        """(configurations that are known before anything runs, why drawn ones were left out)."""
        sweep, candidates, left_out = self.sweep, [], []
        points = sweep.all_points(self.fixed)
        if isinstance(sweep.search, Random):
            for number in range(sweep.search.points):
                values = spaces.random_point(self.parameters, sweep.search.seed, number, self.base)
                try:
                    candidates.append(self.candidate(values, number=number))
                except UsageError as error:
                    left_out.append(str(error).splitlines()[0])
        elif isinstance(sweep.scheduler, Pbt):
            for member in range(sweep.scheduler.population):
                candidates.append(self.candidate(self.member(member).fields, f"member-{member}"))
        elif not isinstance(sweep.search, Tpe) and (sweep.parameters or not points):
            # Without parameters the grid is the base itself, which the points would stand beside.
            self._check_size(len(points))
            candidates += [self.candidate(values) for values in spaces.grid(self.parameters, self.base)]
        candidates += [self.candidate(point.set, point.name, base=point.base) for point in points]
        return candidates, left_out

    def member(self, number: int) -> Drawn:
        """What member `number` of a population begins with: the first of its draws that is valid."""
        assert isinstance(self.sweep.scheduler, Pbt)
        for attempt in range(20):
            drawn = first_values(self.sweep.scheduler, self.parameters, number + 1000 * attempt, self.base)
            try:
                self.candidate(drawn.fields)
                return drawn
            except UsageError as error:
                problem = error
        raise problem

    def definition(self) -> str:
        """Hash of what a search or a population is, apart from how long it goes on: its proposals belong together."""
        file = self.sweep.model_dump(mode="json", include={"parameters", "derived", "search", "metric", "mode"})
        file["search"].pop("points", None)
        scheduler = self.sweep.scheduler.model_dump(mode="json") if isinstance(self.sweep.scheduler, Pbt) else None
        return json_digest([file, scheduler])

    def _check_size(self, points: int) -> None:
        count = len(self.sweep.seeds) * (spaces.grid_size(self.parameters) + points)
        if count > MAX_TRIALS:
            raise UsageError(
                f"{self.source}: parameters: {count} trials are more than the {MAX_TRIALS} that one sweep may have"
            )


@dataclass
class ConfigurationSet:
    """The trials of a sweep, each once."""

    builder: ConfigurationBuilder
    home: Path  # where data that is generated lies
    trials: dict[str, Trial] = field(default_factory=dict)
    indexes: dict[str, DataIndex] = field(default_factory=dict)  # by fingerprint, with the label set of the last trial
    duplicates: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._taken: Counter[str] = Counter()
        self._by_data: dict[str, DataIndex] = {}

    def add(self, candidate: Candidate) -> list[Trial]:
        """A configuration's trials, one for each seed; what is there already is not added again."""
        seeds = self.builder.sweep.seeds
        added = []
        point, (experiment, fingerprint) = candidate.point, self._labelled(candidate.experiment)
        for seed in seeds:
            name = f"{point} s{seed}" if len(seeds) > 1 else point
            identity = trial_identity(experiment, seed, fingerprint)
            if isinstance(self.builder.sweep.scheduler, Pbt):
                identity = self._member_identity(point, identity)
            if identity in self.trials:
                self.duplicates.append(name)
            else:
                self._taken[name] += 1
                name = name if self._taken[name] == 1 else f"{name} #{self._taken[name]}"
                trial = Trial(identity, name, candidate.varied, experiment, seed, point, fingerprint)
                self.trials[identity] = replace(trial, files=file_contents(experiment))
            added.append(self.trials[identity])
        return added

    def base_identity(self) -> str:
        """Identity of the sweep's base with its first seed."""
        experiment, fingerprint = self._labelled(self.builder.candidate({}).experiment)
        return trial_identity(experiment, self.builder.sweep.seeds[0], fingerprint)

    def _member_identity(self, point: str, identity: str) -> str:
        """A member of a population is no ordinary trial: its configuration changes, and so do its weights."""
        content = f"{point} {identity} {self.builder.definition()}"
        return f"pbt-{hashlib.sha256(content.encode()).hexdigest()[:12]}"

    def _labelled(self, experiment: Experiment) -> tuple[Experiment, str]:
        """The experiment with its label set named by identity, and the fingerprint of its data."""
        index = self._index(experiment.data)
        experiment, with_set = labelled(experiment, index, self.home)
        if with_set is not index:
            self.indexes[index.fingerprint] = with_set
        return experiment, index.fingerprint

    def _index(self, data: DataConfig) -> DataIndex:
        key = data.model_dump_json()
        if key not in self._by_data:
            index = build_index(data, self.home)
            self._by_data[key] = self.indexes[index.fingerprint] = index
        return self._by_data[key]


class OpenSearch:
    """A TPE search whose later points are not known when it starts."""

    def __init__(self, configurations: ConfigurationSet, recorded: Sequence[Mapping[str, Any]]) -> None:
        sweep = configurations.builder.sweep
        assert isinstance(sweep.search, Tpe)
        self.config, self.configurations = sweep.search, configurations
        self.search = TpeSearch(
            sweep.search,
            configurations.builder.parameters,
            [m for _, m in sweep.objectives],
            configurations.builder.base,
        )
        self.record: list[dict[str, Any]] = []  # what the search is rebuilt from
        self.identities: dict[int, list[str]] = {}  # of each proposal; none where it was not valid
        for record in recorded:
            self.propose(record["params"])
        while len(self.record) < min(self.config.startup, self.config.points):
            self.propose()

    @property
    def left(self) -> int:
        """Points still to be proposed."""
        return max(0, self.config.points - len(self.record))

    def propose(self, recorded: Mapping[str, Any] | None = None) -> list[Trial]:
        """The trials of the next point; none where the point is not a valid experiment."""
        proposal: Proposal = self.search.propose(recorded)
        self.record.append({"number": proposal.number, "params": proposal.params})
        try:
            trials = self.configurations.add(
                self.configurations.builder.candidate(proposal.values, number=proposal.number)
            )
        except UsageError:
            self.search.tell(proposal.number, None)
            trials = []
        self.identities[proposal.number] = [trial.identity for trial in trials]
        return trials


def text(value: Any) -> str:
    """A value as people write it: 4 and not 4.0, a list without spaces, anything else as it prints."""
    if isinstance(value, float):
        return repr(value).removesuffix(".0")
    if isinstance(value, tuple):
        return ",".join(text(v) for v in value)
    return re.sub(r"\s+", " ", str(value))


def _rounded(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else text(value)


def _absolute(experiment: Experiment) -> Experiment:
    """Paths of the experiment as seen from everywhere; workers run in other folders."""
    data, model = experiment.data, experiment.model
    changes: dict[str, Any] = {}
    if data.root is not None:
        changes["root"] = data.root.expanduser().resolve()
    if isinstance(data.classes, Path):
        changes["classes"] = data.classes.expanduser().resolve()
    labels = method_of(experiment).labels(experiment)
    if labels is not None and labels.source is not None and stored_identity(labels.source) is None:
        source = labels.model_copy(update={"source": labels.source.expanduser().resolve()})
        experiment = experiment.model_copy(update={"labels": source})
    if changes:
        experiment = experiment.model_copy(update={"data": data.model_copy(update=changes)})
    if isinstance(model.weights, Path):
        file = model.weights.expanduser().resolve()
        if not file.is_file():
            raise UsageError(
                f"model.weights: {file}: no such file; give a .safetensors or .pth file (--set model.weights=FILE), "
                "or timm to download, or random"
            )
        experiment = experiment.model_copy(update={"model": model.model_copy(update={"weights": file})})
    for name, file in method_of(experiment).files(experiment).items():
        section, field = name.split(".")
        config = getattr(experiment, section)
        if Path(getattr(config, field)).expanduser() != file.expanduser():  # the name of a shipped one
            continue
        found = file.expanduser().resolve()
        if not found.is_file():
            raise UsageError(f"{name}: {found}: no such file")
        experiment = experiment.model_copy(update={section: config.model_copy(update={field: str(found)})})
    return experiment


def _short_names(keys: Mapping[str, Any]) -> dict[str, str]:
    last = Counter(key.rsplit(".", 1)[-1] for key in keys)
    return {key: name if last[name := key.rsplit(".", 1)[-1]] == 1 else key for key in keys}


def _get(experiment: Experiment, key: str) -> Any:
    node: Any = experiment
    for part in key.split("."):
        node = node[part] if isinstance(node, dict) else getattr(node, part)
    return node
