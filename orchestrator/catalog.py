"""What storage knows of sweeps and trials: the answers to list, status and best, from any machine."""

from __future__ import annotations

import difflib
import json
from dataclasses import dataclass
from typing import Any

from mcc_core.errors import UsageError
from orchestrator.events import history, trial_state
from orchestrator.report import Result
from orchestrator.storage import Storage


@dataclass(frozen=True)
class Sweep:
    """A sweep that was submitted, by its `plan.json`."""

    id: str
    document: dict[str, Any]

    @property
    def created(self) -> float:
        return float(self.document["created"])

    @property
    def metric(self) -> str:
        return str(self.document["file"]["metric"])

    @property
    def mode(self) -> str:
        return str(self.document["file"]["mode"])


def sweeps(storage: Storage) -> list[Sweep]:
    """All sweeps, newest first."""
    found = []
    for key in storage.folders("sweeps"):
        if storage.exists(f"{key}/plan.json"):
            found.append(Sweep(key.rsplit("/", 1)[-1], json.loads(storage.read(f"{key}/plan.json"))))
    return sorted(found, key=lambda sweep: sweep.created, reverse=True)


def find(storage: Storage, name: str | None) -> Sweep:
    """The sweep with an id, or the newest with a name, or the newest of all. Raises UsageError."""
    known = sweeps(storage)
    if not known:
        raise UsageError(f"{storage.url}: no sweep was submitted here yet; mcc sweep submit FILE")
    for sweep in known:
        if name is None or name in {sweep.id, sweep.document["name"]}:
            return sweep
    names = [sweep.id for sweep in known]
    close = difflib.get_close_matches(str(name), [*names, *(s.document["name"] for s in known)], n=1)
    raise UsageError(f"{name}: no such sweep" + (f", did you mean {close[0]}?" if close else f"; such as {names[0]}"))


def results(storage: Storage, document: dict[str, Any]) -> list[Result]:
    """Every trial of a sweep as it stands, with the metrics of its last evaluation."""
    found = []
    for trial in document["trials"]:
        state = trial_state(storage, trial["identity"])
        metrics = state.metrics or {}
        if not metrics and state.status != "new":
            for event in history(storage, trial["identity"]):
                if event["kind"] == "metrics":
                    metrics = metrics | {k: v for k, v in event["metrics"].items() if k.startswith("val/")}
        found.append(
            Result(
                trial["identity"],
                trial["name"],
                trial["point"],
                trial["varied"],
                trial["seed"],
                state.status,
                metrics,
                state.message,
            )
        )
    return found
