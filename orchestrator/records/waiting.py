"""What is known of a running trial that says nothing: the process that holds its place puts on record that no node has
room for a worker. A mark that is older than the trial's last event is over."""

from __future__ import annotations

import contextlib
import json
import time

from orchestrator.records import layout
from orchestrator.records.status import TrialStatus
from orchestrator.storage.store import Storage

_SHORT_S = 20.0  # a running trial usually writes every few seconds
_QUIET_S = 120.0


def begin_waiting(storage: Storage, identity: str) -> bool:
    """Say that no node has room for a trial's worker. False when storage is away."""
    with contextlib.suppress(OSError):
        storage.write(layout.waiting(identity), json.dumps({"t": time.time()}).encode())
        return True
    return False


def end_waiting(storage: Storage, identity: str) -> None:
    """Say that a trial waits no more."""
    with contextlib.suppress(OSError):
        storage.delete(layout.waiting(identity))


def silence(storage: Storage, identity: str, told: float) -> tuple[TrialStatus, str]:
    """How a trial stands that began, did not end and is held by a living process, and what there is to say of it.

    Args:
        told: unix seconds of its last event.
    """
    if (quiet := time.time() - told) < _SHORT_S:
        return TrialStatus.RUNNING, ""
    with contextlib.suppress(FileNotFoundError, ValueError, KeyError, TypeError):
        if (since := float(json.loads(storage.read(layout.waiting(identity)))["t"])) > told:
            when = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(since))
            return TrialStatus.WAITING, f"waits for a node with room for its worker, since {when}"
    if quiet < _QUIET_S:
        return TrialStatus.RUNNING, ""
    message = f"no sign of its worker for {quiet / 60:.0f} min; its sweep lives: it is slow or waits for a node"
    return TrialStatus.RUNNING, message
