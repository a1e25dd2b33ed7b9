"""The paper's tables as sweeps: planned by the same machinery as any sweep, or refused with all that is missing."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mcc_core.config import Experiment
from mcc_core.data.index_file import INDEX
from mcc_core.errors import DataError, UsageError
from mcc_core.experiment_files import merge
from mcc_core.import_weights import cached_backbone
from mcc_core.methods.registry import experiment_of, method_of
from mcc_core.pseudo_labels.crf import require_crf
from mcc_core.validation import validate
from orchestrator.planning.configurations import ConfigurationBuilder
from orchestrator.planning.plan import Plan, plan_sweep
from orchestrator.planning.stage_plan import plan_stages
from orchestrator.reproduction.stages import stage_experiments, staged_table
from orchestrator.settings import Settings
from orchestrator.spec.paper_table import PaperTable
from orchestrator.spec.stages_file import StagesFile
from orchestrator.spec.sweep_file import SweepFile, fixed_fields

SEPARATOR = ":"  # between a row and a field of it alone


def table_sweep(
    table: PaperTable, scale: str, data: Path | None, seeds: tuple[int, ...], changes: Mapping[str, Any] | None = None
) -> SweepFile | StagesFile:
    """The table's sweep at a scale: `paper`, or `tiny` on the generated shapes, in minutes.

    A table with rows of several stages is a sweep of stages, in which its other rows have one each.

    Args:
        changes: dotted fields; `ROW:FIELD` is one of a row alone, and `ROW:STAGE.FIELD` of a stage of it. Raises
            UsageError for a row that is none.
    """
    fields = table.of_scale(scale) | {"seeds": seeds}
    every = {} if scale == "tiny" else {"data.root": str(data)}
    own: dict[str, dict[str, Any]] = {}
    for key, value in (changes or {}).items():
        row, separator, field = key.partition(SEPARATOR)
        if not separator:
            every[key] = value
            continue
        names = {name.lower(): name for name in table.points}
        if row.lower() not in names:
            there = f"expected one of {', '.join(names.values())}" if names else "it has none"
            raise UsageError(f"--set {key}: {row}: no row of {table.description}; {there}")
        own.setdefault(names[row.lower()], {})[field] = value
    if table.pipelines:
        return staged_table(table, scale, fields, every, own)
    fields["set"] = dict(fields.get("set", {})) | every
    if own:
        points = fields.get("points", ())
        fields["points"] = [p | {"set": dict(p.get("set", {})) | own.get(p["name"], {})} for p in points]
    return validate(SweepFile, fields, str(fields["name"]))


def experiments(sweep: SweepFile | StagesFile) -> list[tuple[str, Experiment]]:
    """(row, experiment) of each configuration; those of rows also where files that they name are not there.

    Of a sweep of stages (stage, experiment) of those that train.
    """
    if isinstance(sweep, StagesFile):
        return stage_experiments(sweep)
    if sweep.parameters:
        return [(c.point, c.experiment) for c in ConfigurationBuilder(sweep, sweep.name).planned()[0]]
    made = []
    for point in sweep.points:
        where = f"{sweep.name}: {point.name}"
        fields = merge(fixed_fields(sweep, point.base, where), point.set, where)
        made.append((point.name, experiment_of(fields, where)))
    return made


def missing(table: PaperTable, data: Path, changes: Mapping[str, Any], *, train: bool) -> list[str]:
    """What the paper's scale needs and is not there: a line each, with where it was looked for and what gets it."""
    base = str(table.sweep["base"])
    lines = []
    if not (data / INDEX).is_file():
        sources = "VOCtrainval_11-May-2012.tar benchmark.tgz" if base == "voc" else "FOLDER_OF_COCO2014"
        lines.append(
            f"data: looked for {data / INDEX}; from the publisher's files: mcc data prepare {base} {sources} "
            f"--out {data}; prepared elsewhere: --data FOLDER"
        )
    if train:
        lines += _missing_weights(table, data, changes, download=not lines)  # none for what cannot start anyway
    try:
        require_crf()
    except UsageError as error:
        lines.append(f"CRF: {error}")
    return lines


def _missing_weights(table: PaperTable, data: Path, changes: Mapping[str, Any], *, download: bool) -> list[str]:
    missing: dict[str, str] = {}
    stages = table.stages()
    for point, experiment in experiments(table_sweep(table, "paper", data, (0,), changes)):
        model = experiment.model
        key = f"{model.backbone} {model.weights}"
        if key in missing or model.weights == "random":
            continue
        missing[key] = ""
        give = "model.weights=FILE (.safetensors or .pth)"
        if point in stages:
            point, stage = stages[point]
            give = f"--set {point}{SEPARATOR}{stage}.{give}"
        else:
            give = f"--set {point}{SEPARATOR}{give}" if len(table.points) > 1 else f"--set {give}"
        if isinstance(model.weights, Path) and not model.weights.exists():
            missing[key] = f"ImageNet weights of {point}: looked for {model.weights}; elsewhere: {give}"
        elif not download and isinstance(model.weights, str) and cached_backbone(model.backbone, model.weights) is None:
            missing[key] = (
                f"ImageNet weights of {point}: {model.backbone} is not in the cache: fetched at the start where "
                f"there is a network, else {give}"
            )
        elif download:
            try:
                method_of(experiment).network(experiment, 1)
            except (UsageError, DataError) as error:
                missing[key] = f"ImageNet weights of {point}: {error}"
    return [line for line in missing.values() if line]


def plan_table(
    table: PaperTable,
    name: str,
    scale: str,
    data: Path,
    seeds: tuple[int, ...],
    changes: Mapping[str, Any],
    settings: Settings,
    *,
    estimate: bool = True,
) -> Plan:
    """Plan a table's training. Raises UsageError that lists everything that is missing."""
    if scale == "paper" and (lacking := missing(table, data, changes, train=True)):
        raise UsageError("\n".join([f"{name} needs what is not here:", *lacking]))
    every = {key: value for key, value in changes.items() if SEPARATOR not in key}
    if table.pipelines:
        stages = table_sweep(table, scale, data, seeds, changes)
        assert isinstance(stages, StagesFile)
        return plan_stages(stages, f"{name}.yaml", settings=settings, estimate=estimate)
    sweep = table_sweep(table, scale, data, seeds, {k: v for k, v in changes.items() if k not in every})
    assert isinstance(sweep, SweepFile)
    return plan_sweep(sweep, f"{name}.yaml", overrides=every, settings=settings, estimate=estimate)
