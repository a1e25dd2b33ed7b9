"""Label sets in storage: `labels/<identity>/labels.zip`, sent when a trial is submitted and fetched where it runs."""

from __future__ import annotations

from pathlib import Path

from mcc_core.config import Experiment
from mcc_core.data.label_source import local_zip, stored_identity
from mcc_core.errors import UsageError
from mcc_core.files import whole
from mcc_core.methods.registry import method_of
from orchestrator.records import layout
from orchestrator.storage.store import Storage


def label_key(experiment: Experiment) -> str | None:
    """Identity of the label set in storage that an experiment trains on; None where it trains on none, or on a path."""
    labels = method_of(experiment).labels(experiment)
    return stored_identity(labels.source) if labels is not None and labels.source is not None else None


def store_labels(storage: Storage, experiment: Experiment, home: Path) -> None:
    """Put the label set of an experiment, which planning left below `home`, into storage, unless it is there.

    Raises OSError when storage does not take it.
    """
    identity = label_key(experiment)
    if identity is None or storage.exists(layout.label_set(identity)):
        return
    file = local_zip(identity, home)
    if file.is_file():  # else a stage makes it
        storage.upload(file, layout.label_set(identity))


def fetch_labels(storage: Storage, experiment: Experiment, home: Path) -> None:
    """Bring the label set of an experiment from storage to below `home`, unless it is there.

    Raises UsageError where storage has none, OSError when it does not answer.
    """
    identity = label_key(experiment)
    if identity is None or (file := local_zip(identity, home)).is_file():
        return
    key = layout.label_set(identity)
    if not storage.exists(key):
        raise UsageError(f"labels.source: labels/{identity}: no such folder, and no label set {storage.where(key)}")
    with whole(file) as partial:
        storage.download(key, partial)
