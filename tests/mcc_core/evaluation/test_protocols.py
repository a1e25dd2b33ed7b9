"""Evaluation protocols and scoring: held against the in-training evaluation and a count by hand."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from experiments import mcc_experiment
from PIL import Image
from small import SMALL

from mcc_core.config import EvaluationConfig
from mcc_core.data.colours import normalise
from mcc_core.data.index import DataIndex, build_index
from mcc_core.data.pixels import read_mask, read_rgb
from mcc_core.errors import UsageError
from mcc_core.evaluation.in_training import evaluate
from mcc_core.evaluation.protocols import Maps, combined_logits, label_map, network_maps, squashed_cam
from mcc_core.evaluation.scoring import Scorer, Setting, metrics, totals
from mcc_core.methods.mcc.network import MCCNet
from mcc_core.methods.registry import method_of
from mcc_core.pseudo_labels.labels import IGNORE, refined_label

CPU = torch.device("cpu")
EXPERIMENT = mcc_experiment("tiny", SMALL)
NAMES = ("cam", "aux_cam", "single", "ms", "ms_crf", "cam_crf", "refined")


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
    config = method_of(EXPERIMENT).evaluation(EXPERIMENT, len(index.classes))
    return [Setting(name, name, config) for name in NAMES]  # type: ignore[arg-type]


def test_cam_and_single_are_the_in_training_scores(model: MCCNet, index: DataIndex) -> None:
    with Scorer(model, settings(index)[:3], index.masks, CPU) as scorer:
        counts = [score.counts for score in scorer.scores(index.val)]
    found = totals(counts, len(index.classes) + 1)
    expected = {m.key: m.value for m in evaluate(model, index, EXPERIMENT, CPU, 6).metrics}
    model.eval()
    assert found["single"].matrix.miou() == pytest.approx(expected["val/seg/single/miou"], abs=1e-4)
    assert found["cam"].matrix.miou() == pytest.approx(expected["val/cam/ms/miou"], abs=1e-3)
    assert found["aux_cam"].matrix.miou() == pytest.approx(expected["val/aux_cam/ms/miou"], abs=1e-3)


def test_a_square_below_a_patch_is_refused(index: DataIndex) -> None:
    args = {"patch_size": 32, "embed_dim": 32, "depth": 1, "num_heads": 2}
    network = MCCNet(
        mcc_experiment("tiny", {"model.backbone_args": args, "model.aux_block": 1}).model, len(index.classes)
    )
    setting = Setting("single", "single", EvaluationConfig(crop=16))
    with pytest.raises(UsageError, match=r"evaluation.crop: 16: below the network's patch of 32"):
        Scorer(network, [setting], index.masks, CPU)


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
        expected = torch.stack([torch.stack([a, b]).amax(0) for a, b in scales]).sum(0)
    torch.testing.assert_close(combined_logits(pairs, (9, 7), style), expected)


def test_maps_survive_a_file(model: MCCNet, index: DataIndex, tmp_path: Path) -> None:
    item = next(i for i in index.val if i.labels)
    image, config = read_rgb(item.image), method_of(EXPERIMENT).evaluation(EXPERIMENT, len(index.classes))
    maps = network_maps(model, image, item.labels, NAMES, config, CPU)  # type: ignore[arg-type]
    np.savez(tmp_path / "maps.npz", **maps.arrays("float32"))  # type: ignore[arg-type]
    with np.load(tmp_path / "maps.npz") as archive:
        again = Maps.of_arrays(dict(archive))
    for name in NAMES:
        assert np.array_equal(label_map(maps, name, config, image), label_map(again, name, config, image))  # type: ignore[arg-type]


def test_refined_is_what_trains_the_segmentation(model: MCCNet, index: DataIndex) -> None:
    """At the crop's own size: the label that the objective makes of the same CAM."""
    item = next(i for i in index.val if i.labels)
    image = read_rgb(item.image)
    config = (
        method_of(EXPERIMENT)
        .evaluation(EXPERIMENT, len(index.classes))
        .model_copy(update={"crop": image.shape[0], "background": 0.4, "foreground": 0.6})
    )
    assert image.shape[0] == image.shape[1]
    maps = network_maps(model, image, item.labels, ["refined"], config, CPU)
    label = label_map(maps, "refined", config, image)
    pixels = torch.from_numpy(image).permute(2, 0, 1)
    cam = torch.zeros(1, len(index.classes), *image.shape[:2])
    cam[:, list(item.labels)] = squashed_cam(maps, "cam", config)
    present = torch.zeros(1, len(index.classes))
    present[:, list(item.labels)] = 1
    box = torch.tensor([[0, image.shape[0], 0, image.shape[1]]])
    expected = refined_label(normalise(pixels)[None], cam, present, box, 0.4, 0.6, EXPERIMENT.par)[0].numpy()
    assert np.array_equal(label, expected)
    assert IGNORE in np.unique(label) and len(np.unique(label)) >= 2


def test_pixels_left_open_are_not_scored_but_told(model: MCCNet, index: DataIndex) -> None:
    chosen = settings(index)[-1]
    with Scorer(model, [chosen], index.masks, CPU, keep_masks=True) as scorer:
        scores = list(scorer.scores(index.val))
    total = totals((s.counts for s in scores), len(index.classes) + 1)["refined"]
    found = {m.name: m.value for m in metrics(total, "val", "refined", index.classes)}
    known = decided = 0
    for item, score in zip(index.val, scores, strict=True):
        truth = read_mask(index.masks[item.name], len(index.classes))
        label = np.asarray(Image.open(io.BytesIO(score.masks["refined"])))
        known += (truth != 255).sum()
        decided += ((truth != 255) & (label != 255)).sum()
    assert found["coverage"] == pytest.approx(decided / known)
