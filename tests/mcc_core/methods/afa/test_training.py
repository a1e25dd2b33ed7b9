"""AFA in the training loop: goes on to the bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from small import SMALL

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
