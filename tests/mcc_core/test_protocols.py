"""Evaluation protocols and scoring: held against the in-training evaluation and a count by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from small import SMALL

from mcc_core.data.index import DataIndex, build_index
from mcc_core.data.voc import read_mask, read_rgb
from mcc_core.evaluation import evaluate
from mcc_core.experiment_files import resolve
from mcc_core.model import MCCNet
from mcc_core.protocols import EvaluationConfig, Maps, combined_logits, label_map, network_maps
from mcc_core.scoring import Scorer, Setting, matrices

CPU = torch.device("cpu")
EXPERIMENT = resolve("tiny", SMALL)
NAMES = ("cam", "aux_cam", "single", "ms", "ms_crf")


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> DataIndex:
    return build_index(EXPERIMENT.data, tmp_path_factory.mktemp("home"))


@pytest.fixture(scope="module")
def model(index: DataIndex) -> MCCNet:
    torch.manual_seed(0)
    network = MCCNet(EXPERIMENT.model, len(index.classes)).eval()
    for parameter in network.parameters():
        if parameter.ndim == 1:
            torch.nn.init.normal_(parameter, 0.5, 0.5)
    return network


def settings(index: DataIndex) -> list[Setting]:
    config = EvaluationConfig.of(EXPERIMENT, len(index.classes))
    return [Setting(name, name, config) for name in NAMES]  # type: ignore[arg-type]


def test_cam_and_single_are_the_in_training_scores(model: MCCNet, index: DataIndex) -> None:
    with Scorer(model, settings(index)[:3], index.masks, CPU) as scorer:
        counts = [score.counts for score in scorer.scores(index.val)]
    found = matrices(counts, len(index.classes) + 1)
    expected = {m.key: m.value for m in evaluate(model, index, EXPERIMENT, CPU, 6).metrics}
    model.eval()
    assert found["single"].miou() == pytest.approx(expected["val/seg/single/miou"], abs=1e-4)
    assert found["cam"].miou() == pytest.approx(expected["val/cam/ms/miou"], abs=1e-3)
    assert found["aux_cam"].miou() == pytest.approx(expected["val/aux_cam/ms/miou"], abs=1e-3)


def test_any_number_of_processes_counts_the_same(model: MCCNet, index: DataIndex) -> None:
    items = index.val[:3]
    results = []
    for processes, order in ((0, items), (2, items[::-1])):
        with Scorer(model, settings(index), index.masks, CPU, processes, keep_masks=True) as scorer:
            results.append({s.image: (s.counts, s.masks) for s in scorer.scores(order)})
    assert results[0] == results[1] and set(results[0][items[0].name][0]) == set(NAMES)
    maps = scorer.maps(items[0])
    label = label_map(maps, "ms", settings(index)[0].config, read_rgb(items[0].image))
    truth = read_mask(index.masks[items[0].name], len(index.classes))
    by_hand: dict[tuple[int, int], int] = {}
    for t, p in zip(truth.flatten().tolist(), label.flatten().tolist(), strict=True):
        if t != 255:
            by_hand[t, p] = by_hand.get((t, p), 0) + 1
    assert {(t, p): n for t, p, n in results[0][items[0].name][0]["ms"]} == by_hand


@pytest.mark.parametrize("style", ["voc", "coco"])
def test_multi_scale_as_written_out(style: str) -> None:
    generator = torch.Generator().manual_seed(0)
    pairs = [
        (torch.randn(1, 3, n, n, generator=generator), torch.randn(1, 3, n, n, generator=generator)) for n in (4, 5)
    ]

    def up(x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.interpolate(x, size=(9, 7), mode="bilinear", align_corners=False)

    scales = [(up(a), up(b).flip(-1)) for a, b in pairs]
    if style == "voc":
        expected = torch.stack([a + b for a, b in scales]).amax(0)
    else:
        expected = sum(torch.stack([a, b]).amax(0) for a, b in scales)
    torch.testing.assert_close(combined_logits(pairs, (9, 7), style), expected)


def test_maps_survive_a_file(model: MCCNet, index: DataIndex, tmp_path: Path) -> None:
    item = next(i for i in index.val if i.labels)
    image, config = read_rgb(item.image), EvaluationConfig.of(EXPERIMENT, len(index.classes))
    maps = network_maps(model, image, item.labels, NAMES, config, CPU)  # type: ignore[arg-type]
    np.savez(tmp_path / "maps.npz", **maps.arrays("float32"))
    with np.load(tmp_path / "maps.npz") as archive:
        again = Maps.of_arrays(dict(archive))
    for name in NAMES:
        assert np.array_equal(label_map(maps, name, config, image), label_map(again, name, config, image))  # type: ignore[arg-type]
