"""A trial's best checkpoint as a version of a model in MLflow's registry."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mcc_core.errors import MCCError, UsageError
from orchestrator.records.checkpoints import best_saved, saved_checkpoints
from orchestrator.records.sweeps import Sweep
from orchestrator.redaction import redact
from orchestrator.settings import Settings
from orchestrator.storage.store import Storage
from orchestrator.text import reason
from orchestrator.tracking import client as mlflow_files
from orchestrator.tracking.models import log_model
from orchestrator.tracking.queries import runs
from orchestrator.tracking.sync import Tracker

if TYPE_CHECKING:
    from mlflow import MlflowClient


@dataclass(frozen=True)
class Registered:
    """A version of a model in MLflow's registry."""

    name: str
    version: int
    alias: str | None

    @property
    def uri(self) -> str:
        """Its address."""
        return f"models:/{self.name}@{self.alias}" if self.alias else f"models:/{self.name}/{self.version}"


def check_names(name: str, alias: str | None) -> None:
    """Raise UsageError unless MLflow takes the names of a model and its alias."""
    if not name or re.search(r"[/:\s]", name):
        raise UsageError(f"--register {name!r}: expected a name without spaces, slashes and colons")
    if alias is not None and (not re.fullmatch(r"[\w-]+", alias) or re.fullmatch(r"v\d+|latest", alias, re.I)):
        raise UsageError(f"--alias {alias!r}: expected letters, digits, - and _, and neither v1 nor latest")


def register_trial(settings: Settings, sweep: Sweep, identity: str, name: str, alias: str | None) -> Registered:
    """Make a trial's best checkpoint a version of a registered model, unless it is one; `alias` then means it.

    Raises UsageError for names that MLflow does not take, or a trial without a checkpoint; MCCError, in one line, when
    MLflow does not answer.
    """
    from mlflow.exceptions import MlflowException

    check_names(name, alias)
    storage = Storage(settings.storage)
    trial = next(trial for trial in sweep.document["trials"] if trial["identity"] == identity)
    best = best_saved(saved_checkpoints(storage, identity), sweep.mode)
    if best is None:
        raise UsageError(f"{sweep.id}/{trial['name']}: has no checkpoint to register")
    try:
        client = mlflow_files.client(settings)
        run = runs(settings, sweep.id).get(identity)
        if run is None:  # MLflow was away
            tracker = Tracker(settings, sweep.document)
            tracker.sync()
            tracker.finish()
            run = str(tracker.children[identity].run)
        model = log_model(client, storage, run, trial, sweep.id, best)
        note = f"{sweep.id}/{trial['name']}, {sweep.metric} {best.score}"
        return Registered(name, _version(client, name, model, run, note, alias), alias)
    except (MlflowException, OSError) as error:
        raise MCCError(redact(f"MLflow at {settings.tracking_uri}: {reason(error)}")) from None


def _version(client: MlflowClient, name: str, model: str, run: str, note: str, alias: str | None) -> int:
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    location = client.get_logged_model(model).artifact_location
    known = [entry for entry in client.search_model_versions(f"name = '{name}'") if entry.source == location]
    if known:
        version = known[0].version
    else:
        version = client.create_model_version(name, location, run, description=note, model_id=model).version
    if alias is not None:
        client.set_registered_model_alias(name, alias, str(version))
    return int(version)
