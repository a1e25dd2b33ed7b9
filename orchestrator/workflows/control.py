"""What can be done to a sweep from any machine that reaches its storage: stop it, follow it, take it up, delete it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mcc_core.errors import UsageError
from orchestrator.execution.supervisor import stop_key
from orchestrator.planning.plan import Plan, plan_sweep
from orchestrator.planning.stage_plan import plan_stages
from orchestrator.records import layout
from orchestrator.records import sweeps as catalog
from orchestrator.records.leases import claimed, deleting
from orchestrator.records.plans import followers
from orchestrator.records.status import TrialStatus
from orchestrator.records.sweeps import Sweep
from orchestrator.settings import Settings
from orchestrator.spec.stages_file import StagesFile
from orchestrator.spec.sweep_file import SweepFile
from orchestrator.storage.store import Storage

_POLL_S = 1.0


def is_running(storage: Storage, sweep: Sweep) -> bool:
    """Whether a living process runs a sweep."""
    return sweep.id in claimed(storage)[1]


def stop(storage: Storage, sweep: Sweep, wait_s: float) -> bool:
    """Ask a sweep's trials to write a checkpoint and end; whether they have within `wait_s`.

    Raises UsageError when nobody runs the sweep.
    """
    if not is_running(storage, sweep):
        raise UsageError(f"{sweep.id}: is not running; mcc sweep list")
    storage.write(stop_key(sweep.id), b"stop\n")
    deadline = time.monotonic() + wait_s
    while is_running(storage, sweep):
        if time.monotonic() > deadline:
            return False
        time.sleep(_POLL_S)
    return True


def plan_again(sweep: Sweep, settings: Settings) -> Plan:
    """The plan of a sweep that was submitted, from its record in storage.

    Raises UsageError when it would be another sweep now: its base, its data or the training code have changed since.
    """
    document = sweep.document
    if "of" in document["file"]:
        raise UsageError(f"{sweep.id}: trains nothing, so there is nothing to resume; submit its file again")
    source = str(document["source"])
    if "stages" in document["file"]:
        plan = plan_stages(StagesFile.model_validate(document["file"]), source, settings=settings)
        what = "the base of a stage"
    else:
        file = SweepFile.model_validate(document["file"])
        plan = plan_sweep(file, source, settings=settings)
        what = f"its base {file.base}"
    if plan.sweep != sweep.id:
        raise UsageError(
            f"{sweep.id}: {what}, its data or the training code have changed since it was submitted, so "
            f"that this would be {plan.sweep}; submit the file again if that is meant"
        )
    return plan


def require_submitted(sweep: str) -> None:
    """Raise UsageError unless a sweep of this id was submitted to the storage before."""
    storage = Storage(Settings.from_environment().storage)
    if not storage.exists(layout.plan(sweep)):
        raise UsageError(f"--resume: {sweep}: was not submitted to {storage.url} before; without --resume it begins")


def failed(storage: Storage, sweep: Sweep, trial: str | None = None) -> list[str]:
    """Identities of a sweep's failed trials, or of the one with a name or identity; and of what takes from them.

    Raises UsageError when there are none, or when that one did not fail.
    """
    identities = [r.identity for r in catalog.results(storage, sweep.document) if r.status == TrialStatus.FAILED]
    if trial is not None:
        identities = [identity for identity in identities if identity == _identity(sweep, trial)]
    if not identities:
        what = f"{trial} did not fail" if trial else "no trial failed"
        raise UsageError(f"{sweep.id}: {what}; mcc sweep status {sweep.id}")
    return followers(sweep.document["trials"], identities)


def _identity(sweep: Sweep, trial: str) -> str:
    known = {t["name"]: t["identity"] for t in sweep.document["trials"]}
    identity = trial if trial in known.values() else known.get(trial)
    if identity is None:
        raise UsageError(f"{trial}: {sweep.id} has no such trial; such as {', '.join(list(known)[:3])}")
    return str(identity)


def log_of(storage: Storage, sweep: Sweep, trial: str) -> str:
    """Key of the newest log of a trial, by its name or identity. Raises UsageError."""
    identity = _identity(sweep, trial)
    logs = storage.list(layout.logs(identity))
    if not logs:
        raise UsageError(f"{trial}: has written no log yet; mcc sweep status {sweep.id}")
    return str(max(key for key in logs if key.endswith("rank0.log")))


def follow(storage: Storage, sweep: Sweep, key: str, *, forever: bool) -> Iterator[str]:
    """A log as it grows, until nobody runs the sweep; with `forever` off what is there now."""
    seen = 0
    while True:
        last = not forever or not is_running(storage, sweep)
        content = storage.read(key)
        if len(content) > seen:
            yield content[seen:].decode("utf-8", "replace")
            seen = len(content)
        if last:
            return
        time.sleep(_POLL_S)


@dataclass(frozen=True)
class Deletion:
    """What deleting a sweep removes."""

    sweep: Sweep
    identities: tuple[str, ...]  # of the trials that go
    trials: tuple[str, ...]  # their names
    shared: tuple[str, ...]  # names of those that another sweep has, which stay


def deletion(storage: Storage, sweep: Sweep) -> Deletion:
    """What would go. Raises UsageError while the sweep runs."""
    if is_running(storage, sweep):
        raise UsageError(f"{sweep.id}: is running; mcc sweep stop {sweep.id}")
    others = {
        t["identity"] for other in catalog.sweeps(storage) if other.id != sweep.id for t in other.document["trials"]
    }
    trials = {t["identity"]: t["name"] for t in sweep.document["trials"]}
    gone = tuple(identity for identity in trials if identity not in others)
    kept = tuple(name for identity, name in trials.items() if identity in others)
    return Deletion(sweep, gone, tuple(trials[identity] for identity in gone), kept)


def labels_in_use(storage: Storage, sweep: Sweep) -> set[str]:
    """Identities of the label sets that trials of other sweeps train on."""
    others = [t for other in catalog.sweeps(storage) if other.id != sweep.id for t in other.document["trials"]]
    sources = [str((t["experiment"].get("labels") or {}).get("source") or "") for t in others]
    return {Path(source).name for source in sources}


def delete(settings: Settings, sweep: Sweep) -> tuple[Deletion, str]:
    """Delete a sweep, its own trials and its MLflow runs: (what went, what kept MLflow from it, or nothing).

    The plan goes last, so that a deletion that was cut short can be made again. Raises UsageError while the sweep, or
    another with one of its trials, runs.
    """
    from orchestrator.tracking.rebuilding import forget

    storage = Storage(settings.storage)
    with deleting(storage, sweep.id, deletion(storage, sweep).identities) as lease:
        what = deletion(storage, sweep)  # again, as another sweep may have come to share a trial
        used = labels_in_use(storage, sweep)
        for identity in what.identities:
            lease.refresh()
            storage.delete_folder(layout.trial(identity))
            if identity not in used:
                storage.delete_folder(layout.labels(identity))
        problem = forget(settings, sweep.document)
        storage.delete_folder(layout.sweep(sweep.id))
    return what, problem


def sweep_or_file(name: str) -> str:
    """A sweep's name, also where its file was given."""
    path = Path(name)
    if path.suffix in {".yaml", ".yml"} and path.is_file():
        from mcc_core.structured_files import read_yaml

        return str(read_yaml(path).get("name", ""))
    return name
