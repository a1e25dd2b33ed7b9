"""A trained network by any name of it: a file, a trial, an object in a bucket, a model of MLflow's registry.

`mcc_core.load` reaches these functions by the entry points `mcc.checkpoints`; the command line calls `find_network`.
"""

from __future__ import annotations

import os
from pathlib import Path

from mcc_core.errors import MCCError, UsageError
from mcc_core.files import json_digest
from orchestrator.records.lookup import find_checkpoint
from orchestrator.settings import Settings
from orchestrator.storage.store import Storage
from orchestrator.text import reason
from orchestrator.tracking.registry import registered_checkpoint


def find_network(name: str, settings: Settings, source: str = "CHECKPOINT") -> Path:
    """The local file of a checkpoint: a file by its path, SWEEP/TRIAL, `s3://bucket/file.pt`, `models:/name@alias`
    or `runs:/ID/path`; fetched where it lies elsewhere.

    Raises UsageError, beginning with `source`; MCCError when a bucket or MLflow does not answer.
    """
    if Path(name).is_file():
        return Path(name)
    if name.startswith("s3://"):
        return _from_bucket(name, settings, source)
    if name.startswith(("models:/", "runs:/")):
        return registered_checkpoint(name, settings, source)
    return find_checkpoint(name, settings, source)


def by_name(name: str) -> Path:
    """`find_network` with the settings of this process: what the entry points are."""
    return find_network(name, Settings.from_environment(), "checkpoint")


def _from_bucket(name: str, settings: Settings, source: str) -> Path:
    """An object in a bucket, fetched again where it was changed since."""
    folder, _, key = name.rpartition("/")
    if not key or folder in ("s3:/", "s3:"):
        raise UsageError(f"{source}: {name}: expected s3://bucket/file.pt")
    target = settings.home / "fetched" / json_digest(name, 16) / key
    try:
        storage = Storage(folder)
        there = storage.stored(key)
        if there is None:
            raise UsageError(f"{source}: {name}: no such file in the bucket")
        stat = target.stat() if target.is_file() else None
        if stat is None or (stat.st_size, stat.st_mtime) != (there.size, there.modified):
            storage.download(key, target)
            os.utime(target, (there.modified, there.modified))
    except OSError as error:
        raise MCCError(f"{source}: {name}: {reason(error)}; mcc storage check says more") from None
    return target
