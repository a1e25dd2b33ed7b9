"""What a user calls a trained network: a checkpoint file, or a trial of a sweep."""

from __future__ import annotations

import difflib
from pathlib import Path

from mcc_core.errors import UsageError
from orchestrator.records import layout
from orchestrator.records import sweeps as catalog
from orchestrator.records.checkpoints import CheckpointRecord, best_saved, saved_checkpoints
from orchestrator.records.events import trial_state
from orchestrator.records.status import TrialStatus
from orchestrator.settings import Settings
from orchestrator.storage.store import Storage


def find_checkpoint(name: str, settings: Settings, source: str = "CHECKPOINT") -> Path:
    """A checkpoint file by its path, or the best one of the finished trial SWEEP/TRIAL, fetched from storage.

    Raises UsageError, beginning with `source`.
    """
    if Path(name).is_file():
        return Path(name)
    storage = Storage(settings.storage)
    sweep, identity = _trial(name, storage, source)
    if storage.exists(labels := layout.label_set(identity)):
        raise UsageError(f"{source}: {name} made labels and is no network: {storage.where(labels)}")
    saved = saved_checkpoints(storage, identity)
    best = best_saved(saved, sweep.mode)
    if trial_state(storage, identity).status != TrialStatus.FINISHED or best is None:
        raise UsageError(f"{source}: {name} has no finished training; {_instead(storage, sweep, identity, saved)}")
    return fetch(storage, settings, identity, best)


def _instead(storage: Storage, sweep: catalog.Sweep, identity: str, saved: list[CheckpointRecord]) -> str:
    """What there is of a trial that is not finished, and how it is named."""
    if not saved:
        return f"it has no checkpoint yet: mcc sweep status {sweep.id}"
    where = storage.where(saved[-1].key(identity))
    return f"its newest checkpoint, after {saved[-1].iteration} iterations, can be named instead: {where}"


def trial_of(name: str, settings: Settings) -> str | None:
    """Identity of the trial SWEEP/TRIAL; None where the name is no trial's."""
    if Path(name).is_file() or ":/" in name:
        return None
    return _trial(name, Storage(settings.storage), name)[1]


def _trial(name: str, storage: Storage, source: str) -> tuple[catalog.Sweep, str]:
    """The sweep and the identity of SWEEP/TRIAL. Raises UsageError."""
    sweep_name, _, trial_name = name.partition("/")
    known = [sweep for sweep in catalog.sweeps(storage) if sweep_name in {sweep.id, sweep.document["name"]}]
    if not known or not trial_name:
        raise UsageError(
            f"{source}: {name}: no such checkpoint file, and no SWEEP/TRIAL (mcc sweep status names trials)"
        )
    sweep = known[0]
    trials: dict[str, str] = {trial["name"]: trial["identity"] for trial in sweep.document["trials"]}
    if trial_name not in trials:
        close = difflib.get_close_matches(trial_name, list(trials), n=1) or list(trials)[:1]
        raise UsageError(f"{source}: {sweep.id} has no trial {trial_name}; such as {close[0]}")
    return sweep, trials[trial_name]


def networks_by_seed(name: str, settings: Settings) -> dict[int, str]:
    """Seed to SWEEP/TRIAL of a configuration SWEEP/CONFIGURATION of several seeds, those finished; else empty."""
    sweep_name, _, point = name.partition("/")
    storage = Storage(settings.storage)
    if Path(name).exists() or not point:
        return {}
    for sweep in catalog.sweeps(storage):
        if sweep_name in {sweep.id, sweep.document["name"]}:
            trials = [t for t in sweep.document["trials"] if t["point"] == point and t["name"] != point]
            done = [t for t in trials if trial_state(storage, t["identity"]).status == TrialStatus.FINISHED]
            return {t["seed"]: f"{sweep.id}/{t['name']}" for t in done}
    return {}


def fetch(storage: Storage, settings: Settings, identity: str, saved: CheckpointRecord) -> Path:
    """A trial's checkpoint as a local file."""
    key = saved.key(identity)
    if (local := storage.local(key)) is not None:
        return local
    fetched = settings.home / "fetched" / identity / Path(key).name
    if not fetched.is_file():
        storage.download(key, fetched)
    return fetched


def slug(name: str) -> str:
    """A trained network's name as part of a file name."""
    return Path(name).stem if Path(name).is_file() else name.replace(":", "").replace("/", "-")
