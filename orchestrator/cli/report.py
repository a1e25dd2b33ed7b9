"""`mcc report`: a sweep as a page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from orchestrator.cli.options import SweepName


def report(
    sweep: SweepName = None,
    out: Annotated[Path | None, typer.Option("--out", metavar="DIR", help="Default: reports/SWEEP.")] = None,
) -> None:
    """Write a sweep's report: HTML, Markdown, MLflow.

    One HTML file with its pictures inside; the same as Markdown; both go to the sweep's MLflow run too.
    """
    from orchestrator.reports.sweep import write_report
    from orchestrator.settings import Settings

    files, problem = write_report(Settings.from_environment(), sweep, out)
    for file in files:
        print(file)
    if problem:
        print(f"not in MLflow: {problem}")
