"""Checkpoints in storage: which are kept, and which are believed."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.records.checkpoints import CheckpointStore, newest_checkpoint, saved_checkpoints
from orchestrator.records.events import EventLog
from orchestrator.settings import Settings
from orchestrator.storage.outbox import Outbox
from orchestrator.storage.store import Storage


@pytest.fixture
def settings(settings_of_each_kind: Settings) -> Settings:
    return settings_of_each_kind


def add(storage: Storage, folder: Path, scores: dict[int, float | None], mode: str = "max", start: int = 0) -> None:
    """Store checkpoints as a run does that goes on from iteration `start`."""
    outbox = Outbox(storage, folder / "outbox")
    shelf = CheckpointStore(outbox, "t", mode, saved_checkpoints(storage, "t"), start, 0)
    for iteration, score in scores.items():
        file = folder / "file.pt"
        file.write_bytes(bytes([iteration]) * 100)
        shelf.add(file, iteration, score)
    assert outbox.close(20)


def kept(storage: Storage) -> list[int]:
    files = [key for key in storage.list("trials/t/checkpoints") if key.endswith(".pt")]
    saved = [s.iteration for s in saved_checkpoints(storage, "t")]
    assert len(files) == len(saved)
    return saved


@pytest.mark.parametrize(("mode", "expected"), [("max", [2, 4, 5]), ("min", [1, 4, 5])])
def test_the_last_two_and_the_best_are_kept(storage: Storage, tmp_path: Path, mode: str, expected: list[int]) -> None:
    add(storage, tmp_path, {1: 0.1, 2: 0.9, 3: float("nan"), 4: 0.2, 5: None}, mode)
    assert kept(storage) == expected


def test_the_best_of_an_earlier_attempt_stays_the_best(storage: Storage, tmp_path: Path) -> None:
    add(storage, tmp_path, {1: 0.9, 2: 0.1, 3: 0.2})
    add(storage, tmp_path, {4: 0.3, 5: 0.4}, start=3)
    assert kept(storage) == [1, 4, 5]


def test_what_lies_beyond_the_start_of_a_run_is_removed(storage: Storage, tmp_path: Path) -> None:
    add(storage, tmp_path, {1: 0.1, 2: 0.2, 3: 0.9})
    add(storage, tmp_path, {3: 0.3}, start=2)
    assert kept(storage) == [2, 3]


def test_a_spoiled_checkpoint_is_passed_over_and_named(storage: Storage, tmp_path: Path) -> None:
    add(storage, tmp_path, {1: None, 2: None})
    one, file, complaints = newest_checkpoint(storage, "t", tmp_path)
    assert one is not None and file is not None and (one.iteration, complaints) == (2, [])

    storage.write("trials/t/checkpoints/0000002.pt", file.read_bytes()[:-1] + b"?")
    one, file, complaints = newest_checkpoint(storage, "t", tmp_path)
    assert one is not None and file is not None and one.iteration == 1
    assert complaints == [f"{storage.url}/trials/t/checkpoints/0000002.pt is not what was written"]

    storage.write("trials/t/checkpoints/0000001.pt", file.read_bytes()[:50])
    one, file, complaints = newest_checkpoint(storage, "t", tmp_path)
    assert (one, file) == (None, None)
    assert complaints[1].endswith("0000001.pt has 50 bytes instead of 100")


def test_a_checkpoint_without_its_sidecar_is_not_complete(storage: Storage, tmp_path: Path) -> None:
    add(storage, tmp_path, {1: None, 2: None})
    storage.delete("trials/t/checkpoints/0000002.pt.json")
    storage.write("trials/t/checkpoints/0000001.pt.json", b'{"iteration": ')
    assert newest_checkpoint(storage, "t", tmp_path)[0] is None


def test_what_an_attempt_wrote_after_another_began_before_it_does_not_count(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path / "storage"))
    outbox = Outbox(storage, tmp_path / "outbox")
    for attempt, first in ((1, 0), (2, 4)):
        log = EventLog(outbox, "t", attempt)
        log.emit("start", first, attempt=attempt, info={})
        log.close()
    for attempt, iteration in ((1, 2), (1, 4), (2, 6), (1, 6), (1, 8)):  # the last two came late
        (tmp_path / "file").write_bytes(f"{attempt} at {iteration}".encode())
        CheckpointStore(outbox, "t", "max", [], iteration, attempt).add(tmp_path / "file", iteration, None)
    assert outbox.close(10)
    assert [(s.iteration, s.attempt) for s in saved_checkpoints(storage, "t")] == [(2, 1), (4, 1), (6, 2)]
    one, file, complaints = newest_checkpoint(storage, "t", tmp_path)
    assert one is not None and file is not None and file.read_bytes() == b"2 at 6" and complaints == []
