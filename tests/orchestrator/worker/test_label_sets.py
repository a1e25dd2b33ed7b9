"""A trial on another machine: its label set comes through storage."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
from trained import smallest

from mcc_core.data.index import build_index
from mcc_core.data.label_maps import LabelSetWriter, pack_label_set
from mcc_core.data.label_source import local_zip
from orchestrator.records.events import EventReader, trial_state
from orchestrator.records.status import TrialStatus
from orchestrator.storage.store import Storage
from orchestrator.worker.assignment import Assignment
from orchestrator.worker.loop import train_loop


def test_a_worker_fetches_the_set_that_it_trains_on(tmp_path: Path) -> None:
    home, storage = tmp_path / "there", Storage(str(tmp_path / "storage"))
    experiment = smallest("segmentation", **{"train.iterations": 3, "labels.source": "labels/00112233445566aa"})
    index = build_index(experiment.data, home)
    with LabelSetWriter(tmp_path / "set", index.classes, identity="00112233445566aa") as writer:
        for item in index.train:
            writer.add(item.name, np.full((48, 48), 2, np.uint8))
        made = writer.close()
    task = Assignment(
        *("t", "t", experiment.model_dump(mode="json"), 0, index.fingerprint, "val/seg/single/miou", "max"),
        storage=str(tmp_path / "storage"),
        home=str(home),
        stop_key="sweeps/s/stop",
        launch="launch",
        cpus_per_worker=1,
        gpus_per_worker=0,
    )
    train_loop(asdict(task), by_itself=True)
    state = trial_state(storage, "t")
    assert state.status == TrialStatus.FAILED and "no label set" in state.message
    storage.upload(pack_label_set(made, tmp_path / "labels.zip"), "labels/00112233445566aa/labels.zip")
    train_loop(asdict(replace(task, launch="again")), by_itself=True)
    assert trial_state(storage, "t").status == TrialStatus.FINISHED
    assert local_zip(made.identity, home).is_file()
    events = [event for _, segment in EventReader(storage, "t") for event in segment]
    (certificate,) = [e["info"]["certificate"] for e in events if "certificate" in e.get("info", {})]
    assert certificate["label_maps"]["identity"] == made.identity
