"""Sweeps whose trials are trained without Ray: what `mcc` does with a finished trial needs no cluster to be tried."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from forks import forks

from orchestrator.cluster.session import local_capacity
from orchestrator.execution.runner import _assignment, _Book
from orchestrator.planning.places import places
from orchestrator.planning.plan import Plan, plan_sweep
from orchestrator.settings import Settings
from orchestrator.spec.sweep_file import load_sweep
from orchestrator.storage.store import Storage


def _attempts(tasks: list[dict[str, Any]], environment: dict[str, str]) -> None:
    os.environ.update(environment)  # a fork has the one of its server
    from orchestrator.worker.warm import WarmWorker

    for task in tasks:
        WarmWorker().run(task)


def train_before(file: Path, settings: Settings, *, estimate: bool = False) -> Plan:
    """Record a sweep and train its trials one after the other, as a worker does, in a process of their own.

    With `estimate` the plan says how long it will take, which takes a few seconds to find out.
    `mcc sweep submit FILE` then finds them done, and does the rest: MLflow, tables, the report.
    """
    plan = plan_sweep(load_sweep(file), str(file), settings=settings, estimate=estimate)
    _Book(plan, Storage(settings.storage), settings.home, ["mcc"], force=False).begin(plan.trials)
    room = places(plan.file, plan.source, plan.trials, local_capacity())
    tasks = [asdict(_assignment(plan, trial, settings, "before", room)) for trial in plan.trials]
    process = forks().Process(target=_attempts, args=(tasks, dict(os.environ)))
    process.start()
    process.join(300)
    assert process.exitcode == 0
    return plan
