"""Processes that run attempts of trials: one that comes back from the dead, one that ran another trial before."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from attempts import attempts
from forks import forks
from tiny import TINY

from mcc_core.checkpoint import load
from mcc_core.data.index import build_index
from mcc_core.experiment_files import resolve
from orchestrator.planning.identity import file_contents
from orchestrator.records.checkpoints import newest_checkpoint
from orchestrator.records.events import EventReader, history, trial_state
from orchestrator.records.local_places import outbox
from orchestrator.storage.store import Storage
from orchestrator.worker.assignment import Assignment
from orchestrator.worker.loop import train_loop


def assignment(folder: Path, home: str, identity: str, seed: int = 0, **fields: Any) -> Assignment:
    experiment = resolve("tiny", TINY | fields)
    return Assignment(
        identity=identity,
        name=identity,
        experiment=experiment.model_dump(mode="json"),
        seed=seed,
        fingerprint=build_index(experiment.data, folder / home).fingerprint,
        metric="val/seg/single/miou",
        mode="max",
        storage=str(folder / "storage"),
        home=str(folder / home),
        stop_key="sweeps/s/stop",
        launch="launch",
        cpus_per_worker=1,
        gpus_per_worker=0,
    )


def begin(folder: Path, *tasks: Assignment) -> ForkServerProcess:
    """A worker process that runs these one after the other."""
    process = forks().Process(target=attempts, args=([asdict(task) for task in tasks], folder / "after.jsonl"))
    process.start()
    return process


def send(process: ForkServerProcess, what: signal.Signals) -> None:
    assert process.pid is not None
    os.kill(process.pid, what)


def ended_well(process: ForkServerProcess, seconds: float) -> bool:
    process.join(seconds)
    return process.exitcode == 0


def until(what: Callable[[], Any], process: ForkServerProcess, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert process.is_alive() and time.monotonic() < deadline
        time.sleep(0.02)


def reached(storage: Storage, identity: str) -> int:
    return max((e["iteration"] for _, events in EventReader(storage, identity) for e in events), default=0)


def kept(storage: Storage) -> dict[str, bytes]:
    """Every file of the trial but what its attempts printed."""
    return {one.key: storage.read(one.key) for one in storage.files("trials/t") if "/logs/" not in one.key}


def test_a_worker_that_comes_back_after_another_went_on_changes_nothing(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path / "storage"))
    last = 40
    long = {"train.iterations": last, "train.eval_every": 4, "train.panels": 0}
    frozen = begin(tmp_path, assignment(tmp_path, "one", "t", **long))
    try:
        until(lambda: reached(storage, "t") >= 4, frozen)
        send(frozen, signal.SIGSTOP)
        other = begin(tmp_path, assignment(tmp_path, "two", "t", **long))
        until(lambda: reached(storage, "t") >= 16, other)
        send(other, signal.SIGSTOP)  # in the middle of its work
        time.sleep(0.5)
        before = kept(storage)
        send(frozen, signal.SIGCONT)
        assert ended_well(frozen, 60)
        after = kept(storage)
        late = [key for key in after if after[key] != before.get(key)]
        assert before.keys() <= after.keys() and len(late) <= 1  # what was on its way when it was stopped
        assert all("/0001-" in key or "-0001.pt" in key for key in late)
        assert b"this one is over" in storage.read("trials/t/logs/0001-rank0.log")
        send(other, signal.SIGCONT)
        assert ended_well(other, 120)
    finally:
        for process in (frozen, other):
            process.kill()
    assert trial_state(storage, "t").status == "finished"
    steps = [e["iteration"] for e in history(storage, "t") if e["kind"] == "metrics" and "loss/total" in e["metrics"]]
    assert steps == list(range(1, last + 1))
    assert ended_well(begin(tmp_path, assignment(tmp_path, "three", "alone", **long)), 120)
    assert weights(storage, "t", tmp_path) == weights(storage, "alone", tmp_path)
    assert list((tmp_path / "one").glob("outbox/*/*/*")) == []


def weights(storage: Storage, identity: str, folder: Path) -> dict[str, list[Any]]:
    _, file, complaints = newest_checkpoint(storage, identity, folder)
    assert file is not None and complaints == []
    return {name: tensor.tolist() for name, tensor in load(file).model.items()}


def curve(storage: Storage, identity: str) -> list[Any]:
    """Everything that was measured but speeds."""
    found = [(e["iteration"], e["metrics"]) for e in history(storage, identity) if e["kind"] == "metrics"]
    return [(i, {k: v for k, v in metrics.items() if k != "images_per_second"}) for i, metrics in found]


def test_a_trial_in_a_process_that_ran_others_is_the_trial_in_a_fresh_one(tmp_path: Path) -> None:
    """To the bit, and what the others held is free again."""
    storage = Storage(str(tmp_path / "storage"))
    others = [
        assignment(tmp_path, "kept", "bigger", seed=7, **{"train.crop": 48, "train.batch_size": 4}),
        assignment(tmp_path, "kept", "half", seed=8, **{"compute.precision": "bfloat16"}),
        replace(assignment(tmp_path, "kept", "threads", seed=9, **{"optim.lr": 1e-3}), threads=2),
    ]
    last = {"train.iterations": 12, "train.eval_every": 4, "mask.ratio": 0.7}
    for name, tasks in (("used", others), ("fresh", [])):
        process = begin(tmp_path, *tasks, assignment(tmp_path, f"{name}-home", name, seed=3, **last))
        assert ended_well(process, 240)
        if tasks:
            after = [json.loads(line) for line in (tmp_path / "after.jsonl").read_text().splitlines()]
    assert [one["fit"] for one in after] == [True] * 4
    assert curve(storage, "used") == curve(storage, "fresh") and len(curve(storage, "used")) > 12
    assert weights(storage, "used", tmp_path) == weights(storage, "fresh", tmp_path)
    for what in ("files", "threads", "tensors"):
        assert after[3][what] <= after[1][what], after


@pytest.mark.parametrize("change", ["another", "gone"])
def test_a_file_that_is_another_than_when_the_sweep_was_planned_ends_the_trial(tmp_path: Path, change: str) -> None:
    """Such as on a node where an old copy lies under the same name; before anything is trained."""
    file = tmp_path / "net.pt"
    file.write_bytes(b"planned")
    storage = Storage(str(tmp_path / "storage"))
    planned = file_contents(resolve("tiny", TINY | {"model.weights": str(file)}))
    fields: dict[str, Any] = {"model.weights": str(file)}
    task = assignment(tmp_path, "home", "t", **fields)
    if change == "another":
        file.write_bytes(b"other content")
    else:
        file.unlink()
    train_loop(asdict(replace(task, files=planned)), by_itself=True)
    said = {"another": "is another file on .* than where the sweep was planned", "gone": "cannot be read on"}
    state = trial_state(storage, "t")
    assert state.status == "failed" and re.match(rf"model.weights: {file}: {said[change]}", state.message)
    assert reached(storage, "t") == 0


def test_what_waits_for_one_storage_is_not_sent_to_another(tmp_path: Path) -> None:
    """One home may serve both; a trial has the same identity in each."""
    short = {"train.iterations": 2, "train.eval_every": 2, "train.panels": 0}
    task = assignment(tmp_path, "home", "t", **short)
    one, other = Storage(task.storage), Storage(str(tmp_path / "other"))
    key = "trials/t/logs/0007-rank0.log"
    left = outbox(tmp_path / "home", "t", other) / "0007" / f"00000001-put-{quote(key, safe='')}"
    left.parent.mkdir(parents=True)
    left.write_bytes(b"measured")
    train_loop(asdict(task), by_itself=True)
    assert trial_state(one, "t").status == "finished" and not one.exists(key)
    assert left.read_bytes() == b"measured" and not outbox(tmp_path / "home", "t", one).exists()
    train_loop(asdict(replace(task, storage=other.url)), by_itself=True)
    assert trial_state(other, "t").status == "finished" and other.read(key) == b"measured"
    assert not outbox(tmp_path / "home", "t", other).exists()
