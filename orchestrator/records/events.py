"""The append-only event log of a trial: the truth from which everything shown elsewhere is rebuilt.

An event is one JSON object with `t` (unix seconds), `kind` and `iteration` (finished iterations):

- start: `attempt`, `info`; the attempt goes on after `iteration` finished iterations (0: from the beginning)
- metrics: `metrics` (key to number); those of an evaluation with the `precision` of the network's products
- machine: `metrics` of what the first worker's node is doing, `system/<node>/...`; no result of the trial
- image: `key`, `path`; checkpoint: `path`; artifact: `key`, `path` (paths are keys of Storage)
- clone: `donor`, `donor_name`, `fields`: the trial goes on with the weights that `donor` had at this iteration
- end: `status` finished, failed, stopped or pruned (by the sweep's scheduler); `message`; `metrics` of the last
  evaluation; `launch` (who ran it); `cause` of a failure where it has a name, such as nan

Events lie in segments `trials/<identity>/events/<attempt>-<number>.jsonl`, which never change once stored and whose
names sort in the order of writing. An attempt repeats the iterations that its predecessor did after the checkpoint it
goes on from; `settled` keeps each iteration once.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from mcc_core.errors import MCCError
from orchestrator.records import layout
from orchestrator.records.status import TrialStatus
from orchestrator.storage.outbox import Outbox
from orchestrator.storage.store import Storage

Event = dict[str, Any]

_LAST = 999_999  # segment number of an end that is written from outside the attempt


def events_folder(identity: str) -> str:
    """Key of the folder of a trial's event segments."""
    return layout.events(identity)


class EventLog:
    """Writes the events of one attempt; used by rank 0 of a trial."""

    def __init__(
        self, outbox: Outbox, identity: str, attempt: int, *, flush_s: float = 2.0, flush_events: int = 200
    ) -> None:
        self.outbox, self.identity, self.attempt = outbox, identity, attempt
        self._flush_s, self._flush_events = flush_s, flush_events
        self._number = 1
        self._lines: list[str] = []
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._closed = False
        self._thread = threading.Thread(target=self._flush_in_time, name="events", daemon=True)
        self._thread.start()

    def emit(self, kind: str, iteration: int, **fields: Any) -> None:
        """Append an event. It is stored within seconds, or with the next `flush`."""
        line = json.dumps({"t": round(time.time(), 3), "kind": kind, "iteration": iteration} | fields)
        with self._lock:
            self._lines.append(line)
            full = len(self._lines) >= self._flush_events
        if full:
            self.flush()

    def flush(self) -> None:
        """Close the current segment and queue it in the outbox."""
        with self._lock:
            if not self._lines:
                return
            data = "".join(line + "\n" for line in self._lines).encode()
            self.outbox.put(_segment(self.identity, self.attempt, self._number), data)
            self._lines.clear()
            self._number += 1

    def close(self) -> None:
        """Flush for the last time. The outbox is the caller's to close."""
        self._closed = True
        self._wake.set()
        self._thread.join()
        self.flush()

    def _flush_in_time(self) -> None:
        while not self._closed:
            self._wake.wait(self._flush_s)
            with contextlib.suppress(OSError):  # no space for long: the events wait, and the worker's own flush raises
                self.flush()


class EventReader:
    """Reads the segments of a trial that come after a cursor (the name of the last segment read, or empty).

    Iterating yields (segment name, its events) and moves the cursor.
    """

    def __init__(self, storage: Storage, identity: str, cursor: str = "") -> None:
        self.storage, self.identity, self.cursor = storage, identity, cursor

    def __iter__(self) -> Iterator[tuple[str, list[Event]]]:
        for name in segments(self.storage, self.identity):
            if name > self.cursor:
                events = read_segment(self.storage, self.identity, name)
                self.cursor = name
                yield name, events


def segments(storage: Storage, identity: str) -> list[str]:
    """Names of a trial's event segments, in order."""
    keys = storage.list(events_folder(identity))
    return [key.rsplit("/", 1)[1] for key in keys if key.endswith(".jsonl")]


def read_segment(storage: Storage, identity: str, name: str) -> list[Event]:
    """Events of one segment. Raises MCCError naming the file and line when it is not one."""
    key = f"{events_folder(identity)}/{name}"
    events = []
    for number, line in enumerate(storage.read(key).decode("utf-8", "replace").splitlines(), start=1):
        try:
            events.append(json.loads(line))
        except ValueError:
            raise MCCError(f"{storage.where(key)}: line {number} is not an event; remove the file to go on") from None
    return events


def settled(events: Iterable[Event]) -> list[Event]:
    """Events with each iteration once: what an attempt did after the point where the next goes on is left out.

    The `start` and `end` events of every attempt stay.
    """
    kept: list[Event] = []
    for event in events:
        if event["kind"] == "start":
            first = event["iteration"]
            kept = [e for e in kept if e["kind"] in {"start", "end"} or e["iteration"] <= first]
        kept.append(event)
    return kept


def history(storage: Storage, identity: str) -> list[Event]:
    """All settled events of a trial."""
    return settled(event for _, events in EventReader(storage, identity) for event in events)


@dataclass(frozen=True)
class TrialState:
    """How far a trial is; `running` may be cut off."""

    status: TrialStatus
    attempt: int = 0
    message: str = ""
    metrics: dict[str, float] | None = None
    launch: str = ""
    cause: str = ""
    told: float = 0.0  # unix seconds of the last event of a running trial


def trial_state(storage: Storage, identity: str) -> TrialState:
    """State by the last segment alone."""
    names = segments(storage, identity)
    if not names:
        return TrialState(TrialStatus.NEW)
    attempt = int(names[-1].split("-")[0])
    last = read_segment(storage, identity, names[-1])[-1]
    if last["kind"] != "end":
        return TrialState(TrialStatus.RUNNING, attempt, told=float(last["t"]))
    launch, cause = last.get("launch", ""), last.get("cause", "")
    return TrialState(TrialStatus(last["status"]), attempt, last["message"], last.get("metrics"), launch, cause)


def trial_states(storage: Storage, identities: Iterable[str]) -> dict[str, TrialState]:
    """States of many trials by identity."""
    wanted = list(identities)
    return dict(zip(wanted, storage.each(lambda identity: trial_state(storage, identity), wanted), strict=True))


def claim_attempt(storage: Storage, identity: str) -> int:
    """Number of a new attempt, put on record at once: one that never got to write an event keeps its number, and no
    two have the same."""
    folder = layout.attempts(identity)
    mark = json.dumps({"t": round(time.time(), 3), "host": socket.gethostname(), "pid": os.getpid()}).encode()
    number = 1 + newest_attempt(storage, identity)
    while not storage.create(f"{folder}/{number:04d}.json", mark):
        number += 1
    return number


def starts(storage: Storage, identity: str, *, after: int = 0) -> dict[int, int]:
    """Where each attempt with a number above `after` began: number to finished iterations."""
    begun = {}
    for name in segments(storage, identity):
        attempt, number = segment_number(name)
        if attempt > after and number == 1:
            first = read_segment(storage, identity, name)[0]
            if first.get("kind") == "start":
                begun[attempt] = int(first["iteration"])
    return begun


def newest_attempt(storage: Storage, identity: str) -> int:
    """The highest number that an attempt of a trial has had; 0 when there was none."""
    names = [key.rsplit("/", 1)[1] for key in storage.list(layout.attempts(identity))] + segments(storage, identity)
    return max((int(name[:4]) for name in names), default=0)


def write_end(
    storage: Storage,
    identity: str,
    status: TrialStatus,
    message: str,
    *,
    launch: str = "",
    iteration: int = 0,
    cause: str = "",
) -> None:
    """End the newest attempt from outside, for a worker that could not do it itself."""
    names = segments(storage, identity)
    attempt = int(names[-1].split("-")[0]) if names else 1
    event = {"t": round(time.time(), 3), "kind": "end", "iteration": iteration, "status": status, "message": message}
    line = json.dumps(event | {"metrics": {}, "launch": launch, "cause": cause}) + "\n"
    storage.write(f"{events_folder(identity)}/{_name(attempt, _LAST)}", line.encode())


def write_attempt(
    storage: Storage, identity: str, iteration: int, metrics: dict[str, float], began: float, info: dict[str, Any]
) -> None:
    """A whole attempt at once, of a trial that measures something finished and trains nothing."""
    attempt, now = claim_attempt(storage, identity), round(time.time(), 3)
    end = {"status": TrialStatus.FINISHED, "message": "", "metrics": metrics, "launch": ""}
    events: list[Event] = [
        {"t": round(began, 3), "kind": "start", "iteration": iteration, "attempt": attempt, "info": info},
        {"t": now, "kind": "metrics", "iteration": iteration, "metrics": metrics},
        {"t": now, "kind": "end", "iteration": iteration} | end,
    ]
    storage.write(_segment(identity, attempt, 1), "".join(json.dumps(event) + "\n" for event in events).encode())


def segment_number(name: str) -> tuple[int, int]:
    """(attempt, number within it) of a segment's name."""
    attempt, number = name.removesuffix(".jsonl").split("-")
    return int(attempt), int(number)


def is_outside_end(name: str) -> bool:
    """Whether a segment is an end that `write_end` wrote, which may lie beside segments that come later."""
    return segment_number(name)[1] == _LAST


def _segment(identity: str, attempt: int, number: int) -> str:
    return f"{events_folder(identity)}/{_name(attempt, number)}"


def _name(attempt: int, number: int) -> str:
    return f"{attempt:04d}-{number:06d}.jsonl"
