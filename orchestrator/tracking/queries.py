"""A sweep's trials as MLflow has them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from orchestrator.analysis.leaderboard import Result
from orchestrator.settings import Settings
from orchestrator.tracking import client as mlflow_files
from orchestrator.tracking.client import MOST_RUNS

if TYPE_CHECKING:
    from mlflow.entities import Run


def results(settings: Settings, sweep: str) -> list[tuple[Result, str]]:
    """(trial as MLflow has it, id of its run) of a sweep; nothing where MLflow was never fed.

    Raises MLflow's and the network's own errors.
    """
    if (database := mlflow_files.database(settings)) is not None and not database.exists():
        return []
    client = mlflow_files.client(settings)
    experiment = client.get_experiment_by_name(settings.experiment_name)
    if experiment is None:
        return []
    query = f"tags.`mcc.sweep` = '{sweep}' and tags.`mcc.kind` = 'trial'"
    states = {"FINISHED": "finished", "FAILED": "failed", "KILLED": "stopped", "RUNNING": "running"}
    found = []
    for run in client.search_runs([experiment.experiment_id], query, max_results=MOST_RUNS):
        tags, name = run.data.tags, str(run.info.run_name)
        varied = {k.removeprefix("mcc.varied."): v for k, v in tags.items() if k.startswith("mcc.varied.")}
        result = Result(
            tags["mcc.identity"],
            name,
            tags["mcc.point"],
            varied,
            int(tags["mcc.seed"]),
            "pruned" if was_pruned(run) else states.get(run.info.status, "new"),
            run.data.metrics,
            tags.get("mcc.message", ""),
        )
        found.append((result, str(run.info.run_id)))
    return found


def was_pruned(run: Run) -> bool:
    """Whether a trial was ended by its sweep's scheduler and not taken up since."""
    return run.info.status == "FINISHED" and run.data.tags.get("mcc.state") == "pruned"
