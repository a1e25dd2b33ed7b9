"""From a sweep file to checked trials: everything that can be wrong is found here, before anything is trained."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mcc_core.config import DataConfig, Experiment, load_base, merge, validate
from mcc_core.data.index import DataIndex, build_index
from mcc_core.errors import UsageError
from orchestrator.cluster import Capacity, local_capacity
from orchestrator.estimate import Estimate, estimate_sweep
from orchestrator.events import trial_state
from orchestrator.identity import trial_identity
from orchestrator.settings import Settings
from orchestrator.storage import Storage
from orchestrator.sweep_file import SweepFile, check_fields, load_sweep, unknown_field

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


@dataclass(frozen=True)
class Plan:
    """What is to be run."""

    sweep: str  # unique id
    file: SweepFile  # on its base
    source: str  # where the sweep came from, for messages
    trials: tuple[Trial, ...]
    indexes: Mapping[str, DataIndex]  # by fingerprint
    concurrent: int  # trials at a time
    gpus_per_worker: float
    duplicates: tuple[str, ...]  # names of trials left out because another is the same
    finished: frozenset[str] = frozenset()  # identities that need no run
    estimate: Estimate | None = None
    warnings: tuple[str, ...] = field(default_factory=tuple)

    @property
    def index(self) -> DataIndex:
        """Data of the first trial."""
        return self.indexes[self.trials[0].fingerprint]

    @property
    def estimate_s(self) -> float | None:
        """Predicted seconds until the end, None when nothing could be measured."""
        return self.estimate.total_s if self.estimate else None


def make_plan(
    sweep_file: Path,
    base: str | None = None,
    overrides: Mapping[str, Any] | None = None,
    workers: int | None = None,
    settings: Settings | None = None,
    *,
    estimate: bool = True,
) -> Plan:
    """Check a sweep file and everything it needs.

    Writes nothing but caches. Raises UsageError or DataError, one line per mistake.
    """
    sweep = load_sweep(sweep_file)
    return plan_sweep(sweep, str(sweep_file), base, overrides, workers, settings, estimate=estimate)


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
    """Like `make_plan`, of a sweep that is not in a file."""
    settings = settings or Settings.from_environment()
    chosen = _with_overrides(sweep, source, base, overrides or {}, workers)
    check_fields(chosen, source)
    candidates = _candidates(chosen, source)
    for _, _, experiment, _ in candidates[:1]:
        check_metric(chosen.metric, f"{source}: metric", experiment)
    indexes = _indexes([experiment for _, _, experiment, _ in candidates], settings.home)
    trials, duplicates = _trials(candidates, indexes)
    check_models(trials, {i.fingerprint: i for i in indexes.values()}, download=settings.ray_address is None)
    capacity = local_capacity() if settings.ray_address is None else None
    concurrent, gpus = _concurrency(chosen, source, trials, capacity)
    storage = Storage(settings.storage)
    finished = frozenset(t.identity for t in trials if trial_state(storage, t.identity).status == "finished")
    plan = Plan(
        sweep=f"{chosen.name}-{_short_hash([t.identity for t in trials])}",
        file=chosen,
        source=source,
        trials=trials,
        indexes={index.fingerprint: index for index in indexes.values()},
        concurrent=concurrent,
        gpus_per_worker=gpus,
        duplicates=duplicates,
        finished=finished,
        warnings=tuple(w for index in indexes.values() for w in index.skipped),
    )
    if not estimate:
        return plan
    left = [t for t in trials if t.identity not in finished]
    measured = estimate_sweep(
        [t.experiment for t in left],
        plan.indexes[left[0].fingerprint] if left else plan.index,
        concurrent,
        chosen.resources.cpus_per_worker,
        gpus,
        storage,
        may_probe=capacity is not None,
    )
    return Plan(**{**_shallow(plan), "estimate": measured})


def plan_document(plan: Plan, command: Sequence[str], commit: str | None) -> dict[str, Any]:
    """The JSON content of `sweeps/<id>/plan.json`."""
    trials = []
    for trial in plan.trials:
        fields = {k: v for k, v in _shallow(trial).items() if k != "experiment"}
        trials.append(fields | {"experiment": trial.experiment.model_dump(mode="json")})
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
        "trials": trials,
    }


def check_metric(metric: str, source: str, experiment: Experiment) -> None:
    """Raise UsageError unless evaluation records a metric of this key."""
    from mcc_core.evaluation import STAGES

    known = {f"val/{stage}/{protocol}" for stage, protocol in STAGES.items()}
    head, _, name = metric.rpartition("/")
    per_class = head.endswith("/iou") and head.removesuffix("/iou") in known
    if metric == "val/cls/single/f1" or (head in known and name in {"miou", "pixel_accuracy"}) or per_class:
        return
    examples = ", ".join(sorted(f"{k}/miou" for k in known))
    raise UsageError(f"{source}: {metric!r}: evaluation records no such metric; such as {examples}")


def check_models(trials: Sequence[Trial], indexes: Mapping[str, DataIndex], *, download: bool) -> None:
    """Raise UsageError for a model that cannot be built or weights that cannot be had, before any trial starts."""
    import torch

    from mcc_core.model import MCCNet, build_vit

    seen: set[str] = set()
    for trial in trials:
        model = trial.experiment.model
        key = model.model_dump_json()
        if key in seen:
            continue
        seen.add(key)
        with torch.device("meta"):
            MCCNet(model.model_copy(update={"weights": "random"}), len(indexes[trial.fingerprint].classes))
        if model.weights != "random" and (download or model.weights != "timm"):
            build_vit(model)


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
        changes["train.workers"] = workers
    for key in changes:
        option = "--workers" if key == "train.workers" and workers is not None else "--set"
        if wrong := unknown_field(option, key):
            raise UsageError(wrong)
        if key in chosen.parameters:
            raise UsageError(f"{option}: {key}: {source} varies it; remove one of the two")
    return chosen.model_copy(update={"set": chosen.set | changes})


def _candidates(sweep: SweepFile, source: str) -> list[tuple[str, dict[str, str], Experiment, int]]:
    """(configuration name, what is varied, experiment, seed) of the whole sweep, with repetitions."""
    count = len(sweep.seeds) * (_product(len(v) for v in sweep.parameters.values()) + len(sweep.points))
    if count > MAX_TRIALS:
        raise UsageError(f"{source}: parameters: {count} trials are more than the {MAX_TRIALS} that one sweep may have")
    fixed = merge(load_base(sweep.base), sweep.set, source)
    combinations = itertools.product(*sweep.parameters.values())
    grid = [dict(zip(sweep.parameters, values, strict=True)) for values in combinations]
    short = _short_names(sweep.parameters)
    found = []
    # Without parameters the grid is the base itself, which the points would stand beside.
    for values in grid if sweep.parameters or not sweep.points else []:
        experiment = validate(Experiment, merge(fixed, values, source), f"{source}: {values}" if values else source)
        varied = {key: _text(_get(experiment, key)) for key in values}
        name = " ".join(f"{short[k]}={v}" for k, v in varied.items())
        found.append((name or Path(sweep.base).stem, varied, experiment))
    for point in sweep.points:
        experiment = validate(Experiment, merge(fixed, point.set, source), f"{source}: point {point.name}")
        found.append((point.name, {key: _text(_get(experiment, key)) for key in point.set}, experiment))
    return [(name, varied, _absolute(e), seed) for name, varied, e in found for seed in sweep.seeds]


def _trials(
    candidates: Sequence[tuple[str, dict[str, str], Experiment, int]], indexes: Mapping[str, DataIndex]
) -> tuple[tuple[Trial, ...], tuple[str, ...]]:
    trials: dict[str, Trial] = {}
    duplicates = []
    seeds = {seed for *_, seed in candidates}
    taken: Counter[str] = Counter()
    for point, varied, experiment, seed in candidates:
        name = f"{point} s{seed}" if len(seeds) > 1 else point
        fingerprint = indexes[_data_key(experiment.data)].fingerprint
        identity = trial_identity(experiment, seed, fingerprint)
        if identity in trials:
            duplicates.append(name)
            continue
        taken[name] += 1
        name = name if taken[name] == 1 else f"{name} #{taken[name]}"
        trials[identity] = Trial(identity, name, varied, experiment, seed, point, fingerprint)
    return tuple(trials.values()), tuple(duplicates)


def _indexes(experiments: Sequence[Experiment], home: Path) -> dict[str, DataIndex]:
    """The data of every distinct data section."""
    indexes: dict[str, DataIndex] = {}
    for experiment in experiments:
        key = _data_key(experiment.data)
        if key not in indexes:
            indexes[key] = build_index(experiment.data, home)
    return indexes


def _concurrency(
    sweep: SweepFile, source: str, trials: Sequence[Trial], capacity: Capacity | None
) -> tuple[int, float]:
    """(trials at a time, GPUs per worker). Raises UsageError for a trial that could never start."""
    resources = sweep.resources
    workers = max(t.experiment.train.workers for t in trials)
    wanted = resources.max_concurrent
    if capacity is None:  # a cluster: the runner asks it when it is attached
        return wanted or len(trials), resources.gpus_per_worker or 0.0
    gpus = resources.gpus_per_worker
    if gpus is None:
        gpus = 1.0 if capacity.gpus >= workers else 0.0
    try:
        fits = capacity.trials_at_a_time(workers, resources.cpus_per_worker, gpus)
    except UsageError as error:
        raise UsageError(f"{source}: resources: {error}") from None
    return min(wanted or fits, fits, len(trials)), gpus


def _absolute(experiment: Experiment) -> Experiment:
    """Paths of the experiment as seen from everywhere; workers run in other folders."""
    data, model = experiment.data, experiment.model
    changes: dict[str, Any] = {}
    if data.root is not None:
        changes["root"] = data.root.expanduser().resolve()
    if isinstance(data.classes, Path):
        changes["classes"] = data.classes.expanduser().resolve()
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
    return experiment


def _short_names(keys: Mapping[str, Any]) -> dict[str, str]:
    last = Counter(key.rsplit(".", 1)[-1] for key in keys)
    return {key: name if last[name := key.rsplit(".", 1)[-1]] == 1 else key for key in keys}


def _get(experiment: Experiment, key: str) -> Any:
    node: Any = experiment
    for part in key.split("."):
        node = node[part] if isinstance(node, dict) else getattr(node, part)
    return node


def _text(value: Any) -> str:
    """A value as people write it: 4 and not 4.0, a list without spaces, anything else as it prints."""
    if isinstance(value, float):
        return repr(value).removesuffix(".0")
    if isinstance(value, tuple):
        return ",".join(_text(v) for v in value)
    return re.sub(r"\s+", " ", str(value))


def _data_key(data: DataConfig) -> str:
    return data.model_dump_json()


def _product(numbers: Any) -> int:
    result = 1
    for number in numbers:
        result *= number
    return result


def _short_hash(identities: Sequence[str]) -> str:
    return hashlib.sha256(json.dumps(sorted(identities)).encode()).hexdigest()[:8]


def _shallow(instance: Any) -> dict[str, Any]:
    return {name: getattr(instance, name) for name in type(instance).__dataclass_fields__}
