"""`mcc train`: one trial, as a sweep of one."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from orchestrator.cli import completion
from orchestrator.cli.options import Set, Workers, overrides


def train(
    experiment: Annotated[
        str,
        typer.Argument(
            metavar="PRESET|FILE", help="Preset, or experiment file (YAML).", autocompletion=completion.experiments
        ),
    ],
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of weights, batches and masks.")] = 0,
    set_: Set = None,
    workers: Workers = None,
    name: Annotated[str | None, typer.Option("--name", help="Name of the run; default: the preset's.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Train again even if this trial finished before.")] = False,
) -> None:
    """Train one trial.

    The same machinery as a sweep: tracked, resumable, not run twice.
    """
    from rich.console import Console

    from mcc_core.experiment_files import load_base
    from mcc_core.validation import validate
    from orchestrator.cli.show import print_plan
    from orchestrator.planning.plan import plan_sweep
    from orchestrator.settings import Settings
    from orchestrator.spec.sweep_file import SweepFile
    from orchestrator.workflows.run_sweep import run_and_track
    from orchestrator.workflows.terminal import print_stage

    load_base(experiment)
    sweep = validate(
        SweepFile,
        {"name": Path(experiment).stem if name is None else name, "base": experiment, "seeds": [seed]},
        "mcc train",
    )
    console, began = Console(), time.monotonic()
    made = plan_sweep(sweep, experiment, None, overrides(set_), workers, Settings.from_environment())
    print_stage("data and plan", began, console)
    print_plan(made, console)
    raise typer.Exit(run_and_track(made, console, force=force))
