"""A trial that makes labels in a process that is killed: the next attempt goes on with the images that lack a map."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import ray.train.collective  # noqa: F401  once, for all processes
import torch
from tiny import settings_in
from trained import smallest

from mcc_core import checkpoint as checkpoints
from mcc_core.checkpoint import Checkpoint
from mcc_core.data.index import build_index
from mcc_core.data.label_maps import read_label_set
from mcc_core.files import file_digest
from mcc_core.methods.registry import random_network
from orchestrator.records import layout
from orchestrator.records.checkpoints import CheckpointRecord
from orchestrator.records.events import history, trial_state
from orchestrator.records.local_places import unfinished_labels
from orchestrator.records.status import TrialStatus
from orchestrator.settings import Settings
from orchestrator.storage.store import Storage
from orchestrator.worker.loop import train_loop

EXPERIMENT = smallest("mcc")
NETWORK, LABELS = "a" * 16, "b" * 16
SLOW = {"kind": "par", "par": {"iterations": 40}}  # long enough for each image that one can be killed between two


def prepare(settings: Settings, folder: Path) -> dict[str, Any]:
    """A trained network in storage, and what a worker is told that makes labels of it."""
    index, storage = build_index(EXPERIMENT.data, settings.home), Storage(settings.storage)
    torch.manual_seed(0)
    weights = random_network(EXPERIMENT, len(index.classes)).state_dict()
    file = folder / "network.pt"
    checkpoints.save(Checkpoint(EXPERIMENT, index.classes, 6, 0, weights, None, {}), file)
    saved = CheckpointRecord(6, file.stat().st_size, file_digest(file))
    storage.upload(file, saved.key(NETWORK))
    storage.write(f"{saved.key(NETWORK)}.json", json.dumps(asdict(saved)).encode())
    task = {"identity": LABELS, "name": "refine", "seed": 0, "metric": "", "mode": "max", "input": NETWORK}
    task |= {"experiment": EXPERIMENT.model_dump(mode="json"), "fingerprint": index.fingerprint, "refine": SLOW}
    task |= {"storage": settings.storage, "home": str(settings.home), "stop_key": "s", "launch": "L"}
    return task | {"cpus_per_worker": 1, "gpus_per_worker": 0}


def run(task: dict[str, Any], kill_at: int | None = None) -> None:
    """One attempt in a process of its own, killed once so many images have a map."""
    process = multiprocessing.get_context("fork").Process(target=train_loop, args=(task,), kwargs={"by_itself": True})
    process.start()
    made = unfinished_labels(Path(task["home"]), LABELS, Storage(task["storage"]))
    journal, deadline = made / "progress.jsonl", time.monotonic() + 120
    while kill_at is not None and process.is_alive() and time.monotonic() < deadline:
        if journal.exists() and journal.read_bytes().count(b"\n") > kill_at:  # the first line is a header
            os.kill(process.pid or 0, signal.SIGKILL)
            break
        time.sleep(0.002)
    process.join(120)
    assert process.exitcode == (0 if kill_at is None else -signal.SIGKILL)


def test_a_killed_trial_goes_on_with_the_images_that_lack_a_map(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # a forked process must not find a pool of threads half there
    try:
        task = prepare(settings_in(tmp_path / "killed"), tmp_path)
        storage = Storage(task["storage"])
        kept = unfinished_labels(Path(task["home"]), LABELS, storage)
        run(task, kill_at=4)
        assert not storage.exists(layout.label_set(LABELS)) and not (kept / "labels.json").exists()
        assert trial_state(storage, LABELS).status == TrialStatus.RUNNING  # it had no time to say anything
        done = [json.loads(line)["name"] for line in (kept / "progress.jsonl").read_text().splitlines()[1:]]
        assert 4 <= len(done) < 12
        (kept / "maps" / f"{done[0]}.png").write_bytes(b"torn")

        run(task)
        assert f"{len(done) - 1} of 12 images have labels from an earlier attempt" in capfd.readouterr().out
        assert not kept.exists()

        other = prepare(settings_in(tmp_path / "whole"), tmp_path)
        run(other)
        undisturbed = Storage(other["storage"])
        key = layout.label_set(LABELS)
        assert storage.read(key) == undisturbed.read(key)
        labels = read_label_set(storage.local(key) or Path())
        assert labels.identity == LABELS and len(labels.names) == 12
        ends = [history(place, LABELS)[-1] for place in (storage, undisturbed)]
        assert [end["status"] for end in ends] == ["finished", "finished"]
        assert trial_state(storage, LABELS).metrics == trial_state(undisturbed, LABELS).metrics
    finally:
        torch.set_num_threads(threads)
