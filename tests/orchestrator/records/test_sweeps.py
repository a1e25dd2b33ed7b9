"""What is known of a finished sweep comes from one file, and is asked for again when trials run again."""

from __future__ import annotations

import json
import time
from pathlib import Path

from experiments import plan_record

from orchestrator.records import sweeps as catalog
from orchestrator.records.events import events_folder, write_attempt, write_end
from orchestrator.records.leases import Lease, held
from orchestrator.records.status import TrialStatus
from orchestrator.storage.store import Storage

METRIC = "val/seg/single/miou"


def test_finished_trials_are_remembered_and_the_others_asked(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    trials = [
        {"identity": f"t{i}", "name": f"trial {i}", "point": "p", "varied": {}, "seed": i, "experiment": {}}
        for i in range(3)
    ]
    document = plan_record("s", trials)
    for i in (0, 1):
        write_attempt(storage, f"t{i}", 1, {METRIC: 0.1 * (i + 1)}, 0.0, {})
    write_end(storage, "t2", TrialStatus.FAILED, "it broke")
    before = catalog.results(storage, document)
    assert [r.status for r in before] == ["finished", "finished", "failed"]
    catalog.remember(storage, "s", before)
    assert catalog.results(storage, document) == before
    # Of the finished ones nothing else is read; the failed one is, and has finished since.
    for i in (0, 1):
        storage.delete_folder(events_folder(f"t{i}"))
    write_attempt(storage, "t2", 1, {METRIC: 0.3}, 0.0, {})
    after = catalog.results(storage, document)
    assert after[:2] == before[:2] and (after[2].status, after[2].metrics) == ("finished", {METRIC: 0.3})
    catalog.forget(storage, "s")
    assert [r.status for r in catalog.results(storage, document)] == ["new", "new", "finished"]
    storage.write("sweeps/s/results.json", b'{"t0": 7}')  # not ours: as if it were not there
    assert catalog.results(storage, document)[0].status == "new"


def test_a_running_trial_whose_worker_is_silent_says_so(tmp_path: Path) -> None:
    """Its node is lost and its driver lives: the lease alone would call it running."""
    storage = Storage(str(tmp_path))
    trial = {"identity": "t", "name": "one", "point": "p", "varied": {}, "seed": 0, "experiment": {}}
    document = plan_record("s", [trial])

    def told(ago_s: float) -> tuple[str, str]:
        event = {"t": time.time() - ago_s, "kind": "metrics", "iteration": 1, "metrics": {}}
        storage.write(f"{events_folder('t')}/0001-000001.jsonl", json.dumps(event).encode())
        (result,) = catalog.results(storage, document)
        return result.status, result.message

    with held(Lease(storage, "driver", "s", ["t"])):
        assert told(5) == ("running", "")
        status, message = told(600)
        assert status == "running" and "no sign of its worker for 10 min" in message
    assert told(600)[0] == "interrupted"
