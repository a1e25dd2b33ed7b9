"""The losses of ToCo, when each counts, and what moves beside the weights."""

from __future__ import annotations

import math
from typing import Any, cast

import pytest
import torch
from batches import three_views
from hypothesis import given, settings
from hypothesis import strategies as st

from mcc_core.errors import UsageError
from mcc_core.experiment_files import resolve
from mcc_core.losses import terms as losses
from mcc_core.methods.registry import METHODS
from mcc_core.methods.toco.config import Experiment
from mcc_core.methods.toco.network import ToCoNet
from mcc_core.methods.toco.objective import Batch, ToCoObjective, ToCoStep
from mcc_core.pseudo_labels.labels import IGNORE, refined_label

SIZE, CLASSES = 32, 80
SMALL: dict[str, Any] = {
    "model.weights": "random",
    "model.backbone": "deit_tiny_patch16_224",
    "model.backbone_args": {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 2},
    "model.aux_block": 2,
    "model.decoder_channels": 8,
    "model.projector.hidden": 16,
    "model.projector.bottleneck": 8,
    "model.projector.out": 8,
    "crops.size": 16,
    "crops.views": 4,
    "train.crop": SIZE,
    "par.dilations": [1, 2],
}


def built(preset: str, **overrides: Any) -> tuple[ToCoNet, Experiment]:
    experiment = cast(Experiment, resolve(preset, SMALL | overrides))
    torch.manual_seed(0)
    return ToCoNet(experiment.model, CLASSES), experiment


def batch_of(images: int = 2) -> Batch:
    generator = torch.Generator().manual_seed(5)
    views = torch.randn(3, images, 3, SIZE, SIZE, generator=generator)
    labels = torch.zeros(images, CLASSES)
    labels[:, 3] = labels[0, 71] = 1
    boxes = torch.tensor([[0, SIZE, 4, SIZE]] * images)
    return three_views(views[0], views[1], views[2], labels, boxes)


def step(model: ToCoNet, experiment: Experiment, iteration: int, **options: Any) -> ToCoStep:
    generator = torch.Generator().manual_seed(0)
    draws = METHODS["toco"].draws(experiment, model, 2, (SIZE, SIZE), iteration, generator)
    return ToCoObjective(model, experiment)(batch_of(), draws, iteration, **options)


def test_published_recipes() -> None:
    voc, coco = (cast(Experiment, resolve(name)) for name in ("toco", "toco-coco"))
    for e in (voc, coco):
        assert (e.loss.cls, e.loss.cls_aux, e.loss.ptc, e.loss.ctc, e.loss.seg, e.loss.reg) == (
            1,
            1,
            0.2,
            0.5,
            0.1,
            0.05,
        )
        assert (e.crops.size, e.crops.views, e.thresholds.positiveness) == (96, 8, 0.2)
        assert (e.contrast.momentum, e.thresholds.background, e.train.crop) == (0.9, 0.25, 448)
    assert (voc.thresholds.foreground, voc.thresholds.score, voc.contrast.temperature) == (0.7, 0.5, 0.5)
    assert (coco.thresholds.foreground, coco.thresholds.score, coco.contrast.temperature) == (0.65, 0.45, 1.0)
    assert (voc.train.iterations, voc.train.global_batch) == (20_000, 4)
    assert (coco.train.iterations, coco.train.global_batch) == (80_000, 8)


FIRST, SEGMENTATION, CONTRAST = {"cls", "cls_aux"}, {"seg", "reg"}, {"ptc", "ctc"}


@pytest.mark.parametrize(
    ("preset", "iteration", "terms"),
    [
        ("toco", 0, FIRST | CONTRAST),
        ("toco", 2000, FIRST | CONTRAST),
        ("toco", 2001, FIRST | CONTRAST | SEGMENTATION),
        ("toco-coco", 0, FIRST),
        ("toco-coco", 8000, FIRST),
        ("toco-coco", 8001, FIRST | SEGMENTATION),
        ("toco-coco", 12_000, FIRST | SEGMENTATION),
        ("toco-coco", 12_001, FIRST | SEGMENTATION | CONTRAST),
    ],
)
def test_each_stage_has_its_terms(preset: str, iteration: int, terms: set[str]) -> None:
    model, experiment = built(preset)
    found = step(model, experiment, iteration)
    assert set(found.terms) == terms
    weights = ToCoObjective(model, experiment).weights(iteration)
    total = sum(weights[name] * float(term.detach()) for name, term in found.terms.items())
    assert float(found.total.detach()) == pytest.approx(total, rel=1e-6)
    found.total.backward()
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert all(model.get_parameter(name).grad is not None for name in trained)  # zero where no term reaches
    still = {name.split(".")[0] for name in trained if not model.get_parameter(name).grad.any()}  # type: ignore[union-attr]
    assert ("decoder" in still) == (not terms & SEGMENTATION)
    assert ("projector" in still) == (not terms & CONTRAST)


@pytest.mark.parametrize(
    ("preset", "iteration", "source"),
    [("toco", 2001, 0), ("toco-coco", 8001, 1), ("toco-coco", 12_000, 1), ("toco-coco", 12_001, 0)],
)
def test_pseudo_labels_read_the_maps_of_their_stage(preset: str, iteration: int, source: int) -> None:
    model, experiment = built(preset)
    batch, found = batch_of(), step(model, experiment, iteration, all_classes=True)
    thresholds = experiment.thresholds
    expected = [
        refined_label(
            batch["view1"],
            cam * batch["labels"][:, :, None, None],
            batch["labels"],
            batch["box"],
            cast(float, thresholds.background),
            cast(float, thresholds.foreground),
            experiment.par,
        )
        for cam in found.cams
    ]
    assert not torch.equal(*expected)
    assert found.refined is not None and torch.equal(found.refined, expected[source])


def test_maps_of_absent_classes_do_not_matter() -> None:
    model, experiment = built("toco")
    a, b = (step(model, experiment, 5000, all_classes=flag) for flag in (True, False))
    torch.testing.assert_close(a.total, b.total)
    assert len(b.classes) == 2 and a.cams[0].shape[1] == CLASSES


@pytest.mark.parametrize("iteration", [0, 13_000])
def test_the_momentum_projector_moves_once_a_step_in_every_stage(iteration: int) -> None:
    model, experiment = built("toco-coco")
    with torch.no_grad():
        for parameter in model.projector.parameters():
            parameter.add_(1)
    before = {name: p.clone() for name, p in model.momentum_projector.named_parameters()}
    step(model, experiment, iteration, first=False)
    assert all(torch.equal(p, before[name]) for name, p in model.momentum_projector.named_parameters())
    step(model, experiment, iteration, first=True)
    for name, moved in model.momentum_projector.named_parameters():
        expected = 0.9 * before[name] + 0.1 * model.projector.get_parameter(name)
        torch.testing.assert_close(moved, expected)


def test_without_class_token_contrast_its_projector_rests() -> None:
    model, experiment = built("toco", **{"loss.ctc": 0})
    found = step(model, experiment, 5000)
    assert "ctc" not in found.terms and found.contrast is None
    assert not any(p.requires_grad for p in model.projector.parameters())


def test_draws_are_the_generators(monkeypatch: pytest.MonkeyPatch) -> None:
    model, experiment = built("toco")
    first, again, other = (
        METHODS["toco"].draws(experiment, model, 2, (SIZE, SIZE), 0, torch.Generator().manual_seed(seed))["priority"]
        for seed in (1, 1, 2)
    )
    assert first.shape == (2, 16, 16) and torch.equal(first, again) and not torch.equal(first, other)


def test_crops_smaller_than_a_patch_are_refused() -> None:
    experiment = resolve("toco", SMALL | {"crops.size": 7})
    with pytest.raises(UsageError, match=r"crops.size: 7: must be at least a patch of deit_tiny_patch16_224, 8 pixels"):
        METHODS["toco"].network(experiment, 4)


# --- the losses themselves ---


@settings(max_examples=30, deadline=None)
@given(st.lists(st.sampled_from([0, 1, 2, IGNORE]), min_size=6, max_size=6))
def test_patch_token_contrast_of_identical_features(tokens: list[int]) -> None:
    features = torch.randn(1, 5, 1, 1).double().expand(1, 5, 2, 3)
    known = [t for t in tokens if t != IGNORE]
    pairs = [(a == b) for i, a in enumerate(known) for j, b in enumerate(known) if i != j]
    same, unlike = sum(pairs), len(pairs) - sum(pairs)
    expected = 0.5 * (1 - same / (same + 1)) + 0.5 * unlike / (unlike + 1)
    assert float(losses.affinity(features, torch.tensor(tokens).view(1, 2, 3))) == pytest.approx(expected)


def test_class_token_contrast_without_negatives() -> None:
    """Each positive gives log(1 + epsilon / e^score), the published extra term log(1 + epsilon)."""
    generator = torch.Generator().manual_seed(1)
    queries, keys = torch.randn(4, 8, generator=generator), torch.randn(10, 8, generator=generator)
    flags, epsilon = torch.ones(2, 5), 1e-4
    found = float(losses.contrast(queries.double(), keys.double(), flags.double(), 1.0, epsilon, True))
    expected = 0.0
    for image in range(2):
        for view in range(2):
            scores = [float(queries[2 * view + image] @ keys[2 * key + image]) for key in range(5)]
            expected += sum(-math.log(math.exp(s) / (math.exp(s) + epsilon)) for s in scores)
            expected += -math.log(1 / (1 + epsilon))
    assert found == pytest.approx(expected / 2 / (5 + epsilon) / 2, rel=1e-5)


# --- mistakes ---


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ({"crops.size": 448}, "crops.size (448) leaves no 8 places for local crops in train.crop (448)"),
        ({"crops.size": 446, "crops.views": 5}, "crops.size (446) leaves no 5 places"),
        ({"mask.ratio": 0.5}, "toco with --set: mask: unknown field"),
        ({"loss.mcc": 0.5}, "loss.mcc: unknown field"),
        ({"thresholds.background": 0.8}, "thresholds.background (0.8) must be below thresholds.foreground (0.7)"),
    ],
)
def test_mistakes_are_one_line(override: dict[str, Any], expected: str) -> None:
    with pytest.raises(UsageError) as caught:
        resolve("toco", override)
    assert expected in str(caught.value) and "\n" not in str(caught.value)
