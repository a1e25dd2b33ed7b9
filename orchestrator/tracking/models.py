"""Each trial's best checkpoint as a model that MLflow knows: with a signature, its scores, its trial and its data.

A model is a folder of two files: `MLmodel`, which says that `mcc_core.api.served` loads it, and the checkpoint.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from orchestrator.records.checkpoints import CheckpointRecord
from orchestrator.records.plans import supervision
from orchestrator.storage.store import Storage
from orchestrator.tracking import client as mlflow_files
from orchestrator.tracking.names import metric_name
from orchestrator.tracking.registry import CHECKPOINT

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Dataset, LoggedModel
    from mlflow.models import ModelSignature

LOADER = "mcc_core.api.served"
_LIMIT = 36  # characters of a dataset's digest


def dataset(trial: Mapping[str, Any]) -> Dataset:
    """A trial's data as MLflow shows it, by its fingerprint."""
    from mlflow.entities import Dataset as MlflowDataset

    data = trial["experiment"]["data"]
    name = data["name"] if not data["root"] else Path(data["root"]).name
    splits = {key: data[key] for key in ("train_split", "val_split")}
    source = json.dumps({"uri": str(data["root"] or "generated")})
    digest = str(trial["fingerprint"])[:_LIMIT]
    return MlflowDataset(name[:500], digest, "local", source, profile=json.dumps(splits))


def model_of(client: MlflowClient, experiment: str, run: str, sha256: str) -> LoggedModel | None:
    """The finished model of a run's checkpoint; what was begun and not finished is removed."""
    for model in client.search_logged_models([experiment], f"source_run_id = '{run}'"):
        if model.tags.get("mcc.checkpoint") == sha256:
            if str(model.status) == "READY":
                return model
            client.delete_logged_model(model.model_id)
    return None


def log_model(
    client: MlflowClient, storage: Storage, run: str, trial: Mapping[str, Any], sweep: str, record: CheckpointRecord
) -> str:
    """Log a trial's checkpoint as a model of its run, unless it is there; returns the model's id."""
    from mlflow.entities import LoggedModelOutput

    experiment = str(client.get_run(run).info.experiment_id)
    if (known := model_of(client, experiment, run, record.sha256)) is not None:
        return str(known.model_id)
    identity = str(trial["identity"])
    tags = {"mcc.identity": identity, "mcc.sweep": sweep, "mcc.seed": str(trial["seed"])}
    tags["mcc.supervision"] = supervision(trial)
    tags |= {
        "mcc.data": str(trial["fingerprint"]),
        "mcc.checkpoint": record.sha256,
        "mcc.iteration": str(record.iteration),
    }
    name = "".join("_" if c in "/:.%\"'" else c for c in trial["name"])
    params = {"method": str(trial["experiment"].get("method", "mcc"))} | dict(trial["varied"])
    model = client.create_logged_model(experiment, name, run, tags, params, "segmentation")
    with tempfile.TemporaryDirectory() as folder:
        _describe(Path(folder), run, model.model_id, tags)
        target = _local(model.artifact_location)
        if not _linked(storage, record.key(identity), target and target / CHECKPOINT):
            storage.download(record.key(identity), Path(folder) / CHECKPOINT)
        client.log_model_artifacts(model.model_id, folder)
    client.finalize_logged_model(model.model_id, "READY")
    client.log_outputs(run, [LoggedModelOutput(model.model_id, record.iteration)])
    _link_scores(client, run, str(model.model_id), trial, record.iteration)
    return str(model.model_id)


def store_checkpoint(client: MlflowClient, storage: Storage, run: str, key: str, name: str) -> None:
    """A checkpoint as artifact: on the disk that has it already a second name for the same file, else a copy."""
    with tempfile.TemporaryDirectory() as folder, suppress(FileNotFoundError):
        target = mlflow_files.local_artifacts(client.get_run(run))
        if not _linked(storage, key, target and target / "checkpoint" / name):
            storage.download(key, Path(folder) / name)
            client.log_artifact(run, str(Path(folder) / name), "checkpoint")


def _linked(storage: Storage, key: str, target: Path | None) -> bool:
    """Whether a stored file has a second name now, which needs both on one disk."""
    if (local := storage.local(key)) is None or target is None:
        return False
    try:
        mlflow_files.link(local, target)
    except OSError:
        return False
    return True


def _local(address: str) -> Path | None:
    uri = urlsplit(address)
    return Path(unquote(uri.path)) if uri.scheme == "file" else None


def forget_models(client: MlflowClient, experiment: str, run: str) -> None:
    """Delete the models of a run that is deleted, but for those that the registry has a version of."""
    kept = {version.source for version in client.search_model_versions(f"run_id = '{run}'")}
    for model in client.search_logged_models([experiment], f"source_run_id = '{run}'"):
        if model.artifact_location not in kept:
            client.delete_logged_model(model.model_id)


def _describe(folder: Path, run: str, model: str, tags: dict[str, str]) -> None:
    from mlflow.models import Model
    from mlflow.pyfunc import add_to_model

    described = Model(run_id=run, model_id=model, signature=_signature(), metadata=tags)
    add_to_model(described, loader_module=LOADER, data=CHECKPOINT)
    described.save(str(folder / "MLmodel"))


def _signature() -> ModelSignature:
    """A column of image files as bytes; a mask as PNG, class scores and the names of the classes in the mask."""
    from mlflow.models import ModelSignature as Signature
    from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema, TensorSpec
    from mlflow.types.schema import Array, Map

    answers: list[ColSpec | TensorSpec] = [
        ColSpec(DataType.binary, "mask"),
        ColSpec(Array(DataType.string), "classes"),
        ColSpec(Map(DataType.double), "scores"),
    ]
    protocol = ParamSchema([ParamSpec("protocol", DataType.string, "ms")])
    return Signature(Schema([ColSpec(DataType.binary, "image")]), Schema(answers), protocol)


def _link_scores(client: MlflowClient, run: str, model: str, trial: Mapping[str, Any], iteration: int) -> None:
    """Say of the scores of the checkpoint's evaluation whose they are. Not of each class: that is a request each."""
    from mlflow.entities import Metric

    data = dataset(trial)
    keys = [key for key in client.get_run(run).data.metrics if key.startswith("val/") and "/iou/" not in key]
    # The same points as those of the run, which has each only once.
    metrics = [
        Metric(metric_name(key), m.value, m.timestamp, m.step, model, data.name, data.digest)
        for key in keys
        for m in client.get_metric_history(run, key)
        if m.step == iteration
    ]
    if metrics:
        client.log_batch(run, metrics=metrics)
