"""`mcc reproduce`: the paper's tables."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mcc_core.errors import UsageError
from orchestrator.cli.completion import fields, tables
from orchestrator.cli.options import overrides, seed_list

if TYPE_CHECKING:
    from rich.console import Console

    from orchestrator.settings import Settings
    from orchestrator.spec.paper_table import PaperTable

ForRows = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="[ROW:]KEY=VALUE",
        help="Replace a field in every row, or in one. The value is YAML.",
        autocompletion=fields,
    ),
]


def reproduce(
    table: Annotated[
        str | None, typer.Argument(metavar="[TABLE]", help="Such as voc-table1.", autocompletion=tables)
    ] = None,
    list_: Annotated[bool, typer.Option("--list", help="Name the tables.")] = False,
    scale: Annotated[str, typer.Option("--scale", help="paper, or tiny: every step on generated shapes.")] = "paper",
    only: Annotated[str | None, typer.Option("--only", metavar="ROW,ROW", help="These rows, such as toco,mcc.")] = None,
    data: Annotated[Path | None, typer.Option("--data", help="Prepared dataset; default: data/voc, data/coco.")] = None,
    set_: ForRows = None,
    weights: Annotated[
        list[str] | None,
        typer.Option("--weights", metavar="[ROW=]FILE", help="Score this checkpoint; train nothing. Repeatable."),
    ] = None,
    seeds: Annotated[str, typer.Option("--seeds", metavar="0,1,2", help="Seeds of every configuration.")] = "0",
    plan: Annotated[bool, typer.Option("--plan", help="Say what would run, row by row, and stop.")] = False,
    rate: Annotated[float | None, typer.Option("--rate", min=0.001, help="Images a second, for --plan.")] = None,
    gpu: Annotated[str | None, typer.Option("--gpu", metavar="NAME", help="What that rate is of, for --plan.")] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Default: reproductions/TABLE-SCALE.")] = None,
    bundle: Annotated[
        Path | None, typer.Option("--bundle", metavar="FILE.zip", help="All that stands behind it in one file, too.")
    ] = None,
    processes: Annotated[int, typer.Option("--processes", min=0, help="For label maps and CRF.")] = 0,
) -> None:
    """Run a table or figure of the paper and compare the numbers.

    Without a table: the same as --list.
    """
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from orchestrator.reports.pages import require_ours
    from orchestrator.reproduction import scores as run
    from orchestrator.reproduction.bundle import require_free, write_bundle
    from orchestrator.reproduction.lines import short_rows
    from orchestrator.reproduction.numbers import numbers
    from orchestrator.reproduction.report import write_reproduction
    from orchestrator.reproduction.runs import plan_table
    from orchestrator.reproduction.sheet import write_sheet
    from orchestrator.settings import Settings
    from orchestrator.spec.paper_table import (
        load_table,
        of_small_networks,
        table_names,
        with_given,
        with_points,
        with_rows,
    )
    from orchestrator.workflows.run_sweep import run_and_track
    from orchestrator.workflows.terminal import board

    console = Console()
    if scale not in ("paper", "tiny"):
        raise UsageError(f"--scale {scale}: expected paper or tiny")
    if weights and (plan or set_ or seeds != "0" or scale != "paper"):
        raise UsageError(
            "--weights: scores checkpoints and trains nothing, so --plan, --seeds, --scale and --set do not apply"
        )
    if list_ or table is None:
        given: dict[str, object] = {"TABLE": table, "--scale": scale != "paper", "--seeds": seeds != "0"}
        given |= {"--set": set_, "--plan": plan, "--only": only is not None}
        given |= {"--data": data, "--weights": weights, "--out": out, "--rate": rate, "--gpu": gpu}
        given |= {"--processes": processes, "--bundle": bundle}
        if unused := [name for name, value in given.items() if value]:
            raise UsageError(f"{unused[0]}: does not apply where tables are only listed; give TABLE without --list")
        for name in table_names():
            console.print(f"{name:14} {load_table(name).description}", highlight=False)
        return
    chosen, settings = load_table(table), Settings.from_environment()
    if only is not None:
        chosen = with_rows(chosen, only.split(","))
    if bundle is not None:
        if plan or chosen.sheet is not None:
            why = "--plan runs nothing" if plan else f"{table} is a figure without numbers"
            raise UsageError(f"--bundle: does not apply: {why}")
        require_free(bundle)
    wanted = seed_list(seeds)
    if chosen.sheet is not None and len(wanted) > 1:
        raise UsageError(f"--seeds {seeds}: {table} shows one network of each method; give one seed")
    if not weights:
        chosen, left_out = with_given(chosen, overrides(set_), only.split(",") if only else ())
        for line in left_out:
            console.print(line, highlight=False, markup=False, soft_wrap=True)
    source = data or Path("data") / str(chosen.sweep["base"])
    target = out or Path("reproductions") / f"{table}-{'weights' if weights else scale}"
    require_ours(target, ("table.html", "table.md", "figure.html"))
    if plan:
        show_costs(chosen, table, scale, source, wanted, overrides(set_), settings, rate, gpu, console)
        return
    made = None
    if weights:
        networks = run.given(chosen, weights, source, settings)
    else:
        made = plan_table(chosen, table, scale, source, wanted, overrides(set_), settings)
        chosen = with_points(chosen, (trial.point for trial in made.trials))
        chosen = of_small_networks(chosen) if scale == "tiny" else chosen
        if code := run_and_track(made, console):
            raise typer.Exit(code)
        networks = run.trained(made, scale, settings, chosen)
    columns = (TextColumn("{task.description}"), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, transient=True, console=console) as progress:
        task = progress.add_task("scoring", total=None)

        def on_image(what: str, done: int, total: int) -> None:
            progress.update(task, description=what, completed=done, total=total)

        if chosen.sheet is not None:
            page = write_sheet(chosen, networks, settings, target, on_image)
        else:
            lines = run.score(chosen, networks, settings, target, processes, on_image)
    if chosen.sheet is not None:
        console.print(str(page), highlight=False, soft_wrap=True)
        return
    console.print(board(short_rows(lines, chosen), f"{table}: {chosen.description}"))
    for text in run.told(chosen, networks, lines):
        console.print(text, highlight=False, markup=False, soft_wrap=True)
    said = numbers(lines, chosen, networks.networks)
    common = run.common_text(chosen, networks)
    for file in write_reproduction(table, chosen, lines, made, settings, target, common, said):
        console.print(str(file), highlight=False, soft_wrap=True)
    if bundle is not None:
        write_bundle(bundle, table, chosen, lines, said, networks.networks, made, settings, target, sys.argv)
        console.print(str(bundle), highlight=False, soft_wrap=True)


def show_costs(
    table: PaperTable,
    name: str,
    scale: str,
    data: Path,
    seeds: tuple[int, ...],
    changes: dict[str, Any],
    settings: Settings,
    rate: float | None,
    gpu: str | None,
    console: Console,
) -> None:
    """Print what each row costs, also where its data are missing."""
    from orchestrator.reproduction.costs import cost_rows, notes, published_device, row_costs
    from orchestrator.reproduction.runs import missing, plan_table, table_sweep
    from orchestrator.spec.paper_table import of_small_networks
    from orchestrator.workflows.terminal import board

    if rate is not None and len(table.points) > 1:
        raise UsageError(f"--rate {rate:g}: is of one row; give --only with one of {', '.join(table.points)}")
    lacking = missing(table, data, changes, train=True) if scale == "paper" else []
    made = None
    if not lacking:
        made = plan_table(table, name, scale, data, seeds, changes, settings, estimate=bool(table.pipelines))
    table = of_small_networks(table) if scale == "tiny" else table
    costs = row_costs(table, table_sweep(table, scale, data, seeds, changes), made, settings)
    here = "GPU" if made is not None and made.gpus_per_worker else "worker"
    device = published_device(table) if scale == "paper" else None
    console.print(board(cost_rows(costs, device, here), f"{name}: {table.description}"))
    for line in notes(table, costs, made, rate, gpu, settings):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    for line in [f"{name} needs what is not here:", *lacking] if lacking else []:
        console.print(line, highlight=False, markup=False, soft_wrap=True)
