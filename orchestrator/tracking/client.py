"""Where MLflow keeps what it keeps: its client, its embedded database, artifacts on this machine."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from orchestrator.settings import Settings

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run


os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # a line per run, between those of the progress
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")  # the feeding loop itself tries again
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")


_KIND = {"mlflow.experimentKind": "custom_model_development"}  # else its pages open on language models
MOST_RUNS = 50_000  # the most runs that MLflow gives at once


def client(settings: Settings) -> MlflowClient:
    """A quiet client of the store in the settings; makes the folder of an embedded one."""
    for noisy in ("alembic", "mlflow.store.db.utils", "mlflow.utils.file_utils", "urllib3.connectionpool"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    from mlflow import MlflowClient

    if (file := database(settings)) is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
    return MlflowClient(tracking_uri=settings.tracking_uri)


def experiment(client: MlflowClient, settings: Settings) -> str:
    """Id of the experiment in the settings; it is made or restored where needed."""
    name = settings.experiment_name
    known = client.get_experiment_by_name(name)
    if known is None:
        # A server keeps artifacts where it was told to; without one they would land in the working folder.
        served = settings.tracking_uri.startswith(("http://", "https://"))
        location = None if served else settings.artifact_root.as_uri()
        return str(client.create_experiment(name, artifact_location=location, tags=_KIND))
    if known.lifecycle_stage == "deleted":
        client.restore_experiment(known.experiment_id)
    for key, value in _KIND.items():
        if key not in known.tags:  # else it was chosen
            client.set_experiment_tag(known.experiment_id, key, value)
    return str(known.experiment_id)


def database(settings: Settings) -> Path | None:
    """The file of an embedded store."""
    uri = settings.tracking_uri
    return Path(uri.removeprefix("sqlite:///")) if uri.startswith("sqlite:///") else None


def local_artifacts(run: Run) -> Path | None:
    """Folder of a run's artifacts when it is on this machine."""
    uri = urlsplit(run.info.artifact_uri or "")
    return Path(unquote(uri.path)) if uri.scheme == "file" and uri.netloc in {"", "localhost"} else None


def link(file: Path, target: Path) -> None:
    """Give a file a second name, whole or not at all. Raises OSError where the two are on different disks."""
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.part")
    partial.unlink(missing_ok=True)
    os.link(file, partial)
    os.replace(partial, target)
