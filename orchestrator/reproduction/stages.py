"""A table with rows of several stages as one sweep of stages: its other rows are stages of their own.

So all of it runs side by side, and is one plan, one record and one report.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mcc_core.config import Experiment
from mcc_core.experiment_files import merge
from mcc_core.methods.registry import experiment_of
from mcc_core.validation import validate
from orchestrator.planning.configurations import Trial
from orchestrator.spec.paper_table import PaperTable
from orchestrator.spec.pipeline import stage_name
from orchestrator.spec.stages_file import Stage, StagesFile, fields_of, with_overrides
from orchestrator.spec.sweep_file import fixed_fields


def staged_table(
    table: PaperTable,
    scale: str,
    fields: Mapping[str, Any],
    every: Mapping[str, Any],
    own: Mapping[str, Mapping[str, Any]],
) -> StagesFile:
    """The sweep of a table's rows.

    Args:
        fields: of its sweep at a scale.
        every: dotted fields of every row.
        own: dotted fields of rows; of one of several stages also `STAGE.FIELD`.

    Raises UsageError for a field that no stage has.
    """
    shared, pipelines = fields.get("set", {}), table.pipelines
    stages: dict[str, Stage | dict[str, Any]] = {}
    for row, pipeline in pipelines.items():
        for name, stage in pipeline.named(row, scale, table.row(row).stages).items():
            own_set = shared if stage.trains else {k: v for k, v in shared.items() if k.startswith("data.")}
            stages[name] = stage.model_copy(update={"set": own_set | stage.set}) if stage.base else stage
    for point in fields.get("points", ()):
        base = point.get("base") or fields["base"]
        stages[point["name"]] = {"base": base, "set": shared | point.get("set", {})}
    kept = {name: fields[name] for name in ("name", "description", "metric", "mode", "seeds") if name in fields}
    made = validate(StagesFile, kept | {"stages": stages}, str(fields["name"]))
    changes = dict(every)
    for row, values in own.items():
        for field, value in values.items():
            changes |= dict.fromkeys(_places(made, table, row, field), value)
    return with_overrides(made, changes, str(fields["name"])) if changes else made


def _places(file: StagesFile, table: PaperTable, row: str, field: str) -> list[str]:
    """A field of a row as `STAGE.FIELD` of each stage of the sweep that has it, or that it names."""
    if row not in (pipelines := table.pipelines):
        return [f"{row}.{field}"]
    names = [stage_name(row, name) for name in pipelines[row].stages]
    first, _, rest = field.partition(".")
    if (named := stage_name(row, first)) in names and rest in fields_of(file, named, file.name):
        return [f"{named}.{rest}"]
    having = [name for name in names if field in fields_of(file, name, file.name)]
    return [f"{name}.{field}" for name in having] or [f"{names[0]}.{field}"]


def stage_experiments(file: StagesFile) -> list[tuple[str, Experiment]]:
    """(stage, experiment) of each that trains, also where files that it names are not there."""
    made = []
    for name in file.ordered():
        if file.stages[name].trains:
            where = f"{file.name}: {name}"
            fields = merge(fixed_fields(file.training(name, file.name), None, where), {}, where)
            made.append((name, experiment_of(fields, where)))
    return made


def row_of(table: PaperTable, trial: Trial) -> str | None:
    """The row whose network a trial trains; None of stages that only lead to one."""
    if not trial.stage:
        return trial.point
    if trial.stage not in (stages := table.stages()):
        return trial.stage
    row, stage = stages[trial.stage]
    return row if stage == table.pipelines[row].last else None
