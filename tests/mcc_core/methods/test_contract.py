"""What holds of every method: its network, its draws, its training, to the bit and over workers."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ranks import on_ranks
from trained import SMALLEST, smallest, trained

from mcc_core import checkpoint as checkpoints
from mcc_core.data.index import DataIndex, build_index
from mcc_core.data.make_labels import label_set_of_masks
from mcc_core.evaluation.inference import predict
from mcc_core.methods.base import Method
from mcc_core.methods.registry import METHODS, method_of
from mcc_core.networks.base import Network

CPU = torch.device("cpu")
CLASSES = 3
EACH = pytest.mark.parametrize("name", SMALLEST)
# Batch statistics are of a pass, and noise inside the network is of a rank: two workers are not two passes.
OF_A_PASS = {"afa", "recam", "segmentation", "slrnet"}


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> DataIndex:
    home = tmp_path_factory.mktemp("home")
    made = build_index(smallest("mcc").data, home)
    return replace(made, labels=label_set_of_masks(made, home / "labels")[0])


def built(name: str) -> tuple[Method, Any, Network]:
    experiment = smallest(name)
    method = method_of(experiment)
    torch.manual_seed(0)
    return method, experiment, method.network(experiment, CLASSES)


def test_no_method_is_left_out() -> None:
    assert set(SMALLEST) == set(METHODS)


@EACH
def test_a_network_gives_what_its_users_may_know(name: str) -> None:
    method, _, network = built(name)
    assert network.map_stages == method.map_stages and network.num_classes == CLASSES
    network.eval()
    side = 2 * max(network.stride, 16)
    images = torch.randn(2, 3, side, side + network.stride, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        output = network(images)
        maps = network.class_maps(images, output)
        afresh = network.class_maps(images)
        some = network.class_maps(images, output, torch.tensor([2, 0]))
    assert output.cls.shape == (2, CLASSES) and output.seg.shape[:2] == (2, CLASSES + 1)
    assert set(maps) == set(network.map_stages)
    for stage, whole in maps.items():
        assert whole.shape[:2] == (2, CLASSES) and whole.ndim == 4
        torch.testing.assert_close(afresh[stage], whole, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(some[stage], whole[:, [2, 0]], rtol=1e-4, atol=1e-5)


@EACH
def test_every_trained_parameter_is_in_one_group(name: str) -> None:
    _, experiment, network = built(name)
    groups = network.parameter_groups(experiment.optim)
    counted = Counter(id(parameter) for group in groups for parameter in group.parameters)
    assert counted == Counter(id(p) for p in network.parameters() if p.requires_grad)


@EACH
def test_draws_come_from_the_generator_alone(name: str) -> None:
    method, experiment, network = built(name)

    def drawn(seed: int, noise: int) -> dict[str, torch.Tensor]:
        torch.manual_seed(noise)
        return method.draws(experiment, network, 2, (128, 128), 4, torch.Generator().manual_seed(seed))

    first, again, other = drawn(0, 1), drawn(0, 2), drawn(1, 1)
    assert all(torch.equal(tensor, again[key]) and tensor.device == CPU for key, tensor in first.items())
    assert not first or any(not torch.equal(tensor, other[key]) for key, tensor in first.items())


@EACH
def test_it_goes_on_to_the_bit_and_is_predicted_with(name: str, index: DataIndex, tmp_path: Path) -> None:
    experiment = smallest(name)
    whole = trained(experiment, index, tmp_path / "whole")
    method = method_of(experiment)
    computed = {f"loss/{term}" for term in method.terms_of(experiment)}
    assert computed <= set(whole.losses[6]) and "loss/seg" not in whole.losses[1]
    again = trained(experiment, index, tmp_path / "again", resume=whole.files[0])
    assert again.losses == {i: whole.losses[i] for i in (4, 5, 6)}
    middle, end, after = (checkpoints.load(file) for file in (*whole.files, again.files[-1]))
    assert all(torch.equal(tensor, after.model[key]) for key, tensor in end.model.items())
    assert any(not torch.equal(tensor, after.model[key]) for key, tensor in middle.model.items())
    assert method_of(after.experiment) is method
    pixels = np.random.default_rng(0).integers(0, 256, (37, 50, 3), dtype=np.uint8)
    (prediction,) = predict(after.network().eval(), after.experiment, [pixels], CPU, "single")
    assert prediction.mask.shape == (37, 50) and prediction.mask.max() <= CLASSES + len(index.classes)


def _losses(rank: int, name: str, index: DataIndex, work: Path) -> dict[int, dict[str, float]]:
    return trained(smallest(name, **{"train.workers": 2, "train.batch_size": 1}), index, work).losses


@pytest.mark.parametrize("name", ["mcc", *(pytest.param(n, marks=pytest.mark.slow) for n in SMALLEST if n != "mcc")])
def test_two_workers_are_two_passes(name: str, index: DataIndex, tmp_path: Path) -> None:
    losses, _ = on_ranks(_losses, name, index, tmp_path / "ranks")
    assert list(losses) == [1, 2, 3, 4, 5, 6]
    if name in OF_A_PASS:
        assert all(np.isfinite(list(record.values())).all() for record in losses.values())
        return
    passes = trained(smallest(name, **{"train.accumulate": 2, "train.batch_size": 1}), index, tmp_path / "passes")
    for iteration, record in losses.items():
        assert passes.losses[iteration] == pytest.approx(record, rel=1e-4, abs=1e-7), iteration
