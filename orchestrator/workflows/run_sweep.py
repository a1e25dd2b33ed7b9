"""Running a plan with everything around it: live progress, MLflow, the summary at the end."""

from __future__ import annotations

import sys
import time
from collections.abc import Collection
from functools import partial

from rich.console import Console

from orchestrator.analysis.figures import summary
from orchestrator.environment import git_state
from orchestrator.execution.runner import run
from orchestrator.planning.configurations import Trial
from orchestrator.planning.plan import Plan, plan_document, trial_document
from orchestrator.records import layout
from orchestrator.records import sweeps as catalog
from orchestrator.records.budget import sweep_state
from orchestrator.records.events import history
from orchestrator.records.status import DONE, TrialStatus
from orchestrator.reports.sweep import final_report, is_quick
from orchestrator.settings import Settings
from orchestrator.storage.store import Storage, retry
from orchestrator.tracking.background import BackgroundSync
from orchestrator.workflows.terminal import SweepProgress, print_stage, print_summary


def run_and_track(plan: Plan, console: Console, *, force: bool = False, only: Collection[str] | None = None) -> int:
    """Run what is left of a plan, show it and track it.

    Returns the exit code: 0 when every trial finished, 130 when the sweep was stopped (Ctrl-C), else 1.
    """
    settings = Settings.from_environment()
    storage = Storage(settings.storage)
    storage.check()
    began = time.monotonic()
    git = git_state()
    catalog.forget(storage, plan.sweep)
    document = plan_document(plan, sys.argv, git["commit"] if git else None)
    with BackgroundSync(settings, document) as feeder:
        with SweepProgress(plan, storage, console) as progress:

            def tick() -> None:
                progress.note = f"MLflow waits: {feeder.problem}" if feeder.problem else None
                progress.tick()

            def grown(trial: Trial) -> None:
                document["trials"].append(trial_document(trial))
                progress.add(trial)

            done = run(plan, settings, force=force, only=only, on_tick=tick, on_trial=grown, command=sys.argv)
        print_stage(f"trials ({len(done)})", began, console)
        wrote = time.monotonic()
        results = catalog.results(storage, document)
        histories = {t["name"]: history(storage, t["identity"]) for t in document["trials"]}
        files = summary(document, results, histories)
        for name, content in files.items():
            retry(partial(storage.write, f"{layout.sweep(plan.sweep)}/{name}", content), 60)
        with console.status("writing to MLflow"):
            complete = feeder.finish(files=files)
    retry(partial(catalog.remember, storage, plan.sweep, results), 60)
    print_summary(plan, results, storage, console, time.monotonic() - began)
    if is_quick(storage, document):
        with console.status("writing the report"):
            where, problem = final_report(settings, storage, document, track=complete)
        text = f"report: {where}" if not problem else f"no report ({problem}); mcc report {plan.sweep}"
        console.print(text, highlight=False, markup=False, soft_wrap=True)
    print_stage("MLflow and report", wrote, console)
    for complaint in feeder.complaints:
        console.print(f"not in MLflow: {complaint}", highlight=False, markup=False, soft_wrap=True)
    if not complete:
        again = f"nothing is lost: mcc track rebuild {plan.sweep}"
        console.print(
            f"MLflow did not answer ({feeder.problem}); {again}", highlight=False, markup=False, soft_wrap=True
        )
    state = sweep_state(storage, plan.sweep)
    if state.get("state") == "budget reached":
        console.print(f"budget reached: {state['reason']}", highlight=False, markup=False, soft_wrap=True)
        return 1 if any(result.status == TrialStatus.FAILED for result in results) else 0
    return exit_code([result.status for result in results])


def exit_code(statuses: list[TrialStatus]) -> int:
    """0: all finished or pruned. 130: stopped, and nothing worse. 1: a trial failed or has no result."""
    if set(statuses) <= DONE:
        return 0
    return 130 if TrialStatus.STOPPED in statuses and TrialStatus.FAILED not in statuses else 1
