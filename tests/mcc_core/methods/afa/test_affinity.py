"""Affinity labels, loss and propagation against their formulas, in double precision."""

from __future__ import annotations

import torch

from mcc_core.methods.afa.affinity import affinity_loss, near, pair_labels, propagated, transition

GRID = (3, 4)


def test_pairs_follow_labels_radius_and_ignore() -> None:
    label = torch.tensor([[[0, 0, 1, 255], [0, 1, 1, 0], [2, 2, 0, 0]]])
    pairs = pair_labels(label, GRID, 1)[0]
    flat = label.flatten().tolist()
    for i in range(12):
        for j in range(12):
            far = max(abs(i // 4 - j // 4), abs(i % 4 - j % 4)) > 1
            unknown = far or 255 in (flat[i], flat[j])
            assert pairs[i, j] == (255 if unknown else int(flat[i] == flat[j]))


def test_loss_is_its_formula_and_finite_without_pairs() -> None:
    affinity = torch.rand(2, 12, 12, dtype=torch.float64)
    pairs = torch.randint(3, (2, 12, 12)).where(torch.rand(2, 12, 12) > 0.1, 255)
    pull = sum(1 - float(a) for a, p in zip(affinity.flatten(), pairs.flatten(), strict=True) if p == 1)
    push = sum(float(a) for a, p in zip(affinity.flatten(), pairs.flatten(), strict=True) if p == 0)
    ones, zeros = int((pairs == 1).sum()), int((pairs == 0).sum())
    expected = 0.5 * pull / (ones + 1) + 0.5 * push / (zeros + 1)
    assert abs(float(affinity_loss(affinity, pairs)) - expected) < 1e-12
    assert affinity_loss(affinity, torch.full_like(pairs, 255)) == 0


def test_propagation_is_its_formula() -> None:
    affinity = torch.rand(1, 12, 12, dtype=torch.float64)
    matrix = transition(affinity, GRID, 1, 2.0, 0.1)
    kept = affinity[0] ** 2 * near(GRID, 1)
    assert torch.allclose(matrix[0], kept / (kept.sum(0) + 0.1), atol=1e-12)
    scores = torch.rand(3, *GRID, dtype=torch.float64)
    moved = scores.softmax(0).flatten(1) @ matrix[0]
    assert torch.allclose(propagated(scores, matrix[0], GRID, 1).flatten(1), moved, atol=1e-12)
