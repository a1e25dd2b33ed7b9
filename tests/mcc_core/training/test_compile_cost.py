"""What was compiled, for how long and what was given up is told, and is no part of a step's time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from compiling import compiling_anew
from trained import SMALLEST, Curve, smallest

from mcc_core.data.index import build_index
from mcc_core.data.make_labels import label_set_of_masks
from mcc_core.training.compile_cost import CompileCost, CompileWatch
from mcc_core.training.engine import train
from mcc_core.training.running_means import RunningMeans


@pytest.fixture
def anew() -> Iterator[None]:
    with compiling_anew():
        yield


def doubled(x: torch.Tensor, times: int) -> torch.Tensor:
    return x.sin() * times


def test_what_is_compiled_is_told_once(anew: None) -> None:
    with torch._dynamo.config.patch(recompile_limit=2):
        _told_once()


def _told_once() -> None:
    function = torch.compile(doubled, dynamic=False)
    with CompileWatch(True) as watch:
        assert watch.spent() is None
        function(torch.ones(3), 2)
        cost = watch.spent()
        assert cost is not None and (cost.functions, cost.graphs, cost.given_up) == (("doubled",), 1, 0)
        assert 0 < cost.seconds < 60 and "compiled doubled: 1 graphs" in str(cost)
        function(torch.ones(3), 2)
        assert watch.spent() is None
        for number in (4, 5, 6):
            function(torch.ones(number), 2)
        last = watch.spent()
        assert last is not None and (last.graphs, last.given_up) == (1, 1) and "1 not compiled any further" in str(last)
        assert last.whole["compile/graphs"] == 2 and last.whole["compile/seconds"] == cost.seconds + last.seconds
    torch.compile(doubled, dynamic=True)(torch.ones(9), 3)
    assert watch.spent() is None and CompileWatch(False).spent() is None


def test_seconds_that_are_left_out_are_no_part_of_the_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("mcc_core.training.running_means.time.perf_counter", lambda: now)
    means = RunningMeans()
    means.images, now = 8, 112.0
    means.leave_out(10.0)
    assert means.close(torch.device("cpu"), 1)["images_per_second"] == 4


# Those that can be compiled: a ViT, one with rotary positions, a ViT with a token for each class, mix transformers.
ROTARY: dict[str, Any] = {
    "model.backbone": "vit_small_patch16_dinov3",
    "model.backbone_args": {"embed_dim": 32, "depth": 3, "num_heads": 2},
}
SEGFORMER: dict[str, Any] = {
    "model.backbone": "mit_b0",
    "model.decoder": "segformer",
    "model.backbone_args": {"embed_dims": [8, 16, 40, 64], "depths": [1, 1, 1, 1]},
}
COMPILED: dict[str, dict[str, Any]] = {
    name: {} for name in SMALLEST if name in ("mcc", "toco", "afa", "fsr", "mctformer")
}


class _Listener(Curve):
    def __init__(self) -> None:
        super().__init__()
        self.costs: dict[int, list[CompileCost]] = {}

    def on_compile(self, iteration: int, cost: CompileCost) -> None:
        self.costs.setdefault(iteration, []).append(cost)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "fields"), [*COMPILED.items(), ("mcc", ROTARY), ("segmentation", SEGFORMER)], ids=lambda x: str(x)[:20]
)
def test_each_method_is_compiled_in_its_first_steps(
    name: str, fields: dict[str, Any], tmp_path: Path, anew: None
) -> None:
    experiment = smallest(name, **{**fields, "compute.compile": True, "train.batch_size": 1})
    index = build_index(experiment.data, tmp_path)
    if name == "segmentation":
        index = replace(index, labels=label_set_of_masks(index, tmp_path / "labels")[0])
    heard = _Listener()
    train(experiment, 0, index, device=torch.device("cpu"), workdir=tmp_path, callbacks=heard)
    # The evaluation after three iterations has batches of its own size; terms begin after one, two or three.
    assert 1 in heard.costs and set(heard.costs) <= {1, 2, 3, 4}
    told = [cost for costs in heard.costs.values() for cost in costs]
    assert sum(cost.graphs for cost in told) >= 2 and not sum(cost.given_up for cost in told)
    assert all(cost.functions for cost in told)
