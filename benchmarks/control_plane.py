"""The orchestrator's own work at scale: trials that report and train nothing.

    python benchmarks/control_plane.py [--trials 1000] [--points 100]

Plans a sweep, writes each trial's events through the outbox into storage as a worker does, feeds MLflow from them, and
ranks the trials. Storage and MLflow are the environment's (`MCC_STORAGE`, `MLFLOW_TRACKING_URI`), by default a folder
that is removed afterwards.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track
from rich.table import Table

from mcc_core.errors import UsageError
from orchestrator.analysis.leaderboard import leaderboard
from orchestrator.planning.plan import Plan, plan_document, plan_sweep
from orchestrator.records import sweeps as catalog
from orchestrator.records.events import EventLog, trial_state
from orchestrator.settings import Settings
from orchestrator.spec.sweep_file import SweepFile
from orchestrator.storage.outbox import Outbox
from orchestrator.storage.store import Storage
from orchestrator.tracking import sync as tracking

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))

from tiny import TINY

PER_EVENT = 5  # metrics in one event


def simulate(plan: Plan, storage: Storage, home: Path, points: int) -> None:
    """What the workers of all trials write."""
    for number, trial in enumerate(track(plan.trials, "writing events", transient=True)):
        outbox = Outbox(storage, home / "outbox" / trial.identity)
        log = EventLog(outbox, trial.identity, 1)
        log.emit("start", 0, attempt=1, info={})
        values: dict[str, float] = {}
        for step in range(1, points // PER_EVENT + 1):
            values = {f"val/seg/single/iou/{i}": number / len(plan.trials) for i in range(PER_EVENT - 1)}
            values["val/seg/single/miou"] = number / len(plan.trials)
            log.emit("metrics", step, metrics=values)
        log.emit("end", points // PER_EVENT, status="finished", message="", metrics=values, launch="simulated")
        log.close()
        if not outbox.close(timeout=30):
            raise UsageError("storage did not take the events within 30 s")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--points", type=int, default=100, help="metric values of each trial")
    arguments = parser.parse_args()
    table = Table("", "seconds", "rate", box=None)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["MCC_HOME"] = folder
        settings = Settings.from_environment()
        storage = Storage(settings.storage)

        def timed(name: str, work: Callable[[], Any], count: int, what: str, rounds: int = 1) -> Any:
            found: list[float] = []
            for _ in range(rounds):
                began = time.perf_counter()
                result = work()
                found.append(time.perf_counter() - began)
            middle = statistics.median(found)
            table.add_row(name, f"{middle:.2f}", f"{count / middle:,.0f} {what}/s")
            return result

        values = [round(0.001 * (i + 1), 3) for i in range(arguments.trials)]
        sweep = SweepFile.model_validate(
            {"name": "scale", "base": "tiny", "set": TINY, "parameters": {"loss.mcc": values}}
        )
        plan = timed(
            "plan", lambda: plan_sweep(sweep, "scale", settings=settings, estimate=False), len(values), "trials"
        )
        rows = arguments.trials * arguments.points
        timed("events to storage", lambda: simulate(plan, storage, settings.home, arguments.points), rows, "points")
        document = plan_document(plan, ["benchmark"], None)

        def feed() -> None:
            tracker = tracking.Tracker(settings, document)
            tracker.sync()
            tracker.finish()

        timed("MLflow from events", feed, rows, "rows")
        one_by_one = [trial.identity for trial in plan.trials]
        timed("states one by one", lambda: [trial_state(storage, i) for i in one_by_one], len(values), "trials", 3)
        ranked = timed("results from storage", lambda: catalog.results(storage, document), len(values), "trials", 3)
        timed("leaderboard", lambda: leaderboard(ranked, sweep.metric), len(values), "trials", 5)
    console = Console()
    console.print(table)
    console.print(f"peak memory: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB")


if __name__ == "__main__":
    main()
