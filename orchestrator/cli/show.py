"""How the commands print plans, sweeps and trials."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from mcc_core.schedules import Constant, value_at
from orchestrator.analysis.leaderboard import (
    ABSENT,
    all_background,
    columns,
    lacks,
    leaderboard,
    table,
    unlike,
    unscored,
)
from orchestrator.cli.records import no_score
from orchestrator.cli.show_stages import tree
from orchestrator.planning.configurations import Trial
from orchestrator.planning.plan import Plan
from orchestrator.records import layout
from orchestrator.records.checkpoints import best_saved, saved_checkpoints
from orchestrator.records.results import Result
from orchestrator.records.status import TrialStatus
from orchestrator.records.sweeps import Sweep
from orchestrator.spec.stages_file import StagesFile
from orchestrator.storage.store import Storage
from orchestrator.text import duration, shortened, size_text
from orchestrator.workflows.terminal import board, print_ladder, print_unfinished

_BARS = "▁▂▃▄▅▆▇█"


def print_plan(plan: Plan, console: Console) -> None:
    """Trials, data and the time that running them will take."""
    console.print(tree(plan) if isinstance(plan.file, StagesFile) else _trials(plan, console.width))
    for index in plan.indexes.values():
        facts = (
            f"data: {len(index.train)} training images, {len(index.val)} for validation, {len(index.classes)} classes"
        )
        console.print(facts, highlight=False)
        if index.skipped:
            console.print(f"[yellow]{len(index.skipped)} images left out:[/yellow]", highlight=False)
            for line in index.skipped[:10]:
                console.print(f"  {line}", highlight=False, soft_wrap=True)
    if plan.duplicates:
        console.print(f"the same as another trial, left out: {', '.join(plan.duplicates)}", highlight=False)
    for note in plan.notes:
        console.print(f"[yellow]note:[/yellow] {escape(note)}", highlight=False, soft_wrap=True)
    if plan.open is not None:
        console.print(f"{plan.open.left} more points will be proposed as results come in", highlight=False)
    left = len(plan.trials) - len(plan.finished)
    text = f"{plan.sweep}: {left} of {len(plan.trials)} trials to run, {plan.concurrent} at a time"
    if left and plan.estimate_s is not None:
        text += f", about {duration(plan.estimate_s)}"
    if left and plan.estimate:
        text += f" and {plan.estimate.worker_s / 3600:.2g} worker-hours (by {plan.estimate.source})"
    if left and plan.disk_bytes is not None:
        text += f", up to {size_text(plan.disk_bytes)} in storage"
    console.print(text, highlight=False)


def _trials(plan: Plan, width: int) -> Table:
    """One line per trial."""
    table = Table(box=None, pad_edge=False)
    keys = list(dict.fromkeys(key for trial in plan.trials for key in trial.varied))
    table.add_column("trial", no_wrap=True)
    for key in keys:
        table.add_column(key)
    table.add_column("seed", justify="right")
    table.add_column("")
    for trial in plan.trials:
        values = [_value(trial, key) for key in keys]
        name = shortened(trial.name, 24 if width < 110 else 60)
        table.add_row(name, *values, str(trial.seed), "done before" if trial.identity in plan.finished else "")
    return table


def print_sweeps(sweeps: Sequence[tuple[Sweep, Sequence[Result]]], console: Console) -> None:
    """One line per sweep."""
    if not sweeps:
        console.print("no sweep was submitted yet")
        return
    table = Table(box=None, pad_edge=False)
    for name in ("sweep", "created", "trials", "best", "score"):
        table.add_column(name)
    for sweep, results in sweeps:
        rows = leaderboard(results, sweep.metric, sweep.mode)
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(sweep.created))
        counts = ", ".join(f"{n} {status}" for status, n in Counter(r.status for r in results).items())
        table.add_row(
            sweep.id, when, counts, rows[0].point if rows else "", f"{100 * rows[0].score:.1f}" if rows else ""
        )
    console.print(table)


def print_status(sweep: Sweep, results: Sequence[Result], console: Console) -> None:
    """One line per trial, and why those that have no result have none."""
    console.print(status_table(sweep, results, console.width))
    print_ladder(results, console)
    print_unfinished([r for r in results if r.status != TrialStatus.NEW or r.message], console)


def status_table(sweep: Sweep, results: Sequence[Result], width: int) -> Table:
    """One line per trial."""
    table = Table(title=sweep.id, title_justify="left", title_style="bold", box=None, pad_edge=False)
    wide = width >= 110
    table.add_column("trial", no_wrap=True)
    several = unlike(result.method for result in results)
    if several:
        table.add_column("method")
    table.add_column("state")
    measured = {key for result in results for key in result.metrics} | {sweep.metric}
    shown = {title: key for title, key in columns(sweep.metric).items() if key in measured}
    for name in shown:
        table.add_column(name, justify="right")
    if wide:
        table.add_column("identity", no_wrap=True)
    for result in results:
        scores = [_score(result, key) for key in shown.values()]
        name = shortened(result.name, 60 if wide else 34)
        state = f"{result.status}-{result.cause}" if result.cause else result.status
        named = [name, *([result.method] if several else [])]
        table.add_row(*named, state, *scores, *([result.identity] if wide else []))
    return table


def _score(result: Result, key: str) -> str:
    if key not in result.metrics:
        return ABSENT if result.metrics and lacks(result.method, key) else ""
    score = result.score(key)
    return "-" if score is None else f"{100 * score:.1f}"


def print_best(
    sweep: Sweep, results: Sequence[Result], runs: Mapping[str, str], storage: Storage, metric: str, console: Console
) -> None:
    """The best configuration by a metric, its scores, and where the checkpoint of its best seed is.

    `runs` are ids of MLflow runs by identity. Raises UsageError when nothing was measured.
    """
    rows = leaderboard(results, metric, sweep.mode)
    if not rows:
        raise no_score(sweep, results, metric)
    trials = [r for r in results if r.point == rows[0].point and r.status == TrialStatus.FINISHED]
    trials = [r for r in trials if r.score(metric) is not None]
    pick = max if sweep.mode == "max" else min
    top = pick(trials, key=lambda r: r.metrics[metric])
    lines = table(rows[:5], metric, all_background(results))
    console.print(board(lines, f"{sweep.id}, by {metric}"))
    if note := unscored(results, metric):
        console.print(note, highlight=False, markup=False, soft_wrap=True)
    if top.identity in runs:
        console.print(f"MLflow run: {runs[top.identity]}", highlight=False, soft_wrap=True)
    saved = best_saved(saved_checkpoints(storage, top.identity), sweep.mode)
    if saved is not None:
        key = saved.key(top.identity)
        console.print(f"checkpoint: {storage.where(key)}", highlight=False, soft_wrap=True)
    if storage.exists(labels := layout.label_set(top.identity)):
        console.print(f"labels: {storage.where(labels)}", highlight=False, soft_wrap=True)


def _value(trial: Trial, key: str) -> str:
    """A varied value; a schedule with a little picture of itself."""
    text = trial.varied.get(key, "")
    node: object = trial.experiment
    for part in key.split("."):
        node = node.get(part) if isinstance(node, dict) else getattr(node, part, None)
    if not text or not hasattr(node, "at") or isinstance(node, Constant):
        return text
    total = trial.experiment.train.iterations
    values = [value_at(node, i * (total - 1) // 7, total) for i in range(8)]  # type: ignore[arg-type]
    low, high = min(values), max(values)
    bars = "".join(_BARS[round(7 * (v - low) / (high - low))] if high > low else _BARS[3] for v in values)
    return f"{text} {bars}"
