"""What `mcc sweep submit` shows of a sweep over evaluation parameters."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from orchestrator.analysis.leaderboard import leaderboard, table
from orchestrator.cluster.session import local_capacity
from orchestrator.settings import Settings
from orchestrator.workflows.posthoc import plan_posthoc, run_posthoc
from orchestrator.workflows.terminal import board, print_unfinished


def show_posthoc(file: Path, console: Console, *, dry_run: bool, force: bool) -> int:
    """Plan, score and print; returns the exit code."""
    settings = Settings.from_environment()
    made = plan_posthoc(file, settings)
    console.print(
        f"{made.sweep}: {len(made.points)} points of {made.file.protocol} on {made.checkpoint}", soft_wrap=True
    )
    if dry_run:
        for point in made.points:
            console.print(f"  {point.setting.name}", highlight=False)
        return 0
    cpus = int(local_capacity().cpus)
    columns = (TextColumn("evaluating"), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, transient=True, console=console) as progress:
        task = progress.add_task("", total=None)
        results, problem = run_posthoc(
            made,
            settings,
            processes=cpus if cpus > 1 else 0,
            force=force,
            on_image=lambda done, total: progress.update(task, completed=done, total=total),
        )
    rows = leaderboard(results, made.metric, made.file.mode)
    if rows:
        console.print(board(table(rows[:20], made.metric), f"{made.sweep}, by {made.metric}"))
    print_unfinished(results, console)
    if problem:
        console.print(f"MLflow did not answer ({problem}); mcc track rebuild {made.sweep}", highlight=False)
    return 0 if len(rows) == len(results) else 1
