"""What storage knows of sweeps and trials: the answers to list, status and best, from any machine."""

from __future__ import annotations

import difflib
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from mcc_core.errors import UsageError
from mcc_core.methods.registry import DEFAULT
from orchestrator.records import layout
from orchestrator.records.events import TrialState, history, trial_states
from orchestrator.records.leases import claimed
from orchestrator.records.plans import PlanRecord, inputs, last_stages, supervision
from orchestrator.records.results import Result
from orchestrator.records.status import CUT_OFF, DONE, TrialStatus
from orchestrator.records.waiting import silence
from orchestrator.storage.store import Storage

_RESULTS = "results.json"


@dataclass(frozen=True)
class Sweep:
    """A sweep that was submitted, by its `plan.json`."""

    id: str
    document: PlanRecord

    @property
    def created(self) -> float:
        return float(self.document["created"])

    @property
    def metric(self) -> str:
        return str(self.document["file"]["metric"])

    @property
    def mode(self) -> str:
        return str(self.document["file"]["mode"])


def sweeps(storage: Storage, name: str | None = None) -> list[Sweep]:
    """All sweeps, or those of a name, newest first."""
    keys = storage.folders(layout.SWEEPS)
    if name is not None:  # an id is the name and a hash
        keys = [key for key in keys if key.rsplit("/", 1)[-1].rpartition("-")[0] == name]
    read = storage.each(lambda key: _sweep(storage, key), keys)
    return sorted((sweep for sweep in read if sweep), key=lambda sweep: sweep.created, reverse=True)


def recorded(storage: Storage, identity: str) -> Sweep:
    """The sweep of an id. Raises FileNotFoundError when its plan is not in storage."""
    return Sweep(identity, json.loads(storage.read(layout.plan(identity))))


def _sweep(storage: Storage, key: str) -> Sweep | None:
    try:
        return recorded(storage, key.rsplit("/", 1)[-1])
    except FileNotFoundError:  # what a deletion, or a launch that never began, left of it
        return None


def find(storage: Storage, name: str | None) -> Sweep:
    """The sweep with an id, or the newest with a name, or the newest of all. Raises UsageError."""
    if name == "":
        raise UsageError("an empty name of a sweep; mcc sweep list names them")
    known = sweeps(storage)
    if not known:
        raise UsageError(f"{storage.url}: no sweep was submitted here yet; mcc sweep submit FILE")
    for sweep in known:
        if name is None or name in {sweep.id, sweep.document["name"]}:
            return sweep
    names = [sweep.id for sweep in known]
    close = difflib.get_close_matches(str(name), [*names, *(s.document["name"] for s in known)], n=1)
    raise UsageError(f"{name}: no such sweep" + (f", did you mean {close[0]}?" if close else f"; such as {names[0]}"))


def results(storage: Storage, document: PlanRecord) -> list[Result]:
    """Every trial of a sweep as it stands, with the metrics of its last evaluation.

    A trial without an end that no living process runs is `interrupted`. What the sweep's last run `remember`ed as
    finished is not asked for again: one file instead of two requests a trial.
    """
    known = _remembered(storage, document["sweep"])
    states = trial_states(storage, (t["identity"] for t in document["trials"] if t["identity"] not in known))
    alive = claimed(storage)[0] if any(s.status == TrialStatus.RUNNING for s in states.values()) else set()
    new = TrialState(TrialStatus.NEW)
    by_trial = {t["identity"]: known.get(t["identity"], new) for t in document["trials"]} | states
    last = last_stages(document)
    made = [*storage.each(lambda t: _result(storage, t, by_trial[t["identity"]], alive, last), document["trials"])]
    return _not_begun(document, made)


def _not_begun(document: PlanRecord, results: Sequence[Result]) -> list[Result]:
    """The results, with why a trial that waits for a failed one will not begin."""
    told: dict[str, Result] = {}
    for trial, result in zip(document["trials"], results, strict=True):  # inputs come first
        for before in (told[identity] for identity in inputs(trial) if identity in told):
            if result.status != TrialStatus.NEW or result.message:
                break
            if before.status == TrialStatus.FAILED:
                result = replace(result, message=f"not begun: its input {before.name} failed")
            elif before.message.startswith("not begun"):
                result = replace(result, message=before.message)
        told[result.identity] = result
    return [*told.values()]


def remember(storage: Storage, sweep: str, results: Sequence[Result]) -> None:
    """Keep in one file what a sweep's finished trials reached. To be `forget`ten before any of them runs again."""
    kept = {
        r.identity: {"status": r.status, "metrics": dict(r.metrics), "message": r.message}
        for r in results
        if r.status in DONE and r.metrics
    }
    storage.write(layout.results(sweep), json.dumps(kept).encode())


def forget(storage: Storage, sweep: str) -> None:
    """Ask the trials themselves again."""
    storage.delete(layout.results(sweep))


def _remembered(storage: Storage, sweep: str) -> dict[str, TrialState]:
    try:
        kept = json.loads(storage.read(layout.results(sweep)))
        return {
            i: TrialState(
                TrialStatus(kept_state["status"]), message=kept_state["message"], metrics=kept_state["metrics"]
            )
            for i, kept_state in kept.items()
        }
    except (FileNotFoundError, ValueError, KeyError, TypeError):  # not there, or not ours
        return {}


def _result(
    storage: Storage, trial: Mapping[str, Any], state: TrialState, alive: set[str], last: Collection[str]
) -> Result:
    identity, metrics, status, message = trial["identity"], state.metrics or {}, state.status, state.message
    if not metrics and status != TrialStatus.NEW:
        for event in history(storage, identity):
            if event["kind"] == "metrics":
                metrics = metrics | {k: v for k, v in event["metrics"].items() if k.startswith("val/")}
    if status == TrialStatus.RUNNING and identity not in alive:
        status, message = TrialStatus.INTERRUPTED, CUT_OFF
    elif status == TrialStatus.RUNNING:
        _, message = silence(storage, identity, state.told)
    log = None
    if status not in {TrialStatus.NEW, TrialStatus.FINISHED, TrialStatus.PRUNED} and (
        logs := storage.list(layout.logs(identity))
    ):
        log = storage.where(logs[-1])
    point, varied, seed = trial["point"], trial["varied"], trial["seed"]
    method = trial["experiment"].get("method", DEFAULT)
    stage = trial.get("stage", "")
    shown = (stage, stage in last, trial.get("input"), supervision(trial) == "full")
    return Result(
        identity, trial["name"], point, varied, seed, status, metrics, message, log, state.cause, method, *shown
    )
