"""The named options: what the text says instead of the published code, against the formulas written out."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from batches import three_views
from experiments import mcc_experiment
from hypothesis import given, settings
from hypothesis import strategies as st

from mcc_core.errors import UsageError
from mcc_core.experiment_files import merge
from mcc_core.losses import terms as losses
from mcc_core.methods.mcc.config import BUNDLES, Experiment
from mcc_core.methods.mcc.masking import activation_levels, positiveness
from mcc_core.methods.mcc.network import MCCNet
from mcc_core.methods.mcc.objective import MCCObjective
from mcc_core.pseudo_labels.labels import IGNORE, cam_label, token_label
from mcc_core.validation import flatten, validate

SMALL: dict[str, Any] = {
    "model.backbone_args": {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 2},
    "model.aux_block": 2,
    "train.crop": 32,
    "par.dilations": [1, 2],
}


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), kinds=st.integers(1, 4))
def test_affinity_as_equation_9(seed: int, kinds: int) -> None:
    features = torch.randn(2, 5, 3, 3, dtype=torch.float64, generator=seeded(seed))
    labels = torch.randint(kinds, (2, 3, 3), generator=seeded(seed + 1))
    labels[torch.rand(labels.shape, generator=seeded(seed + 2)) < 0.2] = IGNORE
    same: list[float] = []
    different: list[float] = []
    for image, label in zip(features.flatten(2), labels.flatten(1).tolist(), strict=True):
        for i in range(9):
            for j in range(9):
                if i != j and label[i] != IGNORE and label[j] != IGNORE:
                    a, b = image[:, i], image[:, j]
                    cosine = float(a @ b / a.norm() / b.norm())
                    (same if label[i] == label[j] else different).append(cosine)
    mean = lambda values: sum(values) / len(values) if values else 0.0  # noqa: E731
    expected = mean([1 - c for c in same]) + mean(different)
    assert float(losses.affinity(features, labels, "equation")) == pytest.approx(expected, abs=1e-12)
    half = 0.5 * (1 - sum(map(abs, same)) / (len(same) + 1)) + 0.5 * sum(map(abs, different)) / (len(different) + 1)
    assert float(losses.affinity(features, labels)) == pytest.approx(half, abs=1e-12)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), views=st.integers(1, 4), positive=st.integers(0, 4))
def test_contrast_as_equation_7(seed: int, views: int, positive: int) -> None:
    """One query, local keys only; the published epsilon in the count of positives stays."""
    positive = min(positive, views)
    q, k = (torch.randn(n, 6, dtype=torch.float64, generator=seeded(seed + n)) for n in (1, views))
    flags = torch.tensor([[1.0] * positive + [0.0] * (views - positive)], dtype=torch.float64)
    tau, epsilon = 0.5, 1e-4
    e = [math.exp(float(q[0] @ key) / tau) for key in k]
    negatives = sum(e[positive:])
    terms = [-math.log(p / (p + negatives + epsilon)) for p in e[:positive]]
    expected = sum(terms) / (positive + epsilon)
    found = losses.contrast(q, k, flags, tau, epsilon, empty_term=False)
    assert float(found) == pytest.approx(expected, rel=1e-9, abs=1e-12)
    extra = (sum(terms) + math.log(1 + negatives + epsilon)) / (positive + epsilon)
    assert float(losses.contrast(q, k, flags, tau, epsilon, empty_term=True)) == pytest.approx(extra, rel=1e-9)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), ignored=st.floats(0, 1))
def test_segmentation_forms(seed: int, ignored: float) -> None:
    logits = torch.randn(2, 4, 5, 5, dtype=torch.float64, generator=seeded(seed))
    labels = torch.randint(4, (2, 5, 5), generator=seeded(seed + 1))
    labels[torch.rand(labels.shape, generator=seeded(seed + 2)) < ignored] = IGNORE
    by_kind: dict[bool, list[float]] = {True: [], False: []}
    for image, label in zip(logits, labels, strict=True):
        for y in range(5):
            for x in range(5):
                if (c := int(label[y, x])) != IGNORE:
                    scores = image[:, y, x]
                    by_kind[c == 0].append(float(scores.logsumexp(0) - scores[c]))
    every = by_kind[True] + by_kind[False]
    halves = sum(sum(v) / len(v) for v in by_kind.values() if v) / 2
    assert float(losses.segmentation(logits, labels)) == pytest.approx(halves, abs=1e-12)
    mean = sum(every) / len(every) if every else 0.0
    assert float(losses.segmentation(logits, labels, "mean")) == pytest.approx(mean, abs=1e-12)


def test_equality_with_a_threshold() -> None:
    cam = torch.tensor([[[[0.25, 0.7, 0.71, 0.5]]]])
    assert cam_label(cam, 0.25, 0.7).tolist() == [[[0, IGNORE, 1, IGNORE]]]
    assert cam_label(cam, 0.25, 0.7, inclusive=True).tolist() == [[[0, 1, 1, IGNORE]]]


def test_positiveness_from_levels_and_from_labels() -> None:
    cam = torch.zeros(1, 2, 1, 4)
    cam[0, 1, 0] = torch.tensor([0.9, 0.5, 0.1, 0.0])
    assert activation_levels(cam, (1, 4), 0.25, 0.7, "bilinear").tolist() == [[[2, 1, 0, 0]]]
    assert token_label(cam, (1, 4), 0.25, 0.7).tolist() == [[[2, IGNORE, 0, 0]]]
    masks = torch.tensor([[[[1, 0, 0, 0]], [[0, 0, 0, 0]]]])
    level = torch.tensor([[[2.0, 1.0, 0.0, 0.0]]])
    assert positiveness(level, masks, 0.5, 0).tolist() == [[0, 1]]  # means 1/3 and 3/4


def test_paper_bundle_changes_the_step_as_it_says() -> None:
    """Text: one query, local keys, one linear projection; no second global view is encoded."""
    experiment = mcc_experiment("tiny", SMALL | {"compat": "paper"})
    model = MCCNet(experiment.model, 4)
    assert isinstance(model.projector.last, torch.nn.Linear) and model.projector.mlp is None
    images = torch.randn(3, 2, 3, 32, 32, generator=seeded(0))
    labels = torch.tensor([[1.0, 0, 0, 0], [0, 1, 1, 0]])
    batch = three_views(images[0], images[1], images[2], labels, torch.tensor([[0, 32, 0, 32]] * 2))
    masks = torch.zeros(2, 3, 4, 4, dtype=torch.uint8)
    masks[:, 0, :2] = 1
    step = MCCObjective(model, experiment)(batch, {"masks": masks}, 1)
    assert step.contrast is not None and step.output.other_cls is None
    assert [len(step.contrast.queries), len(step.contrast.keys)] == [2, 6]
    assert step.contrast.flags.shape == (2, 3)
    assert {"seg", "reg"} <= set(step.terms)  # from the first iterations on
    step.total.backward()
    assert all(p.grad is not None for p in model.projector.parameters())


def test_bundle_lies_over_the_preset_and_under_what_is_set() -> None:
    published, paper = mcc_experiment("coco"), mcc_experiment("coco", {"compat": "paper"})
    assert (published.loss.seg_start, paper.loss.seg_start) == (8000, 0)
    assert paper.thresholds.foreground == published.thresholds.foreground == 0.65
    mixed = mcc_experiment("coco", {"loss.seg_start": 500, "compat": "paper"})
    assert mixed.loss.seg_start == 500 and mixed.loss.aff_form == "equation"
    inside = validate(Experiment, {"compat": "paper", "loss": {"seg_form": "halves"}}, "file")
    assert inside.loss.seg_form == "halves" and inside.loss.aff_form == "equation"
    assert Experiment.model_validate(paper.model_dump()) == paper
    with pytest.raises(UsageError, match="compat: 'text'"):
        mcc_experiment("voc", {"compat": "text"})
    with pytest.raises(UsageError, match="loss"):
        validate(Experiment, {"compat": "paper", "loss": 3}, "file")


@pytest.mark.parametrize("key", BUNDLES["paper"])
def test_every_bundled_field_exists_and_differs_from_the_default(key: str) -> None:
    text = str(BUNDLES["paper"][key])
    default = flatten(mcc_experiment("voc"))[key]
    assert default != text and flatten(mcc_experiment("voc", {key: BUNDLES["paper"][key]}))[key] == text
    assert merge({}, {"compat": "paper"}, "")["compat"] == "paper"


def test_the_bundle_is_its_values(tmp_path: Any) -> None:
    from orchestrator.planning.identity import trial_identity

    named = mcc_experiment("tiny", {"compat": "paper"})
    spelled = mcc_experiment("tiny", BUNDLES["paper"])
    assert trial_identity(named, 0, "data") == trial_identity(spelled, 0, "data")
    assert trial_identity(named, 0, "data") != trial_identity(mcc_experiment("tiny"), 0, "data")
