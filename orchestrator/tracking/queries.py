"""Which MLflow runs show what."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from orchestrator.settings import Settings
from orchestrator.tracking import client as mlflow_files
from orchestrator.tracking.client import MOST_RUNS
from orchestrator.tracking.names import SETTLED

if TYPE_CHECKING:
    from mlflow.entities import Run


def runs(settings: Settings, sweep: str) -> dict[str, str]:
    """Ids of the MLflow runs of a sweep's trials, by identity; empty where MLflow was never fed.

    Raises MLflow's and the network's own errors.
    """
    if (database := mlflow_files.database(settings)) is not None and not database.exists():
        return {}
    client = mlflow_files.client(settings)
    experiment = client.get_experiment_by_name(settings.experiment_name)
    if experiment is None:
        return {}
    query = f"tags.`mcc.sweep` = '{sweep}' and tags.`mcc.kind` = 'trial'"
    page = client.search_runs([experiment.experiment_id], query, max_results=MOST_RUNS)
    return {run.data.tags["mcc.identity"]: str(run.info.run_id) for run in page}


def page(settings: Settings) -> str:
    """Where MLflow's pages show our runs, after the server's address. Else they open on language models, and are empty.

    Where MLflow does not answer, or was never fed: the list of experiments.
    """
    found = None
    with suppress(Exception):  # a link, which is no reason to wait or to fail
        if (database := mlflow_files.database(settings)) is None or database.exists():
            found = mlflow_files.client(settings).get_experiment_by_name(settings.experiment_name)
    where = f"/{found.experiment_id}/runs" if found is not None else ""
    return f"/#/experiments{where}?workflowType=machine_learning"


def is_whole(run: Run) -> bool:
    """Whether a trial was trained to its end and all of it was shown."""
    tags = run.data.tags
    return run.info.status == "FINISHED" and tags.get("mcc.state") != "pruned" and not tags.get(SETTLED)
