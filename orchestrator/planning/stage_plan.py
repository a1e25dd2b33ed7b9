"""From a sweep of stages to a checked plan, with the time of each trial."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from mcc_core.errors import UsageError
from mcc_core.files import json_digest
from orchestrator.cluster.session import local_capacity
from orchestrator.planning.configurations import Trial
from orchestrator.planning.disk import predicted_bytes
from orchestrator.planning.earlier import earlier_notes, not_begun
from orchestrator.planning.frozen import check_frozen
from orchestrator.planning.places import places
from orchestrator.planning.plan import CLASS_SCORE, Plan, check_metric, check_models, is_done, precision_notes
from orchestrator.planning.stage_estimate import estimate_stages
from orchestrator.planning.stages import StageTrials
from orchestrator.records import layout
from orchestrator.records.events import trial_states
from orchestrator.records.label_scores import LABEL_SCORE, label_metrics
from orchestrator.records.sweeps import sweeps
from orchestrator.settings import Settings
from orchestrator.spec.stages_file import StagesFile, with_overrides
from orchestrator.storage.store import Storage
from orchestrator.text import size_text

_SEG = "val/seg/single/miou"  # scores checkpoints of a stage that is not compared
_LABEL_BYTES = 10_000  # of an image's labels and confidence, about


def plan_stages(
    file: StagesFile,
    source: str,
    overrides: Mapping[str, Any] | None = None,
    workers: int | None = None,
    settings: Settings | None = None,
    *,
    estimate: bool = True,
) -> Plan:
    """Check a sweep of stages and everything it needs. As `plan_sweep`.

    Raises UsageError or DataError, one line per mistake.
    """
    settings = settings or Settings.from_environment()
    changes = dict(overrides or {})
    if workers is not None:
        changes["train.workers"] = workers
    chosen = with_overrides(file, changes, source) if changes else file
    storage = Storage(settings.storage)
    made = StageTrials(chosen, source, settings.home, storage, distant=settings.ray_address is not None)
    trials = tuple(made.trials.values())
    chosen, unscored = _compared(chosen, source, made, named="metric" in file.model_fields_set)
    trained = [t for t in trials if t.refine is None]
    check_models(trained, made.indexes, download=settings.ray_address is None)
    check_frozen(trials, source, made.indexes, download=settings.ray_address is None)
    capacity = local_capacity() if settings.ray_address is None else None
    room = places(chosen, source, trials, capacity)
    sweep = f"{chosen.name}-{json_digest(sorted(made.trials), 8)}"
    notes = [*room.notes, *(precision_notes(trained) if room.gpus else ()), *unscored, *_without_train(chosen, trained)]
    states = trial_states(storage, made.trials)
    if not storage.exists(layout.plan(sweep)):
        notes += earlier_notes(sweeps(storage, chosen.name), sweep, not_begun(trials, states))
    first = {trial.stage: trial for trial in reversed(trained)}
    alike = {name for name, trial in first.items() if _problem(chosen.metric, source, trial, made) is None}
    plan = Plan(
        sweep=sweep,
        file=chosen,
        source=source,
        trials=trials,
        indexes=made.indexes,
        concurrent=room.at_a_time,
        gpus_per_worker=room.gpus,
        duplicates=tuple(made.duplicates),
        scored_by={name: chosen.metric if name in alike else _SEG for name in first},
        finished=frozenset(i for i, state in states.items() if is_done(state, chosen)),
        notes=tuple(notes),
        warnings=tuple(w for index in made.indexes.values() for w in (*index.skipped, *index.notes)),
    )
    return _estimated(plan, storage, may_probe=capacity is not None) if estimate else plan


def _compared(file: StagesFile, source: str, made: StageTrials, *, named: bool) -> tuple[StagesFile, list[str]]:
    """The sweep with what its last stages are compared by. Raises UsageError where none of them records it."""
    if not all(index.has_masks for index in made.indexes.values()):
        if named and file.metric != CLASS_SCORE:
            raise UsageError(f"{source}: metric: {file.metric}: val has no masks: {CLASS_SCORE} can be measured")
        return file.model_copy(update={"metric": CLASS_SCORE}), ["val has no masks: the classes alone are scored (f1)"]
    if not named and not any(file.stages[name].trains for name in file.last()):
        file = file.model_copy(update={"metric": LABEL_SCORE})
    first = {trial.stage: trial for trial in reversed(made.trials.values())}
    problems = {name: _problem(file.metric, source, trial, made) for name, trial in first.items()}
    last = [name for name in file.last() if name in first]
    if any(problems[name] is None for name in last):
        return file, []
    if others := [name for name, problem in problems.items() if problem is None]:
        raise UsageError(
            f"{source}: metric: {file.metric!r}: is recorded by stage {others[0]}, not by what the sweep is for "
            f"({', '.join(last)}), which is what is compared"
        )
    raise UsageError(str(problems[last[0]]))


def _problem(metric: str, source: str, trial: Trial, made: StageTrials) -> str | None:
    """Why a trial does not record a metric; None where it does."""
    classes = made.indexes[trial.fingerprint].classes
    if trial.refine is None:
        try:
            check_metric(metric, f"{source}: metric", trial.experiment, classes)
        except UsageError as error:
            return str(error)
        return None
    known = label_metrics(classes)
    if metric in known:
        return None
    close = difflib.get_close_matches(metric, known, n=1)
    hint = f"did you mean {close[0]}?" if close else f"such as {LABEL_SCORE}"
    return f"{source}: metric: {metric!r}: labels are not scored so; {hint}"


def _without_train(file: StagesFile, trained: Sequence[Trial]) -> list[str]:
    """That the ladder has no score on training images of some stages."""
    lacking = list(dict.fromkeys(t.stage for t in trained if not t.experiment.train.eval_train_images))
    if not lacking:
        return []
    return [f"no score on train of stage {', '.join(lacking)}: train.eval_train_images is 0"]


def _estimated(plan: Plan, storage: Storage, *, may_probe: bool) -> Plan:
    """The plan with the time and disk of what is left of it."""
    left = [t for t in plan.trials if t.identity not in plan.finished]
    processors = (plan.file.resources.threads, plan.gpus_per_worker)
    measured, seconds = estimate_stages(left, plan.indexes, plan.concurrent, *processors, storage, may_probe=may_probe)
    disk = 0.0
    for trial in left:
        index = plan.indexes[trial.fingerprint]
        if trial.refine is not None:
            disk += _LABEL_BYTES * len(index.train)
        else:
            disk += predicted_bytes([trial.experiment], len(index.classes), *processors, storage)
    notes, free = plan.notes, storage.free_bytes()
    if free is not None and disk > free:
        need = f"{size_text(free)} are free; the trials will keep up to {size_text(disk)} there"
        notes = (*notes, f"{storage.url}: {need}")
    return replace(plan, estimate=measured, seconds=seconds, disk_bytes=disk, notes=notes)
