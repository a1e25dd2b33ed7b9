"""The environment variables that the orchestrator reads, in one place.

| variable | meaning | default |
|---|---|---|
| `MCC_HOME` | folder of everything local: caches, logs, the default storage and tracking database | `./.mcc` |
| `MCC_STORAGE` | folder or `s3://bucket/prefix` with events, checkpoints and pictures of trials | `MCC_HOME` |
| `MLFLOW_TRACKING_URI` | where MLflow keeps runs | `sqlite:///MCC_HOME/mlflow.db` |
| `MLFLOW_EXPERIMENT_NAME` | MLflow experiment that the runs go to | `mcc` |
| `RAY_ADDRESS` | a running Ray cluster to use | none: Ray is started for the sweep and ended with it |
| `MCC_STALL_MINUTES` | a sweep in which nothing happens for so long is ended | 15 |

S3 reads the usual `AWS_*` variables and files, among them `AWS_ENDPOINT_URL`.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from mcc_core.errors import UsageError

NAMES = ("MCC_HOME", "MCC_STORAGE", "MCC_STALL_MINUTES")


class Settings(BaseModel):
    """Where things are kept and run. Holds no secret: those stay in the environment."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    home: Path
    storage: str
    tracking_uri: str
    experiment_name: str = "mcc"
    ray_address: str | None = None
    stall_minutes: float = 15.0

    @property
    def artifact_root(self) -> Path:
        """Folder of MLflow's artifacts when MLflow has no server of its own."""
        return self.home / "mlartifacts"

    @classmethod
    def at(cls, home: Path, **changes: object) -> Settings:
        """Everything below one folder, without a server; `changes` replace fields."""
        home = home.expanduser().resolve()
        fields: dict[str, object] = {
            "home": home,
            "storage": str(home),
            "tracking_uri": f"sqlite:///{home / 'mlflow.db'}",
        }
        return cls.model_validate(fields | changes)

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] = os.environ) -> Settings:
        """Settings of the current process. An empty variable counts as not set.

        Raises UsageError for a bad value, and for a variable that is a setting's name but for a slip.
        """
        for name in environ:
            meant = difflib.get_close_matches(name, NAMES, 1, 0.8) if name.startswith("MCC_") else []
            if meant and name not in NAMES:
                raise UsageError(f"{name}: no such setting, did you mean {meant[0]}?")
        changes: dict[str, object] = {}
        if storage := environ.get("MCC_STORAGE"):
            changes["storage"] = storage if "://" in storage else str(Path(storage).expanduser().resolve())
        if tracking := environ.get("MLFLOW_TRACKING_URI"):
            changes["tracking_uri"] = tracking
        if experiment := environ.get("MLFLOW_EXPERIMENT_NAME"):
            changes["experiment_name"] = experiment
        if address := environ.get("RAY_ADDRESS"):
            changes["ray_address"] = None if address == "local" else address
        if minutes := environ.get("MCC_STALL_MINUTES"):
            changes["stall_minutes"] = _positive("MCC_STALL_MINUTES", minutes)
        return cls.at(Path(environ.get("MCC_HOME") or ".mcc"), **changes)


def _positive(name: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not value > 0:
        raise UsageError(f"{name}: {text!r} is not a positive number of minutes")
    return value
