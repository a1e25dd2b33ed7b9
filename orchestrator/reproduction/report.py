"""A reproduced table as files: Markdown, HTML, the training curve over the published log; also in MLflow."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

from mcc_core.errors import MCCError
from orchestrator.planning.plan import Plan, plan_document
from orchestrator.records import sweeps as catalog
from orchestrator.records.events import history
from orchestrator.reports.document import Code, Grid, Part, Picture, Section, Text, pictures, to_html, to_markdown
from orchestrator.reports.pages import marked, require_ours
from orchestrator.reports.results import stages
from orchestrator.reproduction.lines import Line, compared, rows
from orchestrator.settings import Settings
from orchestrator.spec.paper_table import PaperTable, load_table
from orchestrator.storage.store import Storage
from orchestrator.tracking import rebuilding as tracking

_LONG = 90  # characters of a verdict that is not cut in the page's table: the reasons are in the next one


def write_reproduction(
    name: str,
    table: PaperTable,
    lines: Sequence[Line],
    plan: Plan | None,
    settings: Settings,
    out: Path,
    common: str = "",
    numbers: Sequence[str] = (),
) -> list[Path]:
    """Write `out/table.html` (whole in itself) and `table.md` with, where something was trained, the curve over the
    published log; returns the two. They go to the sweep's MLflow run too. `common`: the common protocol in words;
    `numbers`: a line beside each number."""
    require_ours(out, ("table.html", "table.md"))
    made = _sections(name, table, lines, plan, settings, common, numbers)
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
    name: str,
    table: PaperTable,
    lines: Sequence[Line],
    plan: Plan | None,
    settings: Settings,
    common: str,
    numbers: Sequence[str],
) -> list[Section]:
    short = [list(row) for row in rows(lines, table)]
    place = short[0].index("verdict")
    for row in short[1:]:
        row[place] = row[place] if len(row[place]) < _LONG else row[place].split(":")[0]
    parts: list[Part] = [Grid(short)]
    if table.common:
        parts.append(
            Text(
                f"Ours by seed: each method by its own authors' protocol. By {table.common}'s protocol, one for "
                f"all: {common}. CRF: Gaussian width/weight, bilateral pixels/grey levels/weight."
            )
        )
    if numbers:
        parts.append(Text("What each number is: on what, how, with which weights, over how many seeds."))
        parts.append(Code("\n".join(numbers)))
    made = [Section("Published and measured", parts)]
    if len(unlike := compared(lines, table)) > 2:
        parts = [
            Grid(unlike, signed=True),
            Text("Percent, with 95 % intervals of the paired t test over shared seeds."),
        ]
        made.append(Section(f"Under one protocol: differences to {table.common}", parts))
    if plan is not None and table.pipelines:
        results = catalog.results(Storage(settings.storage), plan_document(plan, [], None))
        if (reached := stages(results)) is not None:
            made.append(reached)
    noted = [[point, table.row(point).note] for point in table.points if table.row(point).note]
    if noted:
        made.append(Section("Recipes that are not their authors'", [Grid([["configuration", "what differs"], *noted])]))
    aspects = {line.target.point: line.aspects for line in lines if line.aspects}
    if aspects:
        stated = [["configuration", "aspect", "", "here"]]
        stated += [[p, a.name, "same" if a.same else "differs", a.text] for p, some in aspects.items() for a in some]
        made.append(Section("What is as it was published", [Grid(stated)]))
    if plan is not None and (drawn := _curves(table, plan, settings)) is not None:
        caption = "Evaluation during training, over the points of the published log"
        if _is_tiny(plan):
            caption += "; this run is on the generated shapes, so the heights cannot be compared"
        made.append(Section("Training curves", [Picture("curves.png", drawn, caption)]))
    made.append(Section("Repeat it", [Code(_again(name, table, plan))]))
    return made


def _is_tiny(plan: Plan) -> bool:
    return plan.file.name.endswith("-tiny")


def _again(name: str, table: PaperTable, plan: Plan | None) -> str:
    """The command."""
    if plan is None:
        return f"mcc reproduce {name} --weights FILE"
    options = ["--scale tiny"] if _is_tiny(plan) else []
    options += [f"--only {','.join(table.points)}"] if table.points != load_table(name).points else []
    options += [f"--seeds {','.join(map(str, plan.file.seeds))}"] if plan.file.seeds != (0,) else []
    return " ".join(["mcc reproduce", name, *options])


def _curves(table: PaperTable, plan: Plan, settings: Settings) -> bytes | None:
    """Scores over the share of the training done: a shorter training is laid over the whole published one."""
    if not table.curves:
        return None
    from matplotlib.figure import Figure

    storage = Storage(settings.storage)
    stages = table.stages()
    trials = [trial for trial in plan.trials if trial.stage not in stages]
    events = {trial.name: history(storage, trial.identity) for trial in trials}
    figure = Figure(figsize=(4.2 * len(table.curves), 3.6), layout="constrained")
    panels = figure.subplots(1, len(table.curves), sharey=True, squeeze=False)[0]
    for axes, curve in zip(panels, table.curves, strict=True):
        values, label = [100 * value for value in curve.values], f"published log of {curve.point}"
        axes.plot(
            [(i + 1) / len(values) for i in range(len(values))],
            values,
            "k--",
            marker="o",
            label=label,
        )
        for trial in trials:
            curves = [
                (event["iteration"] / trial.experiment.train.iterations, 100 * event["metrics"][curve.metric])
                for event in events[trial.name]
                if event["kind"] == "metrics" and curve.metric in event["metrics"]
            ]
            if curves:
                axes.plot(*zip(*curves, strict=True), marker=".", label=trial.name)
        axes.set(title=f"{curve.metric}, percent", xlabel="share of the training")
        axes.grid(alpha=0.3)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right center")
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=110)
    return stream.getvalue()
