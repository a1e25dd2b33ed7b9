"""Losses against direct computations, and their edges: absent pixels, absent pairs, overflow."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mcc_core.config import EnergyConfig
from mcc_core.losses import terms as losses
from mcc_core.pseudo_labels.labels import IGNORE


def brute_contrast(
    q: torch.Tensor, k: torch.Tensor, flags: torch.Tensor, tau: float, eps: float, extra: bool
) -> torch.Tensor:
    """Eq. 7 spelled out with loops, queries and keys view-major."""
    batch, keys = flags.shape
    total = q.new_zeros(())
    for b in range(batch):
        for view in range(len(q) // batch):
            s = [torch.exp(q[view * batch + b] @ k[j * batch + b] / tau) for j in range(keys)]
            negatives = sum((s[j] for j in range(keys) if not flags[b, j]), start=q.new_zeros(()))
            loss = sum(
                (-torch.log(s[j] / (s[j] + negatives + eps)) for j in range(keys) if flags[b, j]), start=0 * s[0]
            )
            if extra:
                loss = loss + torch.log(1 + negatives + eps)
            total = total + loss / (len(q) // batch) / (flags[b].sum() + eps)
    return total / batch


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**31), batch=st.integers(1, 3), keys=st.integers(3, 10), extra=st.booleans())
def test_contrast_is_equation_7(seed: int, batch: int, keys: int, extra: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    q = torch.randn(2 * batch, 6, dtype=torch.float64, generator=generator)
    k = torch.randn(keys * batch, 6, dtype=torch.float64, generator=generator, requires_grad=True)
    flags = (torch.rand(batch, keys, generator=generator) < 0.5).double()
    flags[:, :2] = 1
    ours = losses.contrast(q, k, flags, 0.5, 1e-4, extra)
    theirs = brute_contrast(q, k, flags, 0.5, 1e-4, extra)
    torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-9)
    (a,), (b,) = torch.autograd.grad(ours, k), torch.autograd.grad(theirs, k)
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-9)  # the loops lose digits in log(s / (s + eps))


def test_contrast_survives_scores_that_overflow_exp() -> None:
    q = torch.full((2, 4), 30.0)
    k = torch.full((6, 4), 30.0, requires_grad=True)
    flags = torch.tensor([[1.0, 1, 1, 0, 0, 0]])
    loss = losses.contrast(q, k, flags, 0.5, 1e-4, True)
    loss.backward()
    assert torch.isfinite(loss) and k.grad is not None and torch.isfinite(k.grad).all()
    assert loss.item() == pytest.approx((3 * math.log(4) + 3600 * 2 + math.log(3)) / 3, rel=1e-3)


def test_contrast_without_negatives_is_nearly_zero() -> None:
    q, k = (F.normalize(torch.randn(n, 4), dim=1) for n in (2, 10))
    assert losses.contrast(q, k, torch.ones(1, 10), 0.5, 1e-4, True) < 0.1


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**31))
def test_affinity_against_pairs_counted_one_by_one(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(2, 5, 2, 3, dtype=torch.float64, generator=generator)
    labels = torch.tensor([0, 1, 2, IGNORE])[torch.randint(4, (2, 2, 3), generator=generator)]
    pulls: list[Tensor] = []
    pushes: list[Tensor] = []
    for b in range(2):
        tokens, flat = features[b].flatten(1).T, labels[b].flatten()
        for i in range(6):
            for j in range(6):
                if i != j and flat[i] != IGNORE and flat[j] != IGNORE:
                    cosine = F.cosine_similarity(tokens[i], tokens[j], dim=0).abs()
                    (pulls if flat[i] == flat[j] else pushes).append(cosine)
    expected = 0.5 * (1 - sum(pulls) / (len(pulls) + 1)) + 0.5 * sum(pushes) / (len(pushes) + 1)
    torch.testing.assert_close(losses.affinity(features, labels), torch.as_tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("kinds", [(0,), (3,), (IGNORE,), (0, 3), (0, 3, IGNORE)])
def test_segmentation_halves(kinds: tuple[int, ...]) -> None:
    logits = torch.randn(2, 5, 4, 6, requires_grad=True)
    labels = torch.tensor(kinds)[torch.arange(48) % len(kinds)].view(2, 4, 6)
    loss = losses.segmentation(logits, labels)
    loss.backward()
    assert logits.grad is not None and torch.isfinite(logits.grad).all()
    expected = 0.0
    for kind in kinds:
        if kind != IGNORE:
            only = labels.masked_fill(labels != kind, IGNORE)
            expected += 0.5 * F.cross_entropy(logits, only, ignore_index=IGNORE).item()
    assert loss.item() == pytest.approx(expected, abs=1e-6)


def test_energy_is_lower_for_labels_that_follow_edges() -> None:
    images = torch.zeros(1, 3, 32, 32)
    images[..., 16:] = 2.0
    labels = torch.full((1, 32, 32), IGNORE)
    boxes = torch.tensor([[0, 32, 0, 32]])
    aligned = torch.zeros(1, 2, 32, 32)
    aligned[:, 1, :, 16:] = 8
    aligned[:, 0, :, :16] = 8
    across = aligned.transpose(2, 3).contiguous()
    config = EnergyConfig(sigma_xy=20)
    energies = [losses.dense_energy(images, logits, labels, boxes, config).item() for logits in (aligned, across)]
    assert energies[0] < 1.2 * energies[1] < 0


def test_energy_outside_the_box_is_nothing() -> None:
    images, logits = torch.randn(1, 3, 16, 16), torch.randn(1, 3, 16, 16, requires_grad=True)
    labels = torch.zeros(1, 16, 16, dtype=torch.long)
    loss = losses.dense_energy(images, logits, labels, torch.tensor([[0, 8, 0, 16]]), EnergyConfig(scale=1.0))
    loss.backward()
    assert logits.grad is not None and logits.grad[:, :, :8].abs().sum() > 0
    assert logits.grad[:, :, 8:].abs().sum() == 0
