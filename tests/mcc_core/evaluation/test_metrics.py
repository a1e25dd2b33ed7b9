"""Confusion matrices against counting pixel by pixel, and the names of metrics."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mcc_core.evaluation.metrics import ConfusionMatrix, Metric, f1_counts, f1_score


def _maps(seed: int, labels: int, pixels: int) -> tuple[Tensor, Tensor]:
    rng = np.random.default_rng(seed)
    prediction = rng.integers(0, labels, (pixels, 3), dtype=np.uint8)
    target = rng.integers(0, labels, (pixels, 3), dtype=np.uint8)
    target[rng.random((pixels, 3)) < 0.2] = 255
    return torch.from_numpy(prediction), torch.from_numpy(target)


def _matrix(labels: int, *pairs: tuple[Tensor, Tensor]) -> ConfusionMatrix:
    matrix = ConfusionMatrix(labels)
    for prediction, target in pairs:
        matrix.update(prediction, target)
    return matrix


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 1000), labels=st.integers(2, 6), pixels=st.integers(1, 20))
def test_against_counting_pixel_by_pixel(seed: int, labels: int, pixels: int) -> None:
    prediction, target = _maps(seed, labels, pixels)
    matrix = _matrix(labels, (prediction, target))
    pairs = [(int(t), int(p)) for t, p in zip(target.flatten(), prediction.flatten(), strict=True) if t != 255]
    ious = []
    for label in range(labels):
        hit = sum(t == p == label for t, p in pairs)
        union = sum(label in (t, p) for t, p in pairs)
        iou = float(matrix.iou()[label])
        assert math.isnan(iou) if union == 0 else iou == pytest.approx(hit / union)
        ious += [hit / union] if union else []
    assert int(matrix.counts.sum()) == len(pairs)
    if pairs:
        assert matrix.miou() == pytest.approx(sum(ious) / len(ious))
        assert matrix.pixel_accuracy() == pytest.approx(sum(t == p for t, p in pairs) / len(pairs))


@settings(max_examples=40, deadline=None)
@given(seeds=st.lists(st.integers(0, 1000), min_size=3, max_size=3), labels=st.integers(2, 5))
def test_merging_is_exact_in_any_order(seeds: list[int], labels: int) -> None:
    parts = [_maps(seed, labels, 10) for seed in seeds]
    whole = _matrix(labels, *parts)
    for order in ((0, 1, 2), (2, 0, 1)):
        a, b, c = (_matrix(labels, parts[i]) for i in order)
        a.merge(b)
        a.merge(c)
        assert torch.equal(a.counts, whole.counts)
    b, c, a = (_matrix(labels, parts[i]) for i in (1, 2, 0))
    b.merge(c)
    a.merge(b)
    assert torch.equal(a.counts, whole.counts)


def test_a_label_that_never_occurs_does_not_count() -> None:
    target = torch.tensor([[0, 0, 1, 1]])
    matrix = _matrix(4, (torch.tensor([[0, 0, 1, 0]]), target))
    assert matrix.iou()[:2].tolist() == pytest.approx([2 / 3, 1 / 2])
    assert matrix.iou()[2:].isnan().all()
    assert matrix.miou() == pytest.approx((2 / 3 + 1 / 2) / 2)
    matrix.update(torch.tensor([3]), torch.tensor([0]))  # predicted though absent: IoU 0, and it counts
    assert matrix.iou()[3] == 0
    assert matrix.miou() == pytest.approx((2 / 4 + 1 / 2 + 0) / 3)


def test_nothing_counted_is_not_a_number() -> None:
    matrix = _matrix(3, (torch.zeros(2, 2, dtype=torch.long), torch.full((2, 2), 255)))
    assert math.isnan(matrix.miou()) and math.isnan(matrix.pixel_accuracy())


def test_large_counts_stay_exact() -> None:
    matrix = ConfusionMatrix(2)
    matrix.counts[0, 0] = 2**53
    matrix.update(torch.tensor([0, 1]), torch.tensor([0, 0]))
    assert matrix.counts[0].tolist() == [2**53 + 1, 1]


def test_own_ignore_label() -> None:
    matrix = ConfusionMatrix(3)
    matrix.update(torch.tensor([0, 1, 2]), torch.tensor([0, 2, 2]), ignore=0)
    assert matrix.counts.tolist() == [[0, 0, 0], [0, 0, 0], [0, 1, 1]]


@pytest.mark.parametrize(
    ("prediction", "target", "said"),
    [
        ([3, 0], [0, 0], "prediction: labels 0..3, not 0..2"),  # would count as (1, 0)
        ([0, -1], [0, 1], "prediction: labels -1..0"),
        ([0, 0], [0, 3], "target: labels 0..3"),
        ([0, 0, 0], [0, 0], "prediction is"),
    ],
)
def test_labels_that_would_be_counted_as_others_are_refused(
    prediction: list[int], target: list[int], said: str
) -> None:
    matrix = ConfusionMatrix(3)
    with pytest.raises(ValueError, match=said):
        matrix.update(torch.tensor(prediction), torch.tensor(target))
    assert not matrix.counts.any()


def test_key_says_split_stage_protocol_and_name() -> None:
    assert Metric("val", "seg", "single", "miou", 0.5).key == "val/seg/single/miou"
    assert Metric("val", "cam", "ms", "iou/cat", 0.5).key == "val/cam/ms/iou/cat"


def test_f1_against_its_definition() -> None:
    truth = torch.tensor([[1, 0, 1], [0, 1, 0]]).bool()
    guess = torch.tensor([[1, 1, 0], [0, 1, 0]]).bool()
    counts = f1_counts(guess, truth)
    assert counts.tolist() == [[1, 1, 0], [0, 1, 0], [0, 0, 1]]
    precision, recall = 2 / 3, 2 / 3
    assert f1_score(counts) == pytest.approx(2 * precision * recall / (precision + recall))
    assert f1_score(f1_counts(truth, truth)) == 1
    assert f1_score(f1_counts(~truth, truth)) == 0
    assert f1_score(torch.zeros(3, 4, dtype=torch.long)) == 0


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 1000), labels=st.integers(2, 5))
def test_counting_on_a_device_is_that_on_the_host(seed: int, labels: int) -> None:
    prediction, target = _maps(seed, labels, 20)
    there = ConfusionMatrix(labels)
    there._count_there(prediction, target, 255)  # which no device of this machine would call
    there._count_there(prediction, target, 255)
    assert torch.equal(there.counts, 2 * _matrix(labels, (prediction, target)).counts)
    there._count_there(torch.full_like(prediction, labels), torch.zeros_like(target), 255)
    with pytest.raises(ValueError, match=rf"60 pixels have labels that are not 0..{labels - 1}"):
        _ = there.counts
