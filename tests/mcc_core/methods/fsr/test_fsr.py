"""FSR: which blocks are masked, and a run that goes on to the bit with its teacher and centres."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mcc_core import checkpoint as checkpoints
from mcc_core.data.index import build_index
from mcc_core.errors import UsageError
from mcc_core.experiment_files import resolve
from mcc_core.methods.fsr.masking import masked_blocks, uncertain_blocks
from mcc_core.training.engine import Callbacks, StepRecord, train

FIELDS: dict[str, Any] = {
    "data.shapes_train": 8,
    "data.shapes_val": 4,
    "data.shapes_size": 48,
    "model.backbone_args": {"patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3},
    "model.aux_block": 1,
    "model.decoder_channels": 8,
    "model.projector": {"hidden": 16, "bottleneck": 8, "out": 8},
    "model.stochastic_depth": 0.2,
    "cam.scales": [1.0],
    "par.iterations": 1,
    "loss.seg_start": 1,
    "mask.uncertain_start": 2,
    "train.iterations": 6,
    "train.batch_size": 2,
    "train.crop": 32,
    "train.log_every": 1,
    "train.eval_every": 3,
    "train.panels": 0,
}


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 7), st.integers(1, 7), st.floats(0.05, 1.0), st.integers(0, 9))
def test_the_share_of_blocks_is_masked_and_uncertain_ones_first(h: int, w: int, ratio: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    noise = torch.rand(2, h, w, generator=generator)
    first = torch.rand(2, h, w, generator=generator) < 0.3
    masked = masked_blocks(noise, ratio, first)
    count = math.ceil(ratio * h * w - 1e-9)
    assert (masked.flatten(1).sum(1) == count).all()
    for image in range(2):
        wanted = min(count, int(first[image].sum()))
        assert int((masked[image] & first[image]).sum()) == wanted


def test_a_block_is_uncertain_between_the_thresholds() -> None:
    cam = torch.tensor([[[[0.1, 0.5], [0.2, 0.9]], [[0.0, 0.3], [0.1, 0.1]]]])
    assert uncertain_blocks(cam, (2, 2), 0.2, 0.7).tolist() == [[[False, True], [False, False]]]


class Curve(Callbacks):
    """The losses of each iteration."""

    def __init__(self) -> None:
        self.losses: dict[int, dict[str, float]] = {}

    def on_step(self, record: StepRecord) -> None:
        self.losses[record.iteration] = {k: v for k, v in record.metrics.items() if k != "images_per_second"}


def run(work: Path, resume: Path | None = None) -> Curve:
    experiment, curve = resolve("fsr-tiny", FIELDS), Curve()
    index = build_index(experiment.data, work / "home")
    train(experiment, 0, index, device=torch.device("cpu"), workdir=work, callbacks=curve, resume=resume)
    return curve


def test_it_goes_on_to_the_bit_with_its_teacher(tmp_path: Path) -> None:
    whole = run(tmp_path)
    assert {"loss/fsr_class", "loss/fsr_patch", "loss/ptc", "loss/seg", "teacher/momentum"} <= set(whole.losses[6])
    first, last = (checkpoints.load(tmp_path / f"000000{n}.pt").model for n in (3, 6))
    assert run(tmp_path, resume=tmp_path / "0000003.pt").losses == {i: whole.losses[i] for i in (4, 5, 6)}
    again = checkpoints.load(tmp_path / "0000006.pt").model
    assert all(torch.equal(tensor, again[name]) for name, tensor in last.items())
    moved = [
        name for name in last if ("teacher" in name or "center" in name) and not torch.equal(first[name], last[name])
    ]
    assert any("teacher" in name for name in moved) and any("center" in name for name in moved)


def test_blocks_that_do_not_fill_the_crop_are_refused() -> None:
    with pytest.raises(UsageError, match=r"mask.block \(24\) must divide train.crop \(32\)"):
        resolve("fsr-tiny", FIELDS | {"mask.block": 24})
