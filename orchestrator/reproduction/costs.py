"""What a table costs, row by row, before anything starts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mcc_core.config import Experiment
from orchestrator.planning.disk import predicted_bytes
from orchestrator.planning.estimate import estimate_sweep
from orchestrator.planning.plan import Plan
from orchestrator.reproduction.runs import experiments
from orchestrator.settings import Settings
from orchestrator.spec.paper_table import PaperTable, Work
from orchestrator.spec.stages_file import StagesFile
from orchestrator.spec.sweep_file import SweepFile
from orchestrator.storage.store import Storage
from orchestrator.text import size_text

NONE = "-"  # not counted, or not measured


@dataclass(frozen=True)
class RowCost:
    """Of one row over its seeds."""

    point: str
    network: str
    trials: int
    done: int | None  # None: not known, because data are missing
    images: int
    pflop: float | None
    published: str  # the run of the published code
    gpu_hours: float | None  # on the device of the table's published run, by FLOPs
    here_hours: float | None  # of every worker here, added up
    work: Work  # of a step


def row_costs(table: PaperTable, sweep: SweepFile | StagesFile, plan: Plan | None, settings: Settings) -> list[RowCost]:
    """Costs of each row; of a table without rows, of the whole grid as one."""
    if isinstance(sweep, StagesFile):
        return _stage_costs(table, sweep, plan)
    grouped: dict[str, list[Experiment]] = {}
    for point, experiment in experiments(sweep):
        grouped.setdefault(point if point in table.points else sweep.name, []).append(experiment)
    scale = "tiny" if sweep.base == "tiny" else "paper"
    speed = _published_speed(table) if scale == "paper" else None
    made = []
    for point, alone in grouped.items():
        known, trials = table.row(point), alone * len(sweep.seeds)
        images = sum(e.train.iterations * e.train.global_batch for e in trials)
        pflop = _pflop(known, images) if scale == "paper" else None
        run = known.run if scale == "paper" else None
        told = f"{_hours(run.hours)} x {run.gpus}" if run else NONE
        done, here = (None, None) if plan is None else _here(table, point, plan, settings)
        hours = 1e15 * pflop / speed / 3600 if pflop and speed else None
        made.append(RowCost(point, known.network, len(trials), done, images, pflop, told, hours, here, known))
    return made


def _stage_costs(table: PaperTable, sweep: StagesFile, plan: Plan | None) -> list[RowCost]:
    """Costs of each row of one stage, and of each stage of the others; `plan` has the time of each trial."""
    trained, stages = dict(experiments(sweep)), table.stages()
    paper = not sweep.name.endswith("-tiny")
    speed = _published_speed(table) if paper else None
    made = []
    for name in sweep.stages:
        row, stage = stages.get(name, (name, ""))
        known: Work = table.row(row).work.get(stage, Work()) if stage else table.row(row)
        experiment = trained.get(name)
        images = experiment.train.iterations * experiment.train.global_batch * len(sweep.seeds) if experiment else 0
        pflop = _pflop(known, images) if paper and experiment else None
        run = table.row(row).run if paper and not stage else None
        point = f"{row}: {stage}" if stage else row
        network = "labels" if experiment is None else experiment.model.backbone if stage else table.row(row).network
        own = [] if plan is None else [trial for trial in plan.trials if trial.stage == name]
        left = [] if plan is None else [trial for trial in own if trial.identity not in plan.finished]
        done = None if plan is None else len(own) - len(left)
        here = None
        if plan is not None and all(trial.identity in plan.seconds for trial in left):
            here = sum(plan.seconds[trial.identity] * trial.workers for trial in left) / 3600
        told = f"{_hours(run.hours)} x {run.gpus}" if run else NONE
        hours = 1e15 * pflop / speed / 3600 if pflop and speed else None
        made.append(RowCost(point, network, len(sweep.seeds), done, images, pflop, told, hours, here, known))
    return made


def _pflop(row: Work, images: int) -> float | None:
    return images * row.forwards * row.gflop / 1e6 if row.forwards and row.gflop else None


def _published_speed(table: PaperTable) -> float | None:
    """FLOP a second and GPU that the published code reached in the run of which a log was published."""
    for row in table.rows.values():
        if row.run and row.published_forwards and row.gflop:
            flop = row.run.images * row.published_forwards * row.gflop * 1e9
            return flop / (row.run.hours * 3600 * row.run.gpus)
    return None


def _here(table: PaperTable, point: str, plan: Plan, settings: Settings) -> tuple[int, float | None]:
    """(trials that are done, hours of all workers of those that are left) of a row."""
    own = [trial for trial in plan.trials if trial.point == point or point not in table.points]
    left = [trial for trial in own if trial.identity not in plan.finished]
    if not left:
        return len(own), 0.0
    processors = (plan.file.resources.threads, plan.gpus_per_worker)
    storage, index = Storage(settings.storage), plan.indexes[left[0].fingerprint]
    may_probe = settings.ray_address is None
    estimate = estimate_sweep([t.experiment for t in left], index, 1, *processors, storage, may_probe=may_probe)
    return len(own) - len(left), estimate.worker_s / 3600 if estimate else None


def cost_rows(costs: Sequence[RowCost], device: str | None, here: str) -> list[list[str]]:
    """Header and lines for people, the sum last where there are several."""
    head = ["configuration", "trials", "done", "images", "PFLOP", "published"]
    text = [[*head, f"{device}-hours" if device else "GPU-hours", f"{here}-hours"]]
    for cost in costs:
        name = f"{cost.point} ({cost.network})" if cost.network else cost.point
        done = NONE if cost.done is None else str(cost.done)
        numbers = [_number(cost.pflop, 0), cost.published, _number(cost.gpu_hours, 1), _number(cost.here_hours, 2)]
        text.append([name, str(cost.trials), done, f"{cost.images:,}" if cost.images else NONE, *numbers])
    if len(costs) > 1:
        images, trials = sum(c.images for c in costs), sum(c.trials for c in costs)
        done = NONE if any(c.done is None for c in costs) else str(sum(c.done or 0 for c in costs))
        hours = [_sum([c.gpu_hours for c in costs], 1), _sum([c.here_hours for c in costs], 2)]
        text.append(["all", str(trials), done, f"{images:,}", _sum([c.pflop for c in costs], 0), "", *hours])
    return text


def notes(
    table: PaperTable,
    costs: Sequence[RowCost],
    plan: Plan | None,
    rate: float | None,
    gpu: str | None,
    settings: Settings,
) -> list[str]:
    """What the table's numbers rest on, and hours at a rate of images a second."""
    lines = []
    counted = [cost for cost in costs if cost.gpu_hours is not None]
    if counted:
        text = ", ".join(
            f"{cost.point} {cost.work.forwards:g} forwards of {cost.work.gflop:g} GFLOP an image" for cost in counted
        )
        lines.append(f"FLOPs: {text}, counted by benchmarks/step.py")
        lines.append(
            f"published: of the published code's log, x {published_device(table)}; hours on it of each row: if FLOPs "
            "take as long as they took there, not measured here"
        )
    if counted and (rest := [cost.point for cost in costs if cost.gpu_hours is None]):
        lines.append(f"not counted: {', '.join(rest)}; on the machine that trains, --plan measures steps (last column)")
    if rate:
        images = sum(cost.images for cost in costs)
        lines.append(f"{f'on {gpu}, ' if gpu else ''}at {rate:g} images a second: {images / rate / 3600:.1f} hours")
    if plan is not None and (left := [t for t in plan.trials if t.identity not in plan.finished]):
        processors = (plan.file.resources.threads, plan.gpus_per_worker)
        trained = [trial.experiment for trial in left]
        disk = plan.disk_bytes or predicted_bytes(
            trained, len(plan.index.classes), *processors, Storage(settings.storage)
        )
        lines.append(f"storage: up to {size_text(disk)}")
    return lines


def published_device(table: PaperTable) -> str | None:
    """The GPU of the table's published run."""
    return next((row.run.device for row in table.rows.values() if row.run), None)


def _hours(hours: float) -> str:
    whole, minutes = divmod(round(hours * 60), 60)
    return f"{whole} h {minutes} min" if minutes else f"{whole} h"


def _number(value: float | None, digits: int) -> str:
    return NONE if value is None else f"{value:,.{digits}f}"


def _sum(values: Sequence[float | None], digits: int) -> str:
    """A sum, of those that are known where some are not."""
    known = [value for value in values if value is not None]
    if not known:
        return NONE
    return f"{'≥ ' if len(known) < len(values) else ''}{sum(known):,.{digits}f}"
