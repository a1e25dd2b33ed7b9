"""Who is running or deleting which trials now, so that two commands never train the same trial at once, and none is
deleted that a sweep has just come to refer to: a submission writes its plan and then looks for deletions, a deletion
says what it is about to delete and then looks for plans.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from collections.abc import Iterable, Iterator
from typing import Any

from mcc_core.errors import MCCError, UsageError
from orchestrator.processes import born
from orchestrator.records import layout
from orchestrator.storage.store import Storage

_REFRESH_S = 10.0
_DEAD_S = 90.0  # without a sign from another host


class Lease:
    """A claim on trials, renewed by `refresh` for as long as they run."""

    def __init__(
        self,
        storage: Storage,
        launch: str,
        sweep: str,
        identities: Iterable[str],
        *,
        deletes: bool = False,
        feeds: bool = False,
    ) -> None:
        """`deletes`: the trials are not to be run but deleted. `feeds`: none is run; the sweep is shown."""
        self.storage, self.key = storage, layout.lease(launch)
        self.content = {
            "launch": launch,
            "sweep": sweep,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "born": born(os.getpid()),
            "since": time.time(),
            "identities": list(identities),
            "deletes": deletes,
            "feeds": feeds,
        }
        self._written = 0.0

    def refresh(self) -> None:
        """Say that the holder lives, when that was last said a while ago. Storage that is away is no error.

        Raises MCCError when this process said nothing for so long that another took one of the trials."""
        if (silent := time.monotonic() - self._written) < _REFRESH_S:
            return
        with contextlib.suppress(OSError):
            if silent > _DEAD_S and not self.storage.exists(self.key) and (other := self._taken()) is not None:
                raise MCCError(
                    f"this process said nothing for {silent:.0f} s, and {_holder(other)} went on with its trials"
                )
            self._write()

    def _taken(self) -> dict[str, Any] | None:
        """A living lease of a trial of this one's."""
        own = set(self.content["identities"])  # type: ignore[call-overload]
        return next((o for o in _others(self.storage, self.key) if own & set(o["identities"])), None)

    def add(self, identity: str) -> None:
        """Claim one more trial, with the next refresh."""
        self.content["identities"].append(identity)  # type: ignore[attr-defined]

    def _write(self) -> None:
        self.storage.write(self.key, json.dumps(self.content | {"t": time.time()}).encode())
        self._written = time.monotonic()

    def take(self) -> None:
        """Claim the trials. Raises UsageError when a living holder has one of them."""
        self._write()
        for other in _others(self.storage, self.key):
            common = set(other["identities"]) & set(self.content["identities"])  # type: ignore[call-overload]
            if common and other["since"] <= self.content["since"]:
                self.release()
                raise _busy(len(common), other)

    def release(self) -> None:
        """Give the claim up."""
        with contextlib.suppress(OSError):
            self.storage.delete(self.key)


@contextlib.contextmanager
def held(lease: Lease) -> Iterator[Lease]:
    """Take the lease and release it at exit."""
    lease.take()
    try:
        yield lease
    finally:
        lease.release()


def claimed(storage: Storage) -> tuple[set[str], set[str]]:
    """(identities of trials, ids of sweeps) that a living process runs now."""
    living = [o for o in _others(storage, own="") if not o.get("deletes") and not o.get("feeds")]
    return {i for lease in living for i in lease["identities"]}, {lease["sweep"] for lease in living}


def fed(storage: Storage) -> set[str]:
    """Ids of sweeps that a living process shows in MLflow now."""
    return {lease["sweep"] for lease in _others(storage, own="") if lease.get("feeds")}


def feeding(storage: Storage, sweep: str) -> Lease:
    """A lease, not yet taken, of showing a sweep in MLflow: from before its trials run until after."""
    return Lease(storage, f"feed-{socket.gethostname()[:20]}-{os.getpid()}-{sweep}", sweep, (), feeds=True)


def refuse_deleted(storage: Storage, identities: Iterable[str]) -> None:
    """Raise UsageError when one of these trials is being deleted. To be called when a plan that names them is stored,
    and before it is asked which of them finished."""
    wanted = set(identities)
    for lease in _others(storage, own=""):
        if lease.get("deletes") and (common := wanted & set(lease["identities"])):
            raise _busy(len(common), lease)


@contextlib.contextmanager
def deleting(storage: Storage, sweep: str, identities: Iterable[str]) -> Iterator[Lease]:
    """Nobody begins to run these trials, or to refer to them, until exit. Which of them somebody refers to is to be
    looked up within. Yields a lease to refresh. Raises UsageError when one is being run."""
    launch = f"delete-{socket.gethostname()[:20]}-{os.getpid()}"
    with held(Lease(storage, launch, sweep, identities, deletes=True)) as lease:
        yield lease


def _busy(number: int, lease: dict[str, Any]) -> UsageError:
    what = "deleted" if lease.get("deletes") else "run"
    return UsageError(f"{number} of these trials are being {what} by {_holder(lease)}; wait for it or stop it first")


def _others(storage: Storage, own: str) -> Iterator[dict[str, Any]]:
    for key in storage.list(layout.LEASES):
        if key == own:
            continue
        try:
            other = json.loads(storage.read(key))
        except (FileNotFoundError, ValueError):
            continue
        if _lives(other):
            yield other
        else:
            storage.delete(key)


def _holder(lease: dict[str, Any]) -> str:
    return f"process {lease['pid']} on {lease['host']} (sweep {lease['sweep']})"


def _lives(lease: dict[str, Any]) -> bool:
    if lease["host"] != socket.gethostname():
        return bool(time.time() - lease["t"] < _DEAD_S)
    try:
        os.kill(lease["pid"], 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return bool(born(lease["pid"]) == lease["born"])
