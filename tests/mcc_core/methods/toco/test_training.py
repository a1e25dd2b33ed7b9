"""ToCo in the training loop: goes on to the bit, in one process and in two."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from small import SMALL

from mcc_core import checkpoint as checkpoints
from mcc_core.data.index import DataIndex, build_index
from mcc_core.experiment_files import resolve
from mcc_core.methods.registry import method_of
from mcc_core.training.engine import Callbacks, StepRecord, train

FIELDS: dict[str, Any] = SMALL | {"crops.size": 16, "crops.views": 2, "train.eval_every": 3}
CPU = torch.device("cpu")


class Curve(Callbacks):
    """The losses of each iteration."""

    def __init__(self) -> None:
        self.losses: dict[int, dict[str, float]] = {}

    def on_step(self, record: StepRecord) -> None:
        self.losses[record.iteration] = {k: v for k, v in record.metrics.items() if k != "images_per_second"}


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> DataIndex:
    return build_index(resolve("toco-tiny", FIELDS).data, tmp_path_factory.mktemp("home"))


def run(index: DataIndex, work: Path, fields: dict[str, Any], resume: Path | None = None) -> Curve:
    curve = Curve()
    experiment = resolve("toco-tiny", fields)
    train(experiment, 0, index, device=CPU, workdir=work, callbacks=curve, resume=resume)
    return curve


def test_it_goes_on_to_the_bit(index: DataIndex, tmp_path: Path) -> None:
    whole = run(index, tmp_path, FIELDS)
    assert {"loss/ptc", "loss/ctc", "loss/seg", "loss/reg", "crops/positive_views"} <= set(whole.losses[6])
    assert "loss/seg" not in whole.losses[2]
    first, last = (checkpoints.load(tmp_path / f"000000{n}.pt") for n in (3, 6))
    assert method_of(last.experiment).name == "toco"
    again = run(index, tmp_path, FIELDS, resume=tmp_path / "0000003.pt")
    assert again.losses == {i: whole.losses[i] for i in (4, 5, 6)}
    after = checkpoints.load(tmp_path / "0000006.pt").model
    assert all(torch.equal(tensor, after[name]) for name, tensor in last.model.items())
    assert not torch.equal(first.model["momentum_projector.last.direction"], after["momentum_projector.last.direction"])


def _rank(rank: int, port: int, index: DataIndex, work: Path, out: Any) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    curve = run(index, work, FIELDS | {"train.workers": 2, "train.batch_size": 1})
    out.put((rank, curve.losses))
    dist.destroy_process_group()


def test_two_workers_are_two_passes(index: DataIndex, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = mp.get_context("spawn")
    out = context.SimpleQueue()
    processes = [context.Process(target=_rank, args=(r, port, index, tmp_path, out)) for r in range(2)]
    for process in processes:
        process.start()
    losses = dict(out.get() for _ in range(2))[0]
    for process in processes:
        process.join(60)
    passes = run(index, tmp_path, FIELDS | {"train.accumulate": 2, "train.batch_size": 1})
    assert list(losses) == [1, 2, 3, 4, 5, 6]
    for iteration, record in losses.items():
        assert passes.losses[iteration] == pytest.approx(record, rel=1e-4, abs=1e-7), iteration
