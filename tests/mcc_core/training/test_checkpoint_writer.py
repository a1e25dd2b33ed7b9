"""Checkpoints written behind: of the moment they were asked for, one after the other, with no fault lost."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from small import SMALL

from mcc_core import checkpoint as checkpoints
from mcc_core.checkpoint import Checkpoint
from mcc_core.experiment_files import resolve
from mcc_core.files import file_digest
from mcc_core.training.checkpoint_writer import CheckpointWriter


class Heard:
    """What a writer says, and a gate before each write."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.said: list[object] = []
        self.gate, self.faults = threading.Event(), 0
        self.give_up = False
        own = checkpoints.save
        monkeypatch.setattr(checkpoints, "save", lambda saved, file: self._save(own, saved, file))

    def _save(self, own: Callable[[Checkpoint, Path], None], saved: Checkpoint, file: Path) -> None:
        assert self.gate.wait(60)
        assert threading.current_thread() is not threading.main_thread()
        if self.faults:
            self.faults -= 1
            raise OSError("no space")
        own(saved, file)

    def written(self, iteration: int, file: Path, sha256: str) -> None:
        assert threading.current_thread() is threading.main_thread()
        assert file_digest(file) == sha256
        self.said.append(iteration)

    def failed(self, error: OSError) -> None:
        self.said.append(str(error))
        if self.give_up:
            raise error


@pytest.fixture
def heard(monkeypatch: pytest.MonkeyPatch) -> Heard:
    return Heard(monkeypatch)


@pytest.fixture
def writer(heard: Heard) -> Iterator[CheckpointWriter]:
    writer = CheckpointWriter(heard.written, heard.failed)
    yield writer
    heard.gate.set()
    writer.close()


def of(value: float, iteration: int = 1) -> Checkpoint:
    optimizer = {"state": {0: {"step": torch.tensor(value)}}, "param_groups": [{"lr": value, "betas": (0.9, 0.99)}]}
    model = {"weight": torch.full((3,), value)}
    return Checkpoint(resolve("tiny", SMALL), ("a",), iteration, 0, model, optimizer, {}, None)


def test_what_changes_after_the_call_is_not_in_the_file(heard: Heard, writer: CheckpointWriter, tmp_path: Path) -> None:
    saved = of(1.0)
    writer.begin(saved, tmp_path / "1.pt")
    saved.model["weight"].fill_(2)  # the next step
    assert saved.optimizer is not None
    saved.optimizer["state"][0]["step"].add_(1)
    writer.look()
    assert heard.said == [] and not (tmp_path / "1.pt").exists()  # nobody waits
    heard.gate.set()
    writer.finish()
    assert heard.said == [1]
    read = checkpoints.load(tmp_path / "1.pt")
    assert read.model["weight"].tolist() == [1, 1, 1] and read.optimizer is not None
    assert read.optimizer["state"][0]["step"].item() == 1
    assert read.optimizer["param_groups"] == [{"lr": 1.0, "betas": (0.9, 0.99)}]


def test_one_is_written_after_the_other(heard: Heard, writer: CheckpointWriter, tmp_path: Path) -> None:
    heard.gate.set()
    for iteration in (1, 2, 3):
        writer.begin(of(1.0, iteration), tmp_path / f"{iteration}.pt")
        assert heard.said == list(range(1, iteration))
    writer.close()
    assert heard.said == [1, 2, 3]


def test_a_write_that_fails_is_told_and_tried_again(heard: Heard, writer: CheckpointWriter, tmp_path: Path) -> None:
    heard.gate.set()
    heard.faults = 2
    writer.begin(of(1.0), tmp_path / "1.pt")
    writer.finish()
    assert heard.said == ["no space", "no space", 1]


def test_a_write_that_is_given_up_is_raised_once(heard: Heard, writer: CheckpointWriter, tmp_path: Path) -> None:
    heard.gate.set()
    heard.faults, heard.give_up = 1, True
    writer.begin(of(1.0), tmp_path / "1.pt")
    with pytest.raises(OSError, match="no space"):
        writer.finish()
    writer.finish()
    assert heard.said == ["no space"]
