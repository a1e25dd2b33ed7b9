"""Where a machine keeps, below its MCC home, what is on its way to storage, apart for each storage.

One home may serve several, and a trial has the same identity in each: what it left for one is not sent to another.
"""

from __future__ import annotations

from pathlib import Path

from mcc_core.files import json_digest
from orchestrator.storage.store import Storage

OUTBOX = "outbox"
WORK = "work"  # a folder for each trial that has begun
_APART = "@"


def outbox(home: Path, identity: str, storage: Storage) -> Path:
    """Of what the attempts of a trial measured, a folder for each attempt."""
    return home / OUTBOX / f"{identity}{_APART}{_name(storage)}"


def outbox_trial(folder: Path) -> str:
    """Identity of the trial that an outbox is of."""
    return folder.name.partition(_APART)[0]


def unfinished_labels(home: Path, identity: str, storage: Storage) -> Path:
    """Of the label maps that attempts of a trial have made."""
    return home / WORK / identity / f"labels{_APART}{_name(storage)}"


def _name(storage: Storage) -> str:
    folder = storage.local("")
    return json_digest(storage.url if folder is None else str(folder), 8)
