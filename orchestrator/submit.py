"""Running a plan with everything around it: live progress, MLflow, the summary at the end."""

from __future__ import annotations

import sys
import time

from rich.console import Console

from orchestrator import catalog
from orchestrator.plan import Plan, plan_document
from orchestrator.progress import SweepProgress, print_summary
from orchestrator.runner import run
from orchestrator.settings import Settings
from orchestrator.storage import Storage
from orchestrator.tracking import Feeder, summary


def run_and_track(plan: Plan, console: Console, *, force: bool = False) -> int:
    """Run what is left of a plan, show it and track it. Returns the exit code: 0 when every trial finished, else 1."""
    settings = Settings.from_environment()
    storage = Storage(settings.storage)
    began = time.monotonic()
    document = plan_document(plan, sys.argv, None)
    with Feeder(settings, document) as feeder:
        with SweepProgress(plan, storage, console) as progress:

            def tick() -> None:
                progress.note = (
                    f"MLflow does not answer, it will be fed later: {feeder.problem}" if feeder.problem else None
                )
                progress.tick()

            run(plan, settings, force=force, on_tick=tick, command=sys.argv)
        with console.status("writing to MLflow"):
            complete = feeder.finish()
    results = catalog.results(storage, document)
    files = summary(document, results, {})
    files.pop("curves.png")
    for name, content in files.items():
        storage.write(f"sweeps/{plan.sweep}/{name}", content)
    print_summary(plan, results, console, home=settings.storage, seconds=time.monotonic() - began)
    if not complete:
        console.print(f"MLflow did not answer ({feeder.problem}); nothing is lost: mcc track rebuild {plan.sweep}")
    return 0 if all(result.status == "finished" for result in results) else 1
