"""Loader processes: the same batches, from no forks of this process, within the shared memory that there is."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import small_voc
import torch
from torch import Tensor

from mcc_core.config import AugmentConfig
from mcc_core.data.colours import View
from mcc_core.data.datasets import TrainingBatches, TrainingSet
from mcc_core.data.index import DataIndex, build_index
from mcc_core.data.loading import training_loader
from mcc_core.data.transforms import ThreeViews
from mcc_core.errors import UsageError


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> DataIndex:
    folder = tmp_path_factory.mktemp("data")
    root = small_voc.write(folder / "voc", train={f"t{i:02d}": (small_voc.CLASSES[i % 3],) for i in range(12)})
    return build_index(small_voc.config(root), folder / "home")


class WithParent(ThreeViews):
    """Says too which process made the process that makes the views, and complains."""

    def __call__(self, image: Tensor, generator: torch.Generator) -> dict[str, Tensor | View]:
        print(f"complaint of {os.getpid()}", file=sys.stderr, flush=True)
        return super().__call__(image, generator) | {"parent": torch.tensor([os.getpid(), os.getppid()])}


@contextmanager
def _output_in(file: Path) -> Iterator[None]:
    """What this process writes, as a trial's worker does it."""
    before = os.dup(2)
    with file.open("a") as stream:
        os.dup2(stream.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(before, 2)
            os.close(before)


@pytest.mark.parametrize("finish", [True, False])
def test_processes_that_are_no_forks_of_this_one_make_the_same_batches(
    index: DataIndex, finish: bool, tmp_path: Path
) -> None:
    def batches(processes: int) -> list[dict[str, Any]]:
        dataset = TrainingSet(index.train, len(index.classes), WithParent(AugmentConfig(), 32), 0, finish=finish)
        return list(training_loader(dataset, TrainingBatches(12, 4, 0, start=0, end=4), processes, pin=False))

    alone = batches(0)
    with _output_in(tmp_path / "log"):  # another in each run, while the process that forks them stays
        together = batches(2)
    parents = {tuple(row) for batch in together for row in batch.pop("parent").tolist()}
    complaints = (tmp_path / "log").read_text().splitlines()
    assert {line for line in complaints if "complaint" in line} == {f"complaint of {pid}" for pid, _ in parents}
    assert {tuple(row) for batch in alone for row in batch.pop("parent").tolist()} == {(os.getpid(), os.getppid())}
    assert len({pid for pid, _ in parents}) == 2 and os.getpid() not in {pid for pair in parents for pid in pair}
    assert len(alone) == 4 and alone[0]["view1"].dtype == (torch.float32 if finish else torch.uint8)
    for one, other in zip(alone, together, strict=True):
        assert one.keys() == other.keys() and one.pop("name") == other.pop("name")
        assert all(torch.equal(one[key], other[key]) for key in one)


def test_shared_memory_that_is_too_small_is_told_before(
    index: DataIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = TrainingSet(index.train, 3, ThreeViews(AugmentConfig(), 64), 0)
    monkeypatch.setattr(os, "statvfs", lambda path: SimpleNamespace(f_bavail=256, f_frsize=4096))
    with pytest.raises(UsageError, match=r"train.loader_workers: 4 processes hold up to 5 MiB .* has 1 MiB free: give"):
        training_loader(dataset, TrainingBatches(12, 4, 0, start=0, end=4), 4, pin=False)
