"""The trials of a sweep of stages: every configuration of a stage on every one of the stages that it takes from.

The identity of a trial contains that of its input, so that what comes before a change is not run again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mcc_core.data.index import DataIndex, build_index
from mcc_core.errors import UsageError
from mcc_core.experiment_files import load_base
from mcc_core.methods.registry import FROZEN, method_of_fields, supervision_of
from orchestrator.planning.configurations import MAX_TRIALS, Candidate, ConfigurationBuilder, Trial, text
from orchestrator.planning.identity import file_contents, frozen_identity, refined_identity, trial_identity
from orchestrator.planning.label_sets import labelled, named
from orchestrator.records import layout
from orchestrator.records.label_sets import fetch_labels
from orchestrator.spec import refinements
from orchestrator.spec import space as spaces
from orchestrator.spec.stages_file import LABELS, REFINE, Stage, StagesFile, of_refinement
from orchestrator.spec.sweep_file import SweepFile, check_fields, fixed_fields
from orchestrator.storage.store import Storage


@dataclass(frozen=True)
class _Line:
    """What a trial comes of, itself among it, by stage."""

    trials: dict[str, str]  # identities
    labels: dict[str, tuple[str, ...]]  # what its name is made of


@dataclass
class StageTrials:
    """The trials of a sweep of stages, each once, inputs before what takes them."""

    file: StagesFile
    source: str
    home: Path  # where data that is generated lies
    storage: Storage
    distant: bool = False  # trials may run on other machines
    trials: dict[str, Trial] = field(default_factory=dict)
    indexes: dict[str, DataIndex] = field(default_factory=dict)  # by fingerprint
    duplicates: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._of_stage: dict[str, list[Trial]] = {}
        self._any_seed: set[str] = set()  # identities that no random draw is part of: every seed takes them
        self._lines: dict[tuple[str, str], _Line] = {}  # of a stage and identity
        self._by_data: dict[str, DataIndex] = {}
        for name in self.file.ordered():
            stage = self.file.stages[name]
            self._of_stage[name] = []
            if stage.frozen:
                self._begin(name, stage)
            elif stage.of is None:
                self._train(name, stage, None)
            for trial in self._of_stage.get(stage.of or "", ()):
                if stage.trains:
                    self._train(name, stage, trial)
                else:
                    self._refine(name, stage, trial)

    def _train(self, name: str, stage: Stage, of: Trial | None) -> None:
        """Trials of a stage that trains: with every seed, or with that of what it takes."""
        where = f"{self.source}: stages.{name}"
        _require_bases(stage, where)
        sweep = self.file.training(name, self.source, layout.labels(of.identity) if of else None)
        if of is not None:
            self._require_labels(sweep, where)
        if not self._of_stage[name]:  # of the others only the labels' identity differs
            check_fields(sweep, where)
        candidates, _ = ConfigurationBuilder(sweep, where).planned()
        for candidate in candidates:
            if of is None:
                fetch_labels(self.storage, candidate.experiment, self.home)
            for seed in self.file.seeds if of is None or of.identity in self._any_seed else (of.seed,):
                self._add(name, _named(sweep, candidate), self._trained(name, candidate, seed, of, where))

    def _trained(self, name: str, candidate: Candidate, seed: int, of: Trial | None, where: str) -> Trial:
        index = self._index(candidate.experiment)
        experiment, with_set = labelled(candidate.experiment, index, self.home)
        fingerprint = index.fingerprint
        if with_set is not index:
            self.indexes[fingerprint] = with_set
        if of is not None and fingerprint != of.fingerprint:
            raise UsageError(
                f"{where}: data: other images than those of stage {self.file.line(name)[0]}, whose labels it trains "
                "on; give both stages the same data.… fields"
            )
        if of is not None and (made := self._supervision(of)) != supervision_of(experiment):
            saw = "masks that people drew" if made == "full" else "no masks"
            raise UsageError(
                f"{where}: labels.supervision: {supervision_of(experiment)}: what makes its labels saw {saw}; expected "
                f"{made}"
            )
        identity = trial_identity(experiment, seed, fingerprint)
        varied = {key: value for key, value in candidate.varied.items() if key != LABELS}
        trial = Trial(identity, "", varied, experiment, seed, "", fingerprint, name, of.identity if of else None)
        return replace(trial, files=file_contents(experiment))

    def _supervision(self, of: Trial) -> str:
        """Of what the labels that a trial makes come from: its seeds and all networks that refined them."""
        line = [of]
        for trial in line:  # which grows
            line += [self.trials[identity] for identity in trial.inputs]
        own = "full" if any(supervision_of(trial.experiment) == "full" for trial in line) else "weak"
        return refinements.supervision(own, [trial.refine for trial in line if trial.refine is not None])

    def _begin(self, name: str, stage: Stage) -> None:
        """Trials of a stage that makes labels of a frozen network's maps, which are the same with every seed."""
        where = f"{self.source}: stages.{name}"
        _require_bases(stage, where)
        sweep = self.file.training(name, self.source)
        method = method_of_fields(fixed_fields(sweep, None, where), where)
        if method.name not in FROZEN:
            raise UsageError(
                f"{where}.base: {stage.base}: is trained (method {method.name}), and a stage with refine trains "
                f"nothing: take a frozen network ({', '.join(FROZEN)}), or name the stage that trains it as `of`"
            )
        check_fields(sweep, where)
        candidates, _ = ConfigurationBuilder(sweep, where).planned()
        for candidate in candidates:
            index = self._index(candidate.experiment)
            try:
                method.check_classes(candidate.experiment, index.classes)
            except UsageError as error:
                raise UsageError(f"{where}: {error}") from None
            identity = frozen_identity(candidate.experiment, index.fingerprint)
            self._any_seed.add(identity)
            experiment = candidate.experiment
            first = Trial(identity, "", candidate.varied, experiment, self.file.seeds[0], "", index.fingerprint)
            first = replace(first, files=file_contents(experiment))
            self._refine(name, stage, first, _named(sweep, candidate))

    def _refine(self, name: str, stage: Stage, of: Trial, frozen: tuple[str, ...] = ()) -> None:
        """Trials of a stage that makes labels.

        Args:
            of: whose product is refined; of a stage with a frozen network no trial of the sweep.
            frozen: what differs in that network.
        """
        where = f"{self.source}: stages.{name}"
        maps_of = None if of.refine is not None else of.experiment
        confident = of.refine is not None and bool(of.refine.get("keep_confidence", True))
        brought = self._brought(stage, of)
        if not brought:
            raise UsageError(f"{where}.network: {stage.network}: trains no network with what {of.name} comes of")
        needed = stage.network is None
        for point, varied, fields in refined(stage, where):
            parts = (*frozen, *((point,) if point else ()))
            for network in brought:
                other = network.experiment if network else None
                refinement = refinements.refinement(fields, where, maps_of, other, confident=confident)
                taken = network.identity if network is not None and refinements.takes_network(refinement) else None
                needed = needed or taken is not None
                self._require_seen(list(refinement.networks.values()), where)
                learners = refinements.learners_of_files(refinement)
                identity = refined_identity(refinement.decisive(), of.identity, of.fingerprint, taken, learners)
                refine = refinement.model_dump(mode="json", exclude_unset=True)
                seed, before = of.seed, None if stage.frozen else of.identity
                if of.identity in self._any_seed:
                    if taken is None:
                        self._any_seed.add(identity)
                    elif network is not None:
                        seed = network.seed
                own = (of.varied if stage.frozen else {}) | varied
                made = Trial(identity, "", own, of.experiment, seed, "", of.fingerprint, name, before)
                files = of.files if stage.frozen else {}
                self._add(name, parts, replace(made, refine=refine, network=taken, files=files))
                if taken is None:  # and so with every network
                    break
        if not needed:
            raise UsageError(f"{where}.network: {stage.network}: no kind of its refinement takes a trained network")

    def _require_seen(self, files: Sequence[Path], where: str) -> None:
        """Raise UsageError for a network's file that machines of a cluster may lack, before its seeds are trained."""
        shared = self.storage.local("")
        for file in files if self.distant else ():
            if shared is None or not file.is_relative_to(shared.resolve()):
                raise UsageError(
                    f"{where}.network: {file}: other machines of the cluster may lack it: name the stage that trains "
                    "it, or put it into a storage that is a folder they share"
                )

    def _brought(self, stage: Stage, of: Trial) -> list[Trial | None]:
        """The networks that a stage brings along to refine what `of` made.

        They have its seed, and come of the same trials where both come of the same stage.
        """
        if stage.network is None:
            return [None]
        line = self._lines[stage.of, of.identity].trials if stage.of is not None else {}
        return [
            network
            for network in self._of_stage[stage.network]
            if (network.seed == of.seed or of.identity in self._any_seed)
            and all(line.get(k, v) == v for k, v in self._lines[stage.network, network.identity].trials.items())
        ]

    def _add(self, name: str, parts: tuple[str, ...], trial: Trial) -> None:
        """Name a trial after its stage and what differs along its line, and keep it unless the same is there."""
        stage = self.file.stages[name]
        own = tuple(f"{name}:{part}" if self._unclear(name) else part for part in parts)
        line = _Line({name: trial.identity}, {name: own})
        for link, identity in ((stage.network, trial.network), (stage.of, trial.input)):
            if link is not None and identity is not None:
                before = self._lines[link, identity]
                line = _Line(before.trials | line.trials, before.labels | line.labels)
        self._lines.setdefault((name, trial.identity), line)
        point = " ".join((name, *(part for labels in line.labels.values() for part in labels)))
        several = len(self.file.seeds) > 1 and trial.identity not in self._any_seed
        full = f"{point} s{trial.seed}" if several else point
        if trial.identity in self.trials:
            self.duplicates.append(full)
            known = self.trials[trial.identity]
            if known not in self._of_stage[name]:
                self._of_stage[name].append(known)
            return
        varied = dict(trial.varied)
        for above in (self.trials[identity] for identity in trial.inputs):
            clashes = {k for k, v in above.varied.items() if k in trial.varied or varied.get(k, v) != v}
            varied = {f"{above.stage}/{k}" if k in clashes else k: v for k, v in above.varied.items()} | varied
        self.trials[trial.identity] = replace(trial, name=full, point=point, varied=varied)
        self._of_stage[name].append(self.trials[trial.identity])
        if len(self.trials) > MAX_TRIALS:
            raise UsageError(f"{self.source}: stages: more than the {MAX_TRIALS} trials that one sweep may have")

    def _unclear(self, name: str) -> bool:
        """Whether a stage of the same line varies a field of the same short name."""
        lines = [line for last in self.file.last() if name in (line := self.file.line(last))]
        short = {
            other: {key.rsplit(".", 1)[-1] for key in self.file.stages[other].parameters}
            for line in lines
            for other in line
        }
        return any(short[name] & names for other, names in short.items() if other != name)

    def _require_labels(self, sweep: SweepFile, where: str) -> None:
        for base in dict.fromkeys((sweep.base, *(point.base for point in sweep.points if point.base))):
            method = method_of_fields(fixed_fields(sweep, base, where), where)
            if LABELS.split(".")[0] not in method.experiment.model_fields:
                raise UsageError(
                    f"{where}.base: {base}: method {method.name} trains on image-level labels and takes no label maps; "
                    "take a base of method segmentation, or leave `of` out"
                )

    def _index(self, experiment: Any) -> DataIndex:
        key = experiment.data.model_dump_json()
        if key not in self._by_data:
            index = build_index(experiment.data, self.home)
            self._by_data[key] = self.indexes[index.fingerprint] = index
        return self._by_data[key]


def _named(sweep: SweepFile, candidate: Candidate) -> tuple[str, ...]:
    """What a configuration adds to names: where it is the only one, what it learns from beside image-level labels."""
    told = named("", candidate.experiment).strip()
    return (candidate.point,) if sweep.parameters or sweep.points else (told,) if told else ()


def _require_bases(stage: Stage, where: str) -> None:
    """Raise UsageError, with the field, for a base that cannot be read."""
    bases = {"base": stage.base} | {f"points[{i}].base": point.base for i, point in enumerate(stage.points)}
    for place, base in bases.items():
        try:
            load_base(base or str(stage.base))
        except UsageError as error:
            raise UsageError(f"{where}.{place}: {error}") from None


def refined(stage: Stage, where: str) -> list[tuple[str, dict[str, str], dict[str, Any]]]:
    """(name, varied fields, fields of the refinement) of every configuration of a stage that makes labels."""
    assert stage.refine is not None
    fixed = _with(stage.refine, of_refinement(stage.set))
    varied = of_refinement(stage.parameters)
    parameters = spaces.parse(varied)
    short = Counter(key.rsplit(".", 1)[-1] for key in varied)
    made = []
    if varied or not stage.points:
        for values in spaces.grid(parameters, lambda key: _get(fixed, key)):
            shown = [
                f"{key.rsplit('.', 1)[-1] if short[key.rsplit('.', 1)[-1]] == 1 else key}={text(value)}"
                for key, value in values.items()
            ]
            made.append((" ".join(shown), values))
    made += [(point.name, point.set) for point in stage.points]
    return [(name, {k: text(v) for k, v in values.items()}, _with(fixed, values)) for name, values in made]


def _with(fields: Mapping[str, Any], dotted: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of a refinement with dotted ones, `refine.…`, put in."""
    result = {key: dict(value) if isinstance(value, Mapping) else value for key, value in fields.items()}
    for key, value in dotted.items():
        _, *sections, last = key.split(".")
        node = result
        for section in sections:
            node = node.setdefault(section, {})
        node[last] = value
    return result


def _get(fields: Mapping[str, Any], key: str) -> Any:
    node: Any = fields
    for part in key.removeprefix(f"{REFINE}.").split("."):
        node = node.get(part) if isinstance(node, Mapping) else None
    return node
