"""Formulas of SLRNet against loops in double precision."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mcc_core.config import PamrConfig
from mcc_core.methods.slrnet.config import ScoreConfig
from mcc_core.methods.slrnet.layers import CueInjection, Factorisation, StochasticGate, factorise, first_dictionary
from mcc_core.methods.slrnet.losses import (
    balanced_cross_entropy,
    class_score,
    classification,
    code_difference,
    mask_difference,
)
from mcc_core.pseudo_labels.labels import IGNORE
from mcc_core.pseudo_labels.pamr import refine_masks, thresholded


def randn(*size: int, seed: int = 0) -> Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_factorisation_step() -> None:
    tokens, atoms = randn(2, 7, 4), randn(2, 3, 4, seed=1)
    code, dictionary = factorise(tokens, atoms, iterations=1, temperature=0.7)
    for b in range(2):
        unit = [atom / (atom.norm() + 1e-6) for atom in atoms[b]]
        for n in range(7):
            scores = torch.stack([(atom @ tokens[b, n] / 0.7).exp() for atom in unit])
            torch.testing.assert_close(code[b, :, n], scores / scores.sum())
        for k in range(3):
            shares = code[b, k] + 1e-6
            mean = sum(share * token for share, token in zip(shares / shares.sum(), tokens[b], strict=True))
            assert isinstance(mean, Tensor)
            torch.testing.assert_close(dictionary[b, k], mean / (mean.norm() + 1e-6))


def test_more_iterations_go_on_from_the_dictionary() -> None:
    tokens, atoms = randn(1, 9, 4), randn(1, 3, 4, seed=1)
    once, dictionary = factorise(tokens, atoms, 1, 1.0)
    twice, _ = factorise(tokens, atoms, 2, 1.0)
    torch.testing.assert_close(twice, factorise(tokens, dictionary, 1, 1.0)[0], rtol=1e-5, atol=1e-7)
    assert not torch.allclose(once, twice)


def test_gradients_of_the_low_rank_module() -> None:
    module = Factorisation(4, iterations=1, temperature=1.0).double()
    tokens, atoms = randn(1, 5, 4).requires_grad_(), randn(1, 3, 4, seed=1)
    assert torch.autograd.gradcheck(lambda x: module(x, atoms), tokens)


def test_low_rank_features_are_added() -> None:
    module = Factorisation(4, iterations=1, temperature=1.0).double()
    tokens, atoms = randn(1, 5, 4), randn(1, 3, 4, seed=1)
    out, code = module(tokens, atoms)
    expected_code, dictionary = factorise(module.before(tokens), module.before(atoms), 1, 1.0)
    torch.testing.assert_close(code, expected_code)
    expected = F.relu(tokens + module.after(F.relu(code.transpose(1, 2) @ dictionary)))
    torch.testing.assert_close(out, expected)


def test_first_dictionary_is_class_means_without_gradient() -> None:
    features, logits = randn(1, 4, 2, 3).requires_grad_(), randn(1, 3, 2, 3, seed=1).requires_grad_()
    dictionary = first_dictionary(features, logits)
    share = logits.softmax(1).flatten(2)[0]
    expected = torch.stack([(row / row.sum() * features[0].flatten(1)).sum(1) for row in share])
    torch.testing.assert_close(dictionary[0], expected, rtol=1e-5, atol=1e-6)
    assert not dictionary.requires_grad


def test_class_score() -> None:
    logits = randn(2, 3, 4, 5)
    got = class_score(logits, ScoreConfig())
    mask = logits.softmax(1)
    for b in range(2):
        for c in (1, 2):
            m, x = mask[b, c].flatten().tolist(), logits[b, c].flatten().tolist()
            mean = sum(m) / len(m)
            pooled = sum(a * v for a, v in zip(m, x, strict=True)) / (1 + sum(m))
            assert got[b, c - 1].item() == pytest.approx(pooled + (1 - mean) ** 3 * math.log(0.01 + mean))
    assert torch.autograd.gradcheck(lambda x: class_score(x, ScoreConfig()), logits.requires_grad_())


def test_mask_difference_counts_classes_of_the_image_alone() -> None:
    one, two = randn(2, 4, 3, 3), randn(2, 4, 3, 3, seed=1)
    labels = torch.tensor([[1.0, 0, 1], [0, 0, 0]], dtype=torch.float64)
    expected = ((one[0, 1] - two[0, 1]).abs().sum() + (one[0, 3] - two[0, 3]).abs().sum()) / (2 * 3 * 9)
    torch.testing.assert_close(mask_difference(one, two, labels), expected)
    assert torch.autograd.gradcheck(lambda x: mask_difference(x, two, labels), one.requires_grad_())


def test_code_difference_keeps_the_largest_atom() -> None:
    one = torch.tensor([0.2, 0.7, 0.1], dtype=torch.float64).view(1, 3, 1, 1)
    two = torch.tensor([0.6, 0.3, 0.1], dtype=torch.float64).view(1, 3, 1, 1)
    assert code_difference(one, two).item() == pytest.approx((0.6 + 0.7 + 0) / 3)
    codes = randn(1, 3, 4, 4).softmax(1).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: code_difference(x, two.expand(1, 3, 4, 4)), codes)


def test_pamr_against_a_loop() -> None:
    image, masks, dilations = randn(1, 3, 6, 5).sigmoid(), randn(1, 2, 6, 5, seed=1).sigmoid(), (1, 2)
    expected = masks[0].clone()

    def at(x: Tensor, row: int, column: int) -> Tensor:
        return x[:, min(5, max(0, row)), min(4, max(0, column))]

    steps = [(d * i, d * j) for d in dilations for i in (-1, 0, 1) for j in (-1, 0, 1)]
    for _ in range(2):
        before = expected.clone()
        for r in range(6):
            for c in range(5):
                window = torch.stack([at(image[0], r + i, c + j) for i, j in steps], 1)  # 3,18 with both centres
                deviation = window.std(1)
                near = [(i, j) for i, j in steps if i or j]
                scores = torch.stack(
                    [
                        -((at(image[0], r + i, c + j) - image[0, :, r, c]).abs() / (1e-8 + 0.1 * deviation)).mean()
                        for i, j in near
                    ]
                )
                values = torch.stack([at(before, r + i, c + j) for i, j in near])
                expected[:, r, c] = (scores.softmax(0)[:, None] * values).sum(0)
    got = refine_masks(image, masks, iterations=2, dilations=dilations, spread=0.1)
    torch.testing.assert_close(got[0], expected)


def test_pseudo_label_thresholds_and_ignores() -> None:
    config = PamrConfig()
    masks = torch.zeros(1, 3, 1, 6, dtype=torch.float64)
    masks[0, 0, 0] = torch.tensor([1.0, 0.71, 0.69, 0.0, 0.8, 0.1])  # above 0.7 of its maximum: 0, 1, 4
    masks[0, 1, 0] = torch.tensor([0.0, 0.0, 0.31, 0.5, 0.4, 0.1])  # above 0.6 of 0.5: 2, 3, 4
    masks[0, 2, 0] = 0.9  # its class is absent
    label = thresholded(masks, torch.tensor([[1.0, 0.0]]), config)
    assert label[0, 0].tolist() == [0, 0, 1, 1, IGNORE, IGNORE]
    weak = thresholded(masks * torch.tensor([1, 0.38, 1]).view(1, 3, 1, 1), torch.tensor([[1.0, 0.0]]), config)
    assert (weak != 1).all()  # nothing of it is above 0.2


def test_background_may_be_where_no_class_is() -> None:
    """COCO: a class is above 0.6 of its maximum, background where none is above 0.1 of it."""
    config = PamrConfig(background_is="rest", background=0.1, least=0.0)
    masks = torch.zeros(1, 4, 1, 6, dtype=torch.float64)
    masks[0, 0, 0] = 1.0  # not looked at
    masks[0, 1, 0] = torch.tensor([0.1, 0.061, 0.06, 0.01, 0.0, 0.02])
    masks[0, 2, 0] = torch.tensor([0.0, 0.3, 0.4, 0.0, 0.039, 0.05])
    masks[0, 3, 0] = 0.9  # its class is absent
    label = thresholded(masks, torch.tensor([[1.0, 1.0, 0.0]]), config)
    assert label[0, 0].tolist() == [1, IGNORE, 2, 0, 0, IGNORE]


def test_positive_classes_weigh_what_is_said() -> None:
    scores, labels = randn(2, 3), torch.tensor([[1.0, 0, 1], [0, 0, 1]], dtype=torch.float64)
    weights = torch.tensor([0.5, 10.0, 3.0], dtype=torch.float64)
    own = -(weights * labels * scores.sigmoid().log() + (1 - labels) * (-scores).sigmoid().log()).mean()
    torch.testing.assert_close(classification(scores, labels, weights), own)
    margin = torch.nn.functional.multilabel_soft_margin_loss(scores, labels)
    torch.testing.assert_close(classification(scores, labels, None), margin)


def test_balanced_cross_entropy() -> None:
    logits, label = randn(1, 3, 2, 3), torch.tensor([[[0, 0, 0], [1, 1, IGNORE]]])
    labels = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    per_pixel = -logits[0].log_softmax(0)
    share = {0: (5 - 3) / 6, 1: (5 - 2) / 6}
    places = [(r, c, int(label[0, r, c])) for r in range(2) for c in range(3) if label[0, r, c] != IGNORE]
    expected = sum(share[k] * per_pixel[k, r, c] for r, c, k in places) / 6
    assert isinstance(expected, Tensor)
    torch.testing.assert_close(balanced_cross_entropy(logits, label, labels), expected)
    assert torch.autograd.gradcheck(lambda x: balanced_cross_entropy(x, label, labels), logits.requires_grad_())


@pytest.mark.parametrize("labels", [[1.0, 1.0], [0.0, 0.0]])
def test_an_image_whose_classes_have_no_pixels_does_not_count(labels: list[float]) -> None:
    """Image 0 is labelled as it should be; image 1 lacks a class or has one too many."""
    label = torch.tensor([[[0, 1]], [[0, 1]]])
    logits = randn(2, 3, 1, 2)
    both = balanced_cross_entropy(logits, label, torch.tensor([[1.0, 0.0], labels]))
    alone = balanced_cross_entropy(logits[:1], label[:1], torch.tensor([[1.0, 0.0]]))
    torch.testing.assert_close(both, alone / 2)


def test_without_a_labelled_pixel_the_loss_is_zero() -> None:
    logits, label = randn(1, 3, 2, 2), torch.full((1, 2, 2), IGNORE)
    assert balanced_cross_entropy(logits, label, torch.tensor([[1.0, 0.0]])).item() == 0


def test_the_gate_means_the_deep_features_in_training_and_mixes_at_rest() -> None:
    gate, deep, shallow = StochasticGate(0.3), randn(1, 2, 3, 3), randn(1, 2, 3, 3, seed=1)
    torch.manual_seed(0)
    mean = torch.stack([gate(deep, shallow) for _ in range(6000)]).mean(0)
    torch.testing.assert_close(mean, deep, rtol=0, atol=0.15)
    torch.testing.assert_close(gate.eval()(deep, shallow), 0.7 * deep + 0.3 * shallow)


def test_cues_of_the_deep_features_shift_and_scale_the_shallow_ones() -> None:
    cues = CueInjection(3, 4, 0.05).double().eval()
    shallow, deep = randn(1, 3, 5, 5), randn(1, 4, 5, 5, seed=1)
    attributes = cues.deep(deep).flatten(2).max(2).values[0]
    injected = F.relu(cues.skip(shallow) * (attributes[:4] + 1).view(4, 1, 1) + attributes[4:].view(4, 1, 1))
    torch.testing.assert_close(cues(shallow, deep), cues.out(injected))
