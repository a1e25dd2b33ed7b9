"""`mcc sweep`: plan, submit, list, status, best."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mcc_core.errors import UsageError
from orchestrator.cli.options import Base, Set, SweepName, Workers, overrides, seed_list

if TYPE_CHECKING:
    from orchestrator.planning.plan import Plan
    from orchestrator.records.results import Result
    from orchestrator.settings import Settings

app = typer.Typer(help="Plan, run and look at sweeps of trials.", no_args_is_help=True)

File = Annotated[Path, typer.Argument(metavar="FILE", help="Sweep file (YAML).")]
Seeds = Annotated[str | None, typer.Option("--seeds", metavar="0,1,2", help="Seeds instead of the file's.")]
On = Annotated[str, typer.Option("--on", help="local, auto (RAY_ADDRESS, else local), or http://HEAD:8265.")]
Json = Annotated[bool, typer.Option("--json", help="For programs.")]
Concurrent = Annotated[int | None, typer.Option("--max-concurrent", min=1, help="Trials at a time, at most.")]


def _plan(
    file: Path, base: str | None, set_: list[str] | None, workers: int | None, seeds: str | None, most: int | None
) -> Plan:
    from rich.console import Console

    from orchestrator.planning.plan import plan_sweep
    from orchestrator.planning.stage_plan import plan_stages
    from orchestrator.settings import Settings
    from orchestrator.spec import stages_file
    from orchestrator.spec.sweep_file import load_sweep, with_run_options

    chosen = seed_list(seeds) if seeds is not None else None
    waiting = Console(stderr=True).status("planning: data, earlier trials, a few training steps")
    settings = Settings.from_environment()
    if stages_file.is_staged(file):
        if base is not None:
            raise UsageError(f"--base {base}: {file} has stages, each with a base of its own")
        stages = stages_file.with_run_options(stages_file.load_stages(file), chosen, most)
        with waiting:
            return plan_stages(stages, str(file), overrides(set_), workers, settings)
    sweep = with_run_options(load_sweep(file), chosen, most)
    with waiting:
        return plan_sweep(sweep, str(file), base, overrides(set_), workers, settings)


def _refuse(file: Path, *options: object) -> None:
    if any(options):
        raise UsageError(f"{file}: trains nothing (it has `of`), so --base, --set, --workers, --seeds do not apply")


@app.command()
def plan(
    file: File,
    base: Base = None,
    set_: Set = None,
    workers: Workers = None,
    seeds: Seeds = None,
    max_concurrent: Concurrent = None,
) -> None:
    """Show the trials and their time. Runs nothing."""
    from rich.console import Console

    from orchestrator.cli.posthoc import show_posthoc
    from orchestrator.cli.show import print_plan
    from orchestrator.workflows.posthoc import is_posthoc

    if is_posthoc(file):
        _refuse(file, base, set_, workers, seeds)
        raise typer.Exit(show_posthoc(file, Console(), dry_run=True, force=False))
    print_plan(_plan(file, base, set_, workers, seeds, max_concurrent), Console())


@app.command()
def submit(
    file: File,
    base: Base = None,
    set_: Set = None,
    workers: Workers = None,
    seeds: Seeds = None,
    max_concurrent: Concurrent = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Plan only.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Run finished trials again.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Only if it was submitted before.")] = False,
    on: On = "auto",
    detach: Annotated[bool, typer.Option("--detach", help="With --on http://...: do not follow the job.")] = False,
    remote_python: Annotated[str, typer.Option("--remote-python", help="Interpreter on the cluster.")] = "python",
) -> None:
    """Run every trial that has not finished before.

    Ctrl-C stops the sweep so that it can go on later: submit it again, or resume it.
    """
    from rich.console import Console

    from orchestrator.cluster.jobs import is_remote

    if is_remote(on):
        named = {"--workers": workers, "--seeds": seeds, "--max-concurrent": max_concurrent}
        options = [text for name, value in named.items() if value is not None for text in (name, str(value))]
        options += [text for value in _shipped(file, set_ or [], base) for text in ("--set", value)]
        options += [name for name, value in (("--dry-run", dry_run), ("--force", force), ("--resume", resume)) if value]
        raise typer.Exit(submit_remote(on, file, options, base, detach=detach, python=remote_python))
    if on == "local":
        os.environ["RAY_ADDRESS"] = "local"
    from orchestrator.cli.posthoc import show_posthoc
    from orchestrator.cli.show import print_plan
    from orchestrator.workflows.control import require_submitted
    from orchestrator.workflows.posthoc import is_posthoc
    from orchestrator.workflows.run_sweep import run_and_track
    from orchestrator.workflows.terminal import print_stage

    console = Console()
    if is_posthoc(file):
        _refuse(file, base, set_, workers, seeds)
        raise typer.Exit(show_posthoc(file, console, dry_run=dry_run, force=force))
    began = time.monotonic()
    made = _plan(file, base, set_, workers, seeds, max_concurrent)
    print_stage("data and plan", began, console)
    if resume:
        require_submitted(made.sweep)
    print_plan(made, console)
    if not dry_run:
        raise typer.Exit(run_and_track(made, console, force=force))


def _shipped(file: Path, changes: list[str], base: str | None) -> list[str]:
    """The values of `--set` as a cluster can read them, with the files that the sweep on its base names."""
    from orchestrator.settings import Settings
    from orchestrator.storage.store import Storage
    from orchestrator.workflows.remote_files import with_sent_files
    from orchestrator.workflows.remote_labels import with_sent_labels

    if not os.environ.get("MCC_STORAGE"):  # which the submission refuses
        return changes
    storage = Storage(Settings.from_environment().storage)
    return with_sent_files(file, with_sent_labels(file, changes, storage, base), storage, base)


def submit_remote(
    on: str, file: Path, options: list[str], base: str | None = None, *, detach: bool, python: str
) -> int:
    """Submit to a cluster's Jobs API and, unless detached, follow the job."""
    from orchestrator.cluster.jobs import submit_job

    job = submit_job(on, file, options, python=python, base=base)
    print(f"job {job}; again later: mcc sweep attach {job} --on {on}", flush=True)
    return 0 if detach else _follow(on, job)


def _follow(on: str, job: str) -> int:
    from orchestrator.cluster.jobs import follow_job

    try:
        return follow_job(on, job, lambda text: print(text, end="", flush=True))
    except KeyboardInterrupt:
        print(f"\nthe job goes on; mcc sweep attach {job} --on {on}, or mcc sweep stop ends its sweep")
        return 0


@app.command()
def attach(
    job: Annotated[str, typer.Argument(help="Id that `submit --on` printed.")],
    on: Annotated[str, typer.Option("--on", help="http://HEAD:8265.")],
) -> None:
    """Follow a sweep that was submitted to a cluster.

    Ctrl-C ends the following alone.
    """
    from orchestrator.cluster.jobs import is_remote

    if not is_remote(on):
        raise UsageError(f"--on {on}: expected http://HEAD:8265")
    raise typer.Exit(_follow(on, job))


@app.command("list")
def list_(as_json: Json = False) -> None:
    """List the sweeps that were submitted, newest first."""
    from rich.console import Console

    from orchestrator.cli.records import print_json, sweep_record
    from orchestrator.cli.show import print_sweeps
    from orchestrator.records import sweeps as catalog
    from orchestrator.settings import Settings
    from orchestrator.storage.store import Storage

    settings = Settings.from_environment()
    storage = Storage(settings.storage)
    sweeps = [(s, catalog.results(storage, s.document)) for s in catalog.sweeps(storage)]
    if as_json:
        print_json([sweep_record(sweep, results) for sweep, results in sweeps])
    else:
        print_sweeps(sweeps, Console())
    _settle(settings, [result for _, results in sweeps for result in results])


@app.command()
def status(sweep: SweepName = None, as_json: Json = False) -> None:
    """Show how each trial of a sweep stands."""
    from rich.console import Console

    from orchestrator.cli.records import print_json, sweep_record, trial_record
    from orchestrator.cli.show import print_status
    from orchestrator.records import sweeps as catalog
    from orchestrator.settings import Settings
    from orchestrator.storage.store import Storage

    settings = Settings.from_environment()
    storage = Storage(settings.storage)
    chosen = catalog.find(storage, sweep)
    results = catalog.results(storage, chosen.document)
    if as_json:
        print_json(sweep_record(chosen, results) | {"trials": [trial_record(result) for result in results]})
    else:
        print_status(chosen, results, Console())
    _settle(settings, results)


def _settle(settings: Settings, results: Sequence[Result]) -> None:
    """What was just printed as interrupted is to say so in MLflow too."""
    from orchestrator.records.status import TrialStatus

    if any(result.status == TrialStatus.INTERRUPTED for result in results):
        from orchestrator.tracking.liveness import settle_soon

        sys.stdout.flush()
        settle_soon(settings)


@app.command()
def best(
    sweep: SweepName = None,
    metric: Annotated[str | None, typer.Option("--metric", help="Such as val/cam/ms/miou.")] = None,
    as_json: Json = False,
    register: Annotated[
        str | None, typer.Option("--register", metavar="NAME", help="Put the best trial into MLflow's registry.")
    ] = None,
    alias: Annotated[str | None, typer.Option("--alias", help="Of the version, such as champion.")] = None,
) -> None:
    """Show the best configurations and their checkpoint.

    The numbers are those in storage.
    """
    from rich.console import Console

    from orchestrator.cli.records import best_record, print_json
    from orchestrator.cli.show import print_best
    from orchestrator.records import sweeps as catalog
    from orchestrator.settings import Settings
    from orchestrator.storage.store import Storage
    from orchestrator.tracking import queries
    from orchestrator.tracking.registration import check_names, register_trial

    if register is not None:
        check_names(register, alias)
    elif alias is not None:
        raise UsageError(f"--alias {alias}: names a version of --register NAME")
    settings, console = Settings.from_environment(), Console()
    storage = Storage(settings.storage)
    chosen = catalog.find(storage, sweep)
    results, runs = catalog.results(storage, chosen.document), {}
    try:
        runs = queries.runs(settings, chosen.id)
    except Exception as error:  # whatever MLflow, its database or its network come up with
        note = f"MLflow does not answer ({type(error).__name__}), so its runs are not named"
        Console(stderr=True).print(note, highlight=False, markup=False, soft_wrap=True)
    by = chosen.metric if metric is None else metric
    made = None
    if register is not None:
        winner = best_record(chosen, results, runs, storage, by)
        made = register_trial(settings, chosen, winner["identity"], register, alias)
    if as_json:
        more = {"registered": {"name": made.name, "version": made.version, "uri": made.uri}} if made else {}
        print_json(best_record(chosen, results, runs, storage, by) | more)
        return
    print_best(chosen, results, runs, storage, by, console)
    if made is not None:
        console.print(f"registered as {made.uri}, version {made.version}", highlight=False, markup=False)
