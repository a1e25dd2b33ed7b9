"""What a trial that is not finished says to whoever asks for its network."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from experiments import plan_record

from mcc_core.errors import UsageError
from orchestrator.records import layout
from orchestrator.records.checkpoints import CheckpointStore
from orchestrator.records.events import write_end
from orchestrator.records.lookup import find_checkpoint
from orchestrator.records.status import TrialStatus
from orchestrator.settings import Settings
from orchestrator.storage.outbox import Outbox
from orchestrator.storage.store import Storage


def test_a_stopped_trial_names_its_newest_checkpoint(tmp_path: Path) -> None:
    settings = Settings.at(tmp_path)
    storage = Storage(settings.storage)
    trial = {"identity": "t", "name": "a", "point": "a", "varied": {}, "seed": 0, "experiment": {}}
    document = plan_record("s", [trial], file={"mode": "max"})
    storage.write(layout.plan("s"), json.dumps(document).encode())
    with pytest.raises(UsageError, match="s/a has no finished training; it has no checkpoint yet: mcc sweep status s"):
        find_checkpoint("s/a", settings)
    outbox = Outbox(storage, tmp_path / "outbox")
    shelf = CheckpointStore(outbox, "t", "max", [], 0, 1)
    for iteration, score in ((10, 0.9), (20, None)):
        (tmp_path / "file.pt").write_bytes(b"weights")
        shelf.add(tmp_path / "file.pt", iteration, score)
    assert outbox.close(20)
    write_end(storage, "t", TrialStatus.STOPPED, "stopped")
    with pytest.raises(UsageError, match="newest checkpoint, after 20 iterations, can be named instead: ") as raised:
        find_checkpoint("s/a", settings)
    named = str(raised.value).rpartition(": ")[2]
    assert find_checkpoint(named, settings).read_bytes() == b"weights"
