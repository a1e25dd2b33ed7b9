"""A reproduced table as files: Markdown, HTML, the training curve over the published log; also in MLflow."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from mcc_core.errors import MCCError
from orchestrator.planning.configurations import ConfigurationBuilder
from orchestrator.planning.plan import Plan, plan_document
from orchestrator.records.events import history
from orchestrator.reports.document import Code, Grid, Picture, Section, pictures, to_html, to_markdown
from orchestrator.reports.pages import marked, require_ours
from orchestrator.reproduction.scores import Line, rows
from orchestrator.settings import Settings
from orchestrator.spec.paper_table import PaperTable
from orchestrator.spec.sweep_file import SweepFile
from orchestrator.storage.store import Storage
from orchestrator.text import size_text
from orchestrator.tracking import sync as tracking


@dataclass(frozen=True)
class PublishedRun:
    """What the published training log says of a run."""

    hours: float
    gpus: int  # A100-40G
    images: int
    text: str

    @property
    def images_per_gpu_second(self) -> float:
        return self.images / (self.hours * 3600 * self.gpus)


PUBLISHED_RUNS = {
    "voc": PublishedRun(2.733, 4, 20_000 * 4, "2 h 44 min on 4 A100-40G"),
    "coco": PublishedRun(17.0, 8, 80_000 * 8, "17 h on 8 A100-40G"),
}
FORWARDS, GFLOP = 13.86, 157.0  # of one training image at DeiT-B/448, as `benchmarks/step.py --flops-only` counts them
PUBLISHED_FORWARDS = 42.8  # the same of the published code
_LONG = 90  # characters of a verdict that is not cut in the page's table: the reasons are in the next one


def write_reproduction(
    name: str, table: PaperTable, lines: Sequence[Line], plan: Plan | None, settings: Settings, out: Path
) -> list[Path]:
    """Write `out/table.html` (whole in itself) and `table.md` with, where something was trained, the curve over the
    published log; returns the two. They go to the sweep's MLflow run too."""
    require_ours(out, ("table.html", "table.md"))
    made = _sections(name, table, lines, plan, settings)
    lead = "Percent mIoU. What was not measured is left empty; lines of other methods are the printed values."
    files = {
        "table.html": to_html(table.description, lead, made).encode(),
        "table.md": marked(to_markdown(table.description, lead, made)).encode(),
    }
    files |= {f"images/{picture.name}": picture.content for picture in pictures(made)}
    for file, content in files.items():
        (out / file).parent.mkdir(parents=True, exist_ok=True)
        (out / file).write_bytes(content)
    if plan is not None:
        try:
            tracking.attach(settings, plan_document(plan, [], None), {f"reproduction/{k}": v for k, v in files.items()})
        except MCCError as error:
            print(f"not in MLflow: {error}")
    return [out / "table.html", out / "table.md"]


def _sections(
    name: str, table: PaperTable, lines: Sequence[Line], plan: Plan | None, settings: Settings
) -> list[Section]:
    short = [list(row) for row in rows(lines, table)]
    for row in short[1:]:
        row[-1] = row[-1] if len(row[-1]) < _LONG else row[-1].split(":")[0]
    made = [Section("Published and measured", [Grid(short)])]
    aspects = {line.target.point: line.aspects for line in lines if line.aspects}
    if aspects:
        told = [["configuration", "aspect", "", "here"]]
        told += [[p, a.name, "same" if a.same else "differs", a.text] for p, some in aspects.items() for a in some]
        made.append(Section("What is as it was published", [Grid(told)]))
    if plan is not None and (drawn := _curves(table, plan, settings)) is not None:
        caption = "Evaluation during training, over the points of the published log"
        if plan.file.base == "tiny":
            caption += "; this run is on the generated shapes, so the heights cannot be compared"
        made.append(Section("Training curves", [Picture("curves.png", drawn, caption)]))
    again = f"mcc reproduce {name}" + (f" --scale {plan.file.base}" if plan and plan.file.base == "tiny" else "")
    made.append(Section("Repeat it", [Code(again if plan else f"mcc reproduce {name} --weights FILE")]))
    return made


def print_costs(
    name: str, sweep: SweepFile, plan: Plan | None, console: Console, rate: float | None, gpu: str | None
) -> None:
    """Trials, images and FLOPs of a table, and hours on GPUs, before anything starts; without a plan (data are
    missing) what the sweep alone tells."""
    candidates = [candidate.experiment for candidate in ConfigurationBuilder(sweep, name).planned()[0]]
    experiments = candidates * len(sweep.seeds)
    images = sum(e.train.iterations * e.train.global_batch for e in experiments)
    done = f", {len(plan.finished)} of them done" if plan else ""
    lines = [f"{name}: {len(experiments)} trials{done}", f"training images: {images:,}"]
    base = sweep.base
    if base in PUBLISHED_RUNS:
        total = images * FORWARDS * GFLOP / 1e6
        run = PUBLISHED_RUNS[base]
        lines.append(f"about {total:,.0f} PFLOP ({FORWARDS} forwards of {GFLOP:g} GFLOP an image)")
        lines.append(f"a trial of the published code took {run.text}")
        speed = run.images_per_gpu_second * PUBLISHED_FORWARDS / FORWARDS
        lines.append(
            f"on A100-40G: about {images / speed / 3600:.1f} GPU-hours, if its FLOPs take as long as the published "
            f"code's took there ({speed:.1f} images a second; not measured with this code)"
        )
    if rate:
        lines.append(f"{f'on {gpu}, ' if gpu else ''}at {rate:g} images a second: {images / rate / 3600:.1f} hours")
    if plan is not None and plan.estimate:
        lines.append(f"here: about {plan.estimate.total_s / 3600:.2f} hours (by {plan.estimate.source})")
    if plan is not None and plan.disk_bytes:
        lines.append(f"storage: up to {size_text(plan.disk_bytes)}")
    for line in lines:
        console.print(line, highlight=False, soft_wrap=True)


def _curves(table: PaperTable, plan: Plan, settings: Settings) -> bytes | None:
    """Scores over the share of the training done: a shorter training is laid over the whole published one."""
    if not table.curves:
        return None
    from matplotlib.figure import Figure

    storage = Storage(settings.storage)
    events = {trial.name: history(storage, trial.identity) for trial in plan.trials}
    figure = Figure(figsize=(4.2 * len(table.curves), 3.6), layout="constrained")
    panels = figure.subplots(1, len(table.curves), sharey=True, squeeze=False)[0]
    for axes, curve in zip(panels, table.curves, strict=True):
        values = [100 * value for value in curve.values]
        axes.plot([(i + 1) / len(values) for i in range(len(values))], values, "k--", marker="o", label="published log")
        for trial in plan.trials:
            found = [
                (event["iteration"] / trial.experiment.train.iterations, 100 * event["metrics"][curve.metric])
                for event in events[trial.name]
                if event["kind"] == "metrics" and curve.metric in event["metrics"]
            ]
            if found:
                axes.plot(*zip(*found, strict=True), marker=".", label=trial.name)
        axes.set(title=f"{curve.metric}, percent", xlabel="share of the training")
        axes.grid(alpha=0.3)
    panels[-1].legend(loc="lower right")
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=110)
    return stream.getvalue()
