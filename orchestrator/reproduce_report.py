"""A reproduced table as files: Markdown, HTML, the training curve over the published log; also in MLflow."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from mcc_core.errors import MCCError
from orchestrator import tracking
from orchestrator.events import history
from orchestrator.pages import render
from orchestrator.paper_tables import PaperTable
from orchestrator.plan import Plan, plan_document
from orchestrator.report import markdown
from orchestrator.reproduce import Line, rows
from orchestrator.settings import Settings
from orchestrator.storage import Storage

PUBLISHED_HOURS = {"voc": "2 h 44 min on 4 A100-40G", "coco": "17 h on 8 A100-40G"}
FORWARDS, GFLOP = 13.86, 157.0  # of one training image at DeiT-B/448, as `benchmarks/step.py --flops-only` counts them


def write_reproduction(
    name: str, table: PaperTable, lines: Sequence[Line], plan: Plan | None, settings: Settings, out: Path
) -> list[Path]:
    """Write `out/table.md`, `table.html` and, where something was trained, `curve.png`; returns the files."""
    out.mkdir(parents=True, exist_ok=True)
    text = rows(lines, table)
    files = {"table.md": markdown(text).encode()}
    if plan is not None and (curve := _curve(table, plan, settings)) is not None:
        files["curve.png"] = curve
    page = render("reproduction.html.j2", name=name, table=table, rows=text, curve="curve.png" in files)
    files["table.html"] = page.encode()
    for file, content in files.items():
        (out / file).write_bytes(content)
    if plan is not None:
        try:
            tracking.attach(settings, plan_document(plan, [], None), {f"reproduction/{k}": v for k, v in files.items()})
        except MCCError as error:
            print(f"not in MLflow: {error}")
    return [out / file for file in files]


def print_costs(plan: Plan, console: Console, rate: float | None) -> None:
    """Trials, images and FLOPs of a table, and hours at a throughput, before anything starts."""
    images = sum(t.experiment.train.iterations * t.experiment.train.global_batch for t in plan.trials)
    console.print(f"{plan.sweep}: {len(plan.trials)} trials, {len(plan.finished)} of them done", highlight=False)
    console.print(f"training images: {images:,}", highlight=False)
    base = plan.file.base
    if base in PUBLISHED_HOURS:
        total = images * FORWARDS * GFLOP / 1e6
        console.print(f"about {total:,.0f} PFLOP ({FORWARDS} forwards of {GFLOP:g} GFLOP an image)", highlight=False)
        console.print(f"a trial of the published code took {PUBLISHED_HOURS[base]}", highlight=False)
    if rate:
        console.print(f"at {rate:g} images a second: {images / rate / 3600:.1f} hours", highlight=False)
    elif plan.estimate:
        console.print(f"here: about {plan.estimate.total_s / 3600:.2f} hours ({plan.estimate.source})", highlight=False)


def _curve(table: PaperTable, plan: Plan, settings: Settings) -> bytes | None:
    """Scores over the share of the training done: a shorter training is laid over the whole published one."""
    if table.curve is None:
        return None
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    storage = Storage(settings.storage)
    figure, axes = pyplot.subplots(figsize=(7, 4), dpi=120)
    values = [100 * value for value in table.curve.values]
    axes.plot([(i + 1) / len(values) for i in range(len(values))], values, "k--", marker="o", label="published log")
    for trial in plan.trials:
        found = [
            (event["iteration"] / trial.experiment.train.iterations, 100 * event["metrics"][table.curve.metric])
            for event in history(storage, trial.identity)
            if event["kind"] == "metrics" and table.curve.metric in event["metrics"]
        ]
        if found:
            axes.plot(*zip(*found, strict=True), marker=".", label=trial.name)
    axes.set_xlabel("share of the training")
    axes.set_ylabel(f"{table.curve.metric}, percent")
    axes.legend()
    stream = io.BytesIO()
    figure.savefig(stream, format="png", bbox_inches="tight")
    pyplot.close(figure)
    return stream.getvalue()
