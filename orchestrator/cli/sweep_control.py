"""`mcc sweep stop | resume | retry | watch | logs | delete`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from mcc_core.errors import UsageError
from orchestrator.cli.completion import sweep_names
from orchestrator.cli.options import SweepName

if TYPE_CHECKING:
    from orchestrator.records.sweeps import Sweep
    from orchestrator.settings import Settings
    from orchestrator.storage.store import Storage


def stop(
    sweep: SweepName = None,
    wait: Annotated[float, typer.Option("--wait", min=0, help="Seconds to wait until it has ended.")] = 300.0,
) -> None:
    """Let running trials write a checkpoint and end.

    `mcc sweep resume` goes on from there.
    """
    from rich.console import Console

    from orchestrator.workflows import control as sweep_actions

    (_, storage, chosen), console = _opened(sweep), Console()
    with console.status(f"{chosen.id}: waiting for the trials' checkpoints"):
        ended = sweep_actions.stop(storage, chosen, wait)
    again = f"go on with: mcc sweep resume {chosen.id}"
    console.print(f"{chosen.id}: {'stopped' if ended else 'asked to stop, not yet ended'}; {again}", highlight=False)
    raise typer.Exit(0 if ended or not wait else 1)


def resume(
    sweep: Annotated[
        str | None,
        typer.Argument(metavar="[SWEEP]", help="Id, name or file; default: the newest.", autocompletion=sweep_names),
    ] = None,
) -> None:
    """Take a sweep up where it stands.

    From its record in storage: the file is not needed.
    """
    _run(sweep, only_failed=False)


def retry(
    sweep: SweepName = None,
    trial: Annotated[str | None, typer.Option("--trial", help="Name or identity of one of them.")] = None,
) -> None:
    """Run the failed trials of a sweep again.

    From their last checkpoints.
    """
    _run(sweep, only_failed=True, trial=trial)


def _run(sweep: str | None, *, only_failed: bool, trial: str | None = None) -> None:
    from rich.console import Console

    from orchestrator.cli.show import print_plan
    from orchestrator.workflows import control as sweep_actions
    from orchestrator.workflows.run_sweep import run_and_track

    (settings, storage, chosen), console = _opened(sweep_actions.sweep_or_file(sweep) if sweep else None), Console()
    only = sweep_actions.failed(storage, chosen, trial) if only_failed else None
    plan = sweep_actions.plan_again(chosen, settings)
    print_plan(plan, console)
    if only is not None:
        staged = "stages" in chosen.document["file"]
        what = "trials that failed, or take from one that did," if staged else "failed trials"
        console.print(f"{len(only)} {what} are run again", highlight=False)
    raise typer.Exit(run_and_track(plan, console, only=only))


def watch(
    sweep: SweepName = None,
    every: Annotated[float, typer.Option("--every", min=0.5, help="Seconds between looks.")] = 5.0,
) -> None:
    """Follow a sweep from any machine.

    From storage, until nobody runs it. Ctrl-C ends the watching alone.
    """
    import time

    from rich.console import Console
    from rich.live import Live

    from orchestrator.cli.show import print_status, status_table
    from orchestrator.records import sweeps as catalog
    from orchestrator.workflows import control as sweep_actions

    (_, storage, chosen), console = _opened(sweep), Console()
    with Live(console=console, auto_refresh=False, transient=True) as live:
        while sweep_actions.is_running(storage, chosen):
            chosen = catalog.find(storage, chosen.id)  # a search adds trials
            live.update(status_table(chosen, catalog.results(storage, chosen.document), console.width), refresh=True)
            time.sleep(every)
    print_status(chosen, catalog.results(storage, chosen.document), console)


def logs(
    trial: Annotated[str, typer.Argument(help="Name or identity of a trial, as `mcc sweep status` shows them.")],
    sweep: Annotated[
        str | None, typer.Option("--sweep", help="Id or name; default: the newest.", autocompletion=sweep_names)
    ] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on while the sweep runs.")] = False,
) -> None:
    """Print what a trial printed.

    Of its last attempt, the first worker.
    """
    from orchestrator.workflows import control as sweep_actions

    _, storage, chosen = _opened(sweep)
    key = sweep_actions.log_of(storage, chosen, trial)
    for text in sweep_actions.follow(storage, chosen, key, forever=follow):
        sys.stdout.write(text)
        sys.stdout.flush()


def delete(
    sweep: Annotated[str, typer.Argument(help="Id or name.", autocompletion=sweep_names)],
    yes: Annotated[bool, typer.Option("--yes", help="Do it.")] = False,
) -> None:
    """Delete a sweep, its trials and its MLflow runs.

    Not the trials that another sweep has.
    """
    from orchestrator.workflows import control as sweep_actions

    settings, storage, chosen = _opened(sweep)
    what = sweep_actions.deletion(storage, chosen)
    print(f"{what.sweep.id}: {len(what.trials)} trials with their events, checkpoints and pictures")
    for name in what.trials:
        print(f"  {name}")
    if what.shared:
        print(f"kept, as another sweep has them: {', '.join(what.shared)}")
    if not yes:
        raise UsageError(f"nothing was deleted; mcc sweep delete {what.sweep.id} --yes does it, for good")
    gone, problem = sweep_actions.delete(settings, chosen)
    if late := [name for name in gone.shared if name not in what.shared]:
        print(f"kept too, as another sweep has them since: {', '.join(late)}")
    print("deleted" + (f"; MLflow still has its runs: {problem}" if problem else ""))


def _opened(sweep: str | None) -> tuple[Settings, Storage, Sweep]:
    """The environment's settings and storage, and a sweep in it."""
    from orchestrator.records import sweeps as catalog
    from orchestrator.settings import Settings
    from orchestrator.storage.store import Storage

    settings = Settings.from_environment()
    storage = Storage(settings.storage)
    return settings, storage, catalog.find(storage, sweep)
