"""AFA in the training loop: goes on to the bit, two ranks are one with the whole batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ranks import on_ranks
from small import SMALL
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from mcc_core import checkpoint as checkpoints
from mcc_core.data.index import DataIndex, build_index
from mcc_core.experiment_files import resolve
from mcc_core.methods.registry import method_of
from mcc_core.training.engine import Callbacks, StepRecord, train

FIELDS: dict[str, Any] = {k: v for k, v in SMALL.items() if not k.startswith("model.")} | {
    "loss.propagation_start": 3,
    "model.dropout": 0.1,
    "model.drop_path": 0.1,
}
CPU = torch.device("cpu")


class Curve(Callbacks):
    """The losses of each iteration."""

    def __init__(self) -> None:
        self.losses: dict[int, dict[str, float]] = {}

    def on_step(self, record: StepRecord) -> None:
        self.losses[record.iteration] = {k: v for k, v in record.metrics.items() if k != "images_per_second"}


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> DataIndex:
    return build_index(resolve("afa-tiny", FIELDS).data, tmp_path_factory.mktemp("home"))


def run(index: DataIndex, work: Path, fields: dict[str, Any], resume: Path | None = None) -> Curve:
    curve = Curve()
    experiment = resolve("afa-tiny", fields)
    train(experiment, 0, index, device=CPU, workdir=work, callbacks=curve, resume=resume)
    return curve


def test_it_goes_on_to_the_bit(index: DataIndex, tmp_path: Path) -> None:
    whole = run(index, tmp_path, FIELDS)
    assert {"loss/cls", "loss/seg", "loss/aff"} <= set(whole.losses[6])
    assert "loss/seg" not in whole.losses[2]
    first, last = (checkpoints.load(tmp_path / f"000000{n}.pt") for n in (3, 6))
    assert method_of(last.experiment).name == "afa"
    again = run(index, tmp_path, FIELDS, resume=tmp_path / "0000003.pt")
    assert again.losses == {i: whole.losses[i] for i in (4, 5, 6)}
    after = checkpoints.load(tmp_path / "0000006.pt").model
    assert all(torch.equal(tensor, after[name]) for name, tensor in last.model.items())
    assert not torch.equal(
        first.model["decoder.linear_fuse.bn.running_mean"], after["decoder.linear_fuse.bn.running_mean"]
    )


class _Mean(torch.nn.Module):
    """A loss that is a mean over images, so that the mean over ranks is that of the whole batch."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        fields = FIELDS | {"model.dropout": 0.0, "model.drop_path": 0.0}
        experiment: Any = resolve("afa-tiny", fields)
        self.network = method_of(experiment).network(experiment, 3).double().train()

    def forward(self, images: Tensor) -> Tensor:
        network: Any = self.network
        output = network(images)
        affinity = network.affinity(output.features)
        return output.seg.sin().mean() + output.cls.square().mean() + affinity.mean()


def _gradients(rank: int | None) -> dict[str, Any]:
    images = torch.randn(4, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    loss: Any = _Mean()
    module = loss if rank is None else DistributedDataParallel(loss)
    module(images if rank is None else images.chunk(2)[rank]).backward()
    network = loss.network
    found = {name: p.grad.numpy() for name, p in network.named_parameters()}
    return found | {name: buffer.numpy() for name, buffer in network.named_buffers()}


def test_two_ranks_have_the_gradients_of_the_whole_batch() -> None:
    first, second = on_ranks(_gradients)
    whole = _gradients(None)
    assert "decoder.linear_fuse.bn.running_var" in whole and "encoder.block4.1.attn.q.weight" in whole
    for name, expected in whole.items():
        np.testing.assert_array_equal(first[name], second[name])
        np.testing.assert_allclose(first[name], expected, rtol=1e-8, atol=1e-12, err_msg=name)


def _trained(rank: int, index: DataIndex, work: Path) -> dict[int, dict[str, float]]:
    return run(index, work, FIELDS | {"train.workers": 2, "train.batch_size": 1}).losses


def test_two_workers_train_together(index: DataIndex, tmp_path: Path) -> None:
    losses, _ = on_ranks(_trained, index, tmp_path)
    assert set(losses) == {1, 2, 3, 4, 5, 6} and {"loss/seg", "loss/aff"} <= set(losses[6])
    saved = checkpoints.load(tmp_path / "0000006.pt").model
    assert int(saved["decoder.linear_fuse.bn.num_batches_tracked"]) == 6
