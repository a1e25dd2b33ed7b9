"""From a sweep file to checked trials: everything that can be wrong is found here, before anything is trained."""

from __future__ import annotations

import difflib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from mcc_core.config import Experiment
from mcc_core.data.index import DataIndex
from mcc_core.errors import UsageError
from mcc_core.files import json_digest
from orchestrator.cluster.session import local_capacity
from orchestrator.planning.configurations import ConfigurationBuilder, ConfigurationSet, OpenSearch, Trial
from orchestrator.planning.disk import predicted_bytes
from orchestrator.planning.earlier import earlier_notes, not_begun
from orchestrator.planning.estimate import Estimate, estimate_sweep
from orchestrator.planning.label_sets import FULL
from orchestrator.planning.places import places
from orchestrator.records import layout
from orchestrator.records.events import TrialState, trial_states
from orchestrator.records.label_sets import fetch_labels
from orchestrator.records.plans import PlanRecord, TrialRecord
from orchestrator.records.status import TrialStatus
from orchestrator.records.sweeps import sweeps
from orchestrator.settings import Settings
from orchestrator.spec.schedulers import PRUNING
from orchestrator.spec.space import Tpe
from orchestrator.spec.stages_file import StagesFile
from orchestrator.spec.sweep_file import SweepFile, check_fields, known_fields, unknown_field
from orchestrator.storage.store import Storage
from orchestrator.text import size_text

CLASS_SCORE = "val/cls/single/f1"  # needs no masks


@dataclass(frozen=True)
class Plan:
    """What is to be run."""

    sweep: str  # unique id
    file: SweepFile | StagesFile  # on its base
    source: str  # where the sweep came from, for messages
    trials: tuple[Trial, ...]
    indexes: Mapping[str, DataIndex]  # by fingerprint
    concurrent: int  # trials at a time
    gpus_per_worker: float
    duplicates: tuple[str, ...]  # names of trials left out because another is the same
    finished: frozenset[str] = frozenset()  # identities that need no run
    estimate: Estimate | None = None
    scored_by: Mapping[str, str] = field(default_factory=dict)  # metric of the checkpoints of each stage that trains
    seconds: Mapping[str, float] = field(default_factory=dict)  # by identity, of stages' trials that are left
    disk_bytes: float | None = None  # that it will add to storage, at most
    notes: tuple[str, ...] = ()  # worth a line before it starts
    warnings: tuple[str, ...] = field(default_factory=tuple)
    open: OpenSearch | None = None  # a search that proposes more trials while it runs
    builder: ConfigurationBuilder | None = None  # of further configurations

    @property
    def index(self) -> DataIndex:
        """Data of the first trial."""
        return self.indexes[self.trials[0].fingerprint]

    @property
    def estimate_s(self) -> float | None:
        """Predicted seconds until the end, None when nothing could be measured."""
        return self.estimate.total_s if self.estimate else None


def plan_sweep(
    sweep: SweepFile,
    source: str,
    base: str | None = None,
    overrides: Mapping[str, Any] | None = None,
    workers: int | None = None,
    settings: Settings | None = None,
    *,
    estimate: bool = True,
) -> Plan:
    """Check a sweep and everything it needs.

    Writes nothing but caches.

    Args:
        source: where the sweep comes from, for messages.
        estimate: predict time and disk too, by a few training steps where no trial of the kind ran before.

    Raises UsageError or DataError, one line per mistake.
    """
    settings = settings or Settings.from_environment()
    chosen = _with_overrides(sweep, source, base, overrides or {}, workers)
    check_fields(chosen, source)
    storage = Storage(settings.storage)
    builder = ConfigurationBuilder(chosen, source)
    candidates, left_out = builder.planned()
    known = ConfigurationSet(builder, settings.home)
    for candidate in candidates:
        fetch_labels(storage, candidate.experiment, settings.home)
        known.add(candidate)
    sweep_id, opened = _search(chosen, builder, known, storage)
    trials = tuple(known.trials.values())
    if not trials:
        raise UsageError(f"{source}: parameters: no valid configuration was drawn; the first: {left_out[0]}")
    if chosen.baseline is not None and f"{chosen.baseline}{FULL}" in {t.point for t in trials}:
        chosen = chosen.model_copy(update={"baseline": f"{chosen.baseline}{FULL}"})
    _check_baseline(chosen, source, trials)
    named = "metric" in sweep.model_fields_set or len(chosen.objectives) > 1
    chosen, unscored = _measurable(chosen, source, list(known.indexes.values()), named=named)
    check_metrics(chosen, source, trials, known.indexes)
    check_models(trials, known.indexes, download=settings.ray_address is None)
    capacity = local_capacity() if settings.ray_address is None else None
    room = places(chosen, source, trials, capacity)
    notes = list(room.notes)
    states = trial_states(storage, (t.identity for t in trials))
    notes += precision_notes(trials) if room.gpus else []
    notes += unscored
    notes += [f"{len(left_out)} drawn points are not valid and left out, such as {left_out[0]}"] if left_out else []
    sweep_id = sweep_id or f"{chosen.name}-{_short_hash([t.identity for t in trials])}"
    if not storage.exists(layout.plan(sweep_id)):  # what was submitted before has said so
        notes += earlier_notes(sweeps(storage, chosen.name), sweep_id, not_begun(trials, states))
    plan = Plan(
        sweep=sweep_id,
        file=chosen,
        source=source,
        trials=trials,
        indexes=known.indexes,
        concurrent=room.at_a_time,
        gpus_per_worker=room.gpus,
        duplicates=tuple(known.duplicates),
        finished=frozenset(i for i, state in states.items() if is_done(state, chosen)),
        notes=tuple(notes),
        warnings=tuple(w for index in known.indexes.values() for w in (*index.skipped, *index.notes)),
        open=opened,
        builder=builder,
    )
    return _estimated(plan, storage, may_probe=capacity is not None) if estimate else plan


def _search(
    sweep: SweepFile, builder: ConfigurationBuilder, known: ConfigurationSet, storage: Storage
) -> tuple[str | None, OpenSearch | None]:
    """(id of the sweep, the search with the proposals of earlier launches) of a search that proposes as it goes."""
    if not isinstance(sweep.search, Tpe):
        return None, None
    sweep_id = f"{sweep.name}-{_short_hash([builder.definition(), known.base_identity()])}"
    return sweep_id, OpenSearch(known, recorded(storage, sweep_id))


def _estimated(plan: Plan, storage: Storage, *, may_probe: bool) -> Plan:
    """The plan with the time and disk of what is left of it."""
    left = [t for t in plan.trials if t.identity not in plan.finished]
    unknown = plan.open.left * len(plan.file.seeds) if plan.open else 0
    experiments = [*(t.experiment for t in left), *([plan.trials[0].experiment] * unknown)]
    index = plan.indexes[left[0].fingerprint] if left else plan.index
    processors = (plan.file.resources.threads, plan.gpus_per_worker)
    measured = estimate_sweep(experiments, index, plan.concurrent, *processors, storage, may_probe=may_probe)
    disk, free = predicted_bytes(experiments, len(index.classes), *processors, storage), storage.free_bytes()
    notes = plan.notes
    if free is not None and disk > free:
        need = f"{size_text(free)} are free; the trials will keep up to {size_text(disk)} there"
        notes = (*notes, f"{storage.url}: {need}")
    return replace(plan, estimate=measured, disk_bytes=disk, notes=notes)


def is_done(state: TrialState, file: SweepFile | StagesFile) -> bool:
    """Whether a sweep needs no run of a trial: it finished, or a scheduler of the kind that the sweep has ended it."""
    return state.status == TrialStatus.FINISHED or (
        state.status == TrialStatus.PRUNED and file.scheduler.kind in PRUNING
    )


def search_key(sweep: str) -> str:
    """Key of the record of a search's proposals."""
    return layout.search(sweep)


def recorded(storage: Storage, sweep: str) -> list[dict[str, Any]]:
    """The proposals that a search made in earlier launches."""
    try:
        return list(json.loads(storage.read(search_key(sweep))))
    except FileNotFoundError:
        return []


def plan_document(plan: Plan, command: Sequence[str], commit: str | None) -> PlanRecord:
    """The JSON content of `sweeps/<id>/plan.json`."""
    return {
        "sweep": plan.sweep,
        "name": plan.file.name,
        "source": plan.source,
        "created": round(time.time(), 3),
        "command": list(command),
        "commit": commit,
        "file": plan.file.model_dump(mode="json"),
        "concurrent": plan.concurrent,
        "estimate": asdict(plan.estimate) if plan.estimate else None,
        "disk_bytes": plan.disk_bytes,
        "trials": [trial_document(trial) for trial in plan.trials],
    }


def trial_document(trial: Trial) -> TrialRecord:
    """A trial within `plan.json`."""
    record: TrialRecord = {
        "identity": trial.identity,
        "name": trial.name,
        "point": trial.point,
        "varied": trial.varied,
        "seed": trial.seed,
        "fingerprint": trial.fingerprint,
        "experiment": trial.experiment.model_dump(mode="json"),
    }
    if trial.stage:
        record |= {"stage": trial.stage, "input": trial.input, "refine": trial.refine}
        record |= {"network": trial.network} if trial.network is not None else {}
    return record


def _measurable(
    sweep: SweepFile, source: str, indexes: Sequence[DataIndex], *, named: bool
) -> tuple[SweepFile, list[str]]:
    """The sweep, compared by what data without masks allows. Raises UsageError where it asks for more by name."""
    if all(index.has_masks for index in indexes):
        return sweep, []
    if named and any(metric != CLASS_SCORE for metric, _ in sweep.objectives):
        raise UsageError(f"{source}: metric: {sweep.objectives[0][0]}: val has no masks: {CLASS_SCORE} can be measured")
    return sweep.model_copy(update={"metric": CLASS_SCORE}), ["val has no masks: the classes alone are scored (f1)"]


def _check_baseline(sweep: SweepFile, source: str, trials: Sequence[Trial]) -> None:
    """Raise UsageError where the baseline is left out because another configuration is the same."""
    if sweep.baseline is not None and sweep.baseline not in (points := dict.fromkeys(t.point for t in trials)):
        raise UsageError(
            f"{source}: baseline: {sweep.baseline!r} is the same as another configuration and left out; name that one "
            f"of {', '.join(points)}"
        )


def check_metrics(sweep: SweepFile, source: str, trials: Sequence[Trial], indexes: Mapping[str, DataIndex]) -> None:
    """Raise UsageError unless the evaluation of every trial records what the sweep compares by."""
    kinds = {(t.experiment.method, t.fingerprint): t for t in trials}.values()
    for metric in dict.fromkeys((*(name for name, _ in sweep.objectives), sweep.metric)):
        for trial in kinds:
            check_metric(metric, f"{source}: metric", trial.experiment, indexes[trial.fingerprint].classes)


def check_metric(metric: str, source: str, experiment: Experiment, classes: Sequence[str]) -> None:
    """Raise UsageError unless evaluation records a metric of this key on data of these foreground classes."""
    from mcc_core.evaluation.in_training import STAGES
    from mcc_core.methods.registry import method_of

    stages = (*method_of(experiment).map_stages, "seg")
    heads = [f"val/{stage}/{protocol}" for stage, protocol in STAGES.items() if stage in stages]
    names = ["miou", "pixel_accuracy", *(f"iou/{name}" for name in ("background", *classes))]
    known = [CLASS_SCORE, *(f"{head}/{name}" for head in heads for name in names)]
    if metric in known:
        return
    if "/iou/" in metric and metric.partition("/iou/")[0] in heads:
        there = ", ".join(("background", *classes))
        raise UsageError(f"{source}: {metric!r}: the data has no such class; it has {there}")
    close = difflib.get_close_matches(metric, known, n=1)
    examples = f"did you mean {close[0]}?" if close else f"such as {', '.join(f'{head}/miou' for head in heads)}"
    raise UsageError(f"{source}: {metric!r}: evaluation records no such metric; {examples}")


def check_models(trials: Sequence[Trial], indexes: Mapping[str, DataIndex], *, download: bool) -> None:
    """Raise UsageError before any trial starts for a model that cannot be built, weights that cannot be had, or files
    that do not suit the classes."""
    import torch

    from mcc_core.methods.registry import method_of, random_network

    seen: set[str] = set()
    for trial in trials:
        model, crop = trial.experiment.model, trial.experiment.train.crop
        method, classes = method_of(trial.experiment), indexes[trial.fingerprint].classes
        key = f"{method.name} {model.model_dump_json()} {crop} {method.files(trial.experiment)} {classes}"
        if key in seen:
            continue
        seen.add(key)
        method.check_classes(trial.experiment, classes)
        with torch.device("meta"):
            network = random_network(trial.experiment, len(classes))
        if crop < network.stride:
            raise UsageError(f"train.crop: {crop}: below the network's stride of {network.stride} pixels")
        if model.weights != "random" and (download or not isinstance(model.weights, str)):
            method.network(trial.experiment, 1)


def _with_overrides(
    sweep: SweepFile, source: str, base: str | None, overrides: Mapping[str, Any], workers: int | None
) -> SweepFile:
    try:
        chosen = sweep.for_base(base)
    except UsageError as error:
        raise UsageError(f"{source}: {error}") from None
    changes = dict(overrides)
    if workers is not None:
        if workers < 1:
            raise UsageError(f"--workers: {workers}: must be at least 1")
        if changes.get("train.workers", workers) != workers:
            raise UsageError(
                f"--workers {workers} and --set train.workers={changes['train.workers']}: give one of them"
            )
        changes["train.workers"] = workers
    known = known_fields(chosen, source) if changes else []
    for key in changes:
        option = "--workers" if key == "train.workers" and workers is not None else "--set"
        if wrong := unknown_field(option, key, known):
            raise UsageError(wrong)
        if key in chosen.parameters or key in chosen.derived:
            how = "varies" if key in chosen.parameters else "derives"
            raise UsageError(f"{option}: {key}: {source} {how} it; remove one of the two")
    return chosen.model_copy(update={"set": chosen.set | changes})


def precision_notes(trials: Sequence[Trial]) -> list[str]:
    """Whether this machine's GPU computes faster than asked for; nothing where trials compare precisions."""
    import torch

    from mcc_core.precision import advice

    precisions = {trial.experiment.compute.precision for trial in trials}
    if len(precisions) > 1 or not torch.cuda.is_available():
        return []
    facts = torch.cuda.get_device_properties(0)
    line = advice(precisions.pop(), facts.name, facts.major)
    return [line] if line else []


def _short_hash(identities: Sequence[str]) -> str:
    return json_digest(sorted(identities), 8)
