"""`mcc reproduce`: the paper's tables."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mcc_core.errors import UsageError
from orchestrator.cli.completion import tables
from orchestrator.cli.options import Set, overrides, seed_list


def reproduce(
    table: Annotated[
        str | None, typer.Argument(metavar="[TABLE]", help="Such as voc-table1.", autocompletion=tables)
    ] = None,
    list_: Annotated[bool, typer.Option("--list", help="Name the tables.")] = False,
    scale: Annotated[str, typer.Option("--scale", help="paper, or tiny: every step on generated shapes.")] = "paper",
    data: Annotated[Path | None, typer.Option("--data", help="Prepared dataset; default: data/voc, data/coco.")] = None,
    set_: Set = None,
    weights: Annotated[Path | None, typer.Option("--weights", help="Score this checkpoint; train nothing.")] = None,
    seeds: Annotated[str, typer.Option("--seeds", metavar="0,1,2", help="Seeds of every configuration.")] = "0",
    plan: Annotated[bool, typer.Option("--plan", help="Say what would run, and stop.")] = False,
    rate: Annotated[float | None, typer.Option("--rate", min=0.001, help="Images a second, for --plan.")] = None,
    gpu: Annotated[str | None, typer.Option("--gpu", metavar="NAME", help="What that rate is of, for --plan.")] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Default: reproductions/TABLE-SCALE.")] = None,
    processes: Annotated[int, typer.Option("--processes", min=0, help="For label maps and CRF.")] = 0,
) -> None:
    """Run a table of the paper and compare with what is printed.

    Without a table: the same as --list.
    """
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from orchestrator.reports.pages import require_ours
    from orchestrator.reproduction import scores as run
    from orchestrator.reproduction.report import print_costs, write_reproduction
    from orchestrator.settings import Settings
    from orchestrator.spec.paper_table import load_table, table_names, with_points
    from orchestrator.workflows.run_sweep import run_and_track
    from orchestrator.workflows.terminal import board

    console = Console()
    if scale not in ("paper", "tiny"):
        raise UsageError(f"--scale {scale}: expected paper or tiny")
    if weights is not None and (plan or set_ or seeds != "0"):
        raise UsageError("--weights: scores a checkpoint and trains nothing, so --plan, --seeds and --set do not apply")
    if list_ or table is None:
        given: dict[str, object] = {"TABLE": table, "--scale": scale != "paper", "--seeds": seeds != "0"}
        given |= {"--set": set_, "--plan": plan}
        given |= {"--data": data, "--weights": weights, "--out": out, "--rate": rate, "--gpu": gpu}
        given |= {"--processes": processes}
        if unused := [name for name, value in given.items() if value]:
            raise UsageError(f"{unused[0]}: does not apply where tables are only listed; give TABLE without --list")
        for name in table_names():
            console.print(f"{name:14} {load_table(name).description}", highlight=False)
        return
    chosen, settings = load_table(table), Settings.from_environment()
    source = data or Path("data") / str(chosen.sweep["base"])
    target = out or Path("reproductions") / f"{table}-{'weights' if weights else scale}"
    require_ours(target, ("table.html", "table.md"))
    columns = (TextColumn("{task.description}"), MofNCompleteColumn(), TimeRemainingColumn())
    made = None
    if weights is None:
        wanted, changes = seed_list(seeds), overrides(set_)
        lacking = run.missing(chosen, source, changes, train=True) if plan and scale == "paper" else []
        if not lacking:
            made = run.plan_table(chosen, table, scale, source, wanted, changes, settings)
        if plan:
            print_costs(table, run.table_sweep(chosen, scale, source, wanted, changes), made, console, rate, gpu)
            for line in [f"{table} needs what is not here:", *lacking] if lacking else []:
                console.print(line, highlight=False, markup=False, soft_wrap=True)
            return
        assert made is not None
        chosen = with_points(chosen, (trial.point for trial in made.trials))
        if code := run_and_track(made, console):
            raise typer.Exit(code)
    with Progress(*columns, transient=True, console=console) as progress:
        task = progress.add_task("scoring", total=None)

        def on_image(what: str, done: int, total: int) -> None:
            progress.update(task, description=what, completed=done, total=total)

        if weights is not None:
            lines = run.score_weights(chosen, weights, source, settings, target, processes, on_image)
        else:
            assert made is not None
            lines = run.score_plan(chosen, made, settings, target, processes, on_image)
    console.print(board(run.short_rows(lines, chosen), f"{table}: {chosen.description}"))
    for reason in dict.fromkeys(line.verdict for line in lines if ":" in line.verdict):
        console.print(reason, highlight=False, soft_wrap=True)
    for file in write_reproduction(table, chosen, lines, made, settings, target):
        console.print(str(file), highlight=False, soft_wrap=True)
