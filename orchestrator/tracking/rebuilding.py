"""A sweep's runs in MLflow made again, given files, or deleted, by commands that run none of its trials."""

from __future__ import annotations

from collections.abc import Mapping

from mcc_core.errors import MCCError
from orchestrator.records.leases import feeding, held
from orchestrator.records.plans import PlanRecord
from orchestrator.redaction import redact
from orchestrator.settings import Settings
from orchestrator.storage.store import Storage
from orchestrator.tracking import client as mlflow_files
from orchestrator.tracking.liveness import close
from orchestrator.tracking.models import forget_models
from orchestrator.tracking.sync import Tracker, line


def rebuild(settings: Settings, document: PlanRecord) -> list[str]:
    """Make a sweep's runs again from its events; the old ones are deleted. Returns complaints about single trials.

    Raises MCCError when MLflow does not answer.
    """
    from mlflow.exceptions import MlflowException

    try:
        old = Tracker(settings, document | {"trials": []})
        _delete(old)
        with held(feeding(Storage(settings.storage), document["sweep"])):
            fresh = Tracker(settings, document)
            fresh.sync()
            fresh.finish()
            fresh.settle()
    except (MlflowException, OSError) as error:
        raise MCCError(redact(f"MLflow at {settings.tracking_uri}: {line(error)}")) from None
    return fresh.complaints


def attach(settings: Settings, document: PlanRecord, files: Mapping[str, bytes]) -> None:
    """Put files on a sweep's run, which stays as finished or failed as it is. Raises MCCError when MLflow does not
    answer."""
    from mlflow.exceptions import MlflowException

    try:
        tracker = Tracker(settings, document | {"trials": []})
        for name, content in files.items():
            tracker.artifact(tracker.parent, name, content)
        if tracker.before is None:
            close(tracker.client, tracker.parent, "FINISHED", None)
        elif tracker.before.status != "RUNNING":
            close(tracker.client, tracker.parent, tracker.before.status, tracker.before.end_time)
    except (MlflowException, OSError) as error:
        raise MCCError(redact(f"MLflow at {settings.tracking_uri}: {line(error)}")) from None


def forget(settings: Settings, document: PlanRecord) -> str:
    """Delete a sweep's runs; returns what kept MLflow from it, or nothing."""
    from mlflow.exceptions import MlflowException

    if (database := mlflow_files.database(settings)) is not None and not database.exists():
        return ""
    try:
        tracker = Tracker(settings, document | {"trials": []})
        _delete(tracker)
    except (MlflowException, OSError) as error:
        return redact(f"MLflow at {settings.tracking_uri}: {line(error)}")
    return ""


def _delete(tracker: Tracker) -> None:
    """Delete a sweep's runs and their models."""
    for run in tracker.runs("trial"):
        forget_models(tracker.client, tracker.experiment, run.info.run_id)
    for run in tracker.runs("sweep") + tracker.runs("trial"):
        tracker.client.delete_run(run.info.run_id)
