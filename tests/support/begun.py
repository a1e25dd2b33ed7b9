"""A sweep of one trial that began and did not end, as its worker's events say it."""

from __future__ import annotations

from pathlib import Path

from experiments import plan_record

from mcc_core.experiment_files import resolve
from orchestrator.records.events import EventLog
from orchestrator.records.plans import PlanRecord
from orchestrator.storage.outbox import Outbox
from orchestrator.storage.store import Storage


def one_trial(sweep: str, identity: str) -> PlanRecord:
    """The plan of a sweep with one trial, `one`."""
    trial = {"identity": identity, "name": "one", "point": "one", "varied": {}, "seed": 0, "fingerprint": "f"}
    file = {"metric": "val/seg/single/miou", "mode": "max", "description": "", "heatmap": None}
    experiment = resolve("tiny", {}).model_dump(mode="json")
    return plan_record(sweep, [trial | {"experiment": experiment}], name=sweep, created=1.0, file=file)


def begin(storage: Storage, folder: Path, identity: str, attempt: int = 1) -> None:
    """The events of an attempt that began, measured once, and has no end."""
    outbox = Outbox(storage, folder / "outbox")
    log = EventLog(outbox, identity, attempt)
    log.emit("start", attempt - 1, attempt=attempt, info={})
    log.emit("metrics", attempt, metrics={"loss/total": 1.0})
    log.close()
    outbox.close(10)
