"""Networks that MLflow keeps: fetched by the names that it gives them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from mcc_core.errors import MCCError, UsageError
from orchestrator.redaction import redact
from orchestrator.settings import Settings
from orchestrator.text import reason
from orchestrator.tracking import client as mlflow_files

if TYPE_CHECKING:
    from mlflow import MlflowClient

CHECKPOINT = "checkpoint.pt"  # the network's file within a model


def registered_checkpoint(name: str, settings: Settings, source: str) -> Path:
    """The local checkpoint of `models:/name@alias`, `models:/name/version`, `models:/m-ID` or `runs:/ID/path`.

    Raises UsageError, beginning with `source`, when there is none; MCCError when MLflow does not answer.
    """
    from mlflow.exceptions import MlflowException

    client = mlflow_files.client(settings)
    try:
        location = _location(client, name, source)
        return _fetched(location, settings)
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise UsageError(f"{source}: {name}: MLflow at {settings.tracking_uri} has no such model") from None
        raise MCCError(redact(f"{source}: {name}: MLflow at {settings.tracking_uri}: {reason(error)}")) from None
    except OSError as error:
        raise UsageError(f"{source}: {name}: holds no {CHECKPOINT} of mcc ({reason(error)})") from None


def _location(client: MlflowClient, name: str, source: str) -> str:
    """The address of a checkpoint's artifact."""
    kind, _, rest = name.partition(":/")
    if kind == "runs":
        run, _, path = rest.partition("/")
        if not run or not path:
            raise UsageError(f"{source}: {name}: expected runs:/ID/checkpoint/best.pt")
        return f"{client.get_run(run).info.artifact_uri}/{path}"
    if rest.startswith("m-"):
        return f"{client.get_logged_model(rest).artifact_location}/{CHECKPOINT}"
    model, at, alias = rest.partition("@")
    if at:
        version = client.get_model_version_by_alias(model, alias).version
    else:
        model, _, version = rest.partition("/")
        if not model or not version:
            raise UsageError(f"{source}: {name}: expected models:/NAME@ALIAS or models:/NAME/VERSION")
        if version == "latest":
            version = max(
                (entry.version for entry in client.search_model_versions(f"name = '{model}'")), key=int, default="0"
            )
    return f"{client.get_model_version_download_uri(model, str(version))}/{CHECKPOINT}"


def _fetched(location: str, settings: Settings) -> Path:
    """An artifact as a local file. Raises OSError, and MLflow's own errors."""
    from mlflow.artifacts import download_artifacts

    address = urlsplit(location)
    if address.scheme in ("", "file"):
        if not (file := Path(unquote(address.path))).is_file():
            raise FileNotFoundError(f"no such file {file}")
        return file
    if address.scheme == "models":  # a version of a logged model has the model as its source
        client = mlflow_files.client(settings)
        model, _, path = location.removeprefix("models:/").partition("/")
        return _fetched(f"{client.get_logged_model(model).artifact_location}/{path}", settings)
    target = settings.home / "fetched" / "mlflow" / address.path.strip("/")
    if not target.is_file():  # what MLflow keeps does not change
        target.parent.mkdir(parents=True, exist_ok=True)
        download_artifacts(artifact_uri=location, dst_path=str(target.parent), tracking_uri=settings.tracking_uri)
    return target
