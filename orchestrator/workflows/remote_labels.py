"""Label sets of this machine that a sweep on a distant cluster trains on: sent to storage, where its nodes look."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mcc_core.data.label_maps import pack_label_set, read_label_set
from mcc_core.data.label_source import stored_identity, stored_key
from mcc_core.errors import MCCError, UsageError
from mcc_core.structured_files import read_yaml
from orchestrator.records import layout
from orchestrator.spec.stages_file import LABELS
from orchestrator.storage.store import Storage
from orchestrator.text import reason
from orchestrator.workflows.remote_files import named, on_base


def with_sent_labels(sweep: Path, changes: Sequence[str], storage: Storage, base: str | None = None) -> list[str]:
    """The KEY=VALUE of `--set` with keys of storage in place of label sets of this machine, which are sent there.

    Those that the sweep file names in `set` or a base, its own or a stage's, become further changes. A path that this
    machine lacks stays, for the cluster to have it.

    Args:
        base: what the sweep is on in place of its own base.

    Raises UsageError or DataError for a set that cannot be read, MCCError where storage does not take it.
    """
    given = dict(change.split("=", 1) for change in changes if "=" in change)
    sources = {key: value for key, value in given.items() if key == LABELS or key.endswith(f".{LABELS}")}
    if LABELS not in sources:
        fields = on_base(read_yaml(sweep), base)
        made = _made(fields)
        sources = {key: str(value) for key, value in named(fields, (LABELS,)) if key not in made} | sources
    sent = {key: _sent(Path(value), storage) for key, value in sources.items()}
    kept = [change for change in changes if sent.get(change.split("=", 1)[0]) is None]
    return [*kept, *(f"{key}={value}" for key, value in sent.items() if value is not None)]


def _made(fields: Mapping[str, Any]) -> set[str]:
    """Keys of `--set` of the label sets that the sweep itself makes, for stages that name another as `of`."""
    stages = fields.get("stages")
    known = stages.items() if isinstance(stages, Mapping) else ()
    return {f"{name}.{LABELS}" for name, stage in known if isinstance(stage, Mapping) and stage.get("of") is not None}


def _sent(source: Path, storage: Storage) -> str | None:
    """The key of a label set of this machine, once storage has it; None of what is none here, or is a key already."""
    if stored_identity(source) is not None or not source.exists():
        return None
    labels = read_label_set(source)
    key = layout.label_set(labels.identity)
    try:
        with tempfile.TemporaryDirectory() as folder:
            file = pack_label_set(labels, Path(folder) / "labels.zip")
            if not storage.exists(key):
                storage.upload(file, key)
            elif storage.read(key) != file.read_bytes():
                raise UsageError(
                    f"labels.source: {source}: says that it is {labels.identity}, which storage has with other maps; "
                    "mcc data labels makes a set of changed maps"
                )
    except OSError as error:
        raise MCCError(f"labels.source: {source}: {reason(error)}; mcc storage check says more") from None
    return stored_key(labels.identity).as_posix()
