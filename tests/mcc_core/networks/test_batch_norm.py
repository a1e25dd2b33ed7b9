"""Batch normalisation over two ranks against one rank with the whole batch: outputs, gradients, running statistics."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from ranks import on_ranks
from torch import Tensor

from mcc_core.networks.batch_norm import SyncedBatchNorm

SHARES = {"equal": (3, 3), "unlike": (4, 2)}


def layer() -> SyncedBatchNorm:
    torch.manual_seed(0)
    norm = SyncedBatchNorm(5).double().train()
    with torch.no_grad():
        for parameter in norm.parameters():
            parameter.normal_()
    return norm


def batch() -> tuple[Tensor, Tensor]:
    """Inputs whose mean is far from 0, and what the loss weighs outputs by."""
    generator = torch.Generator().manual_seed(1)
    x = 3 + 2 * torch.randn(6, 5, 4, 3, generator=generator, dtype=torch.float64)
    return x, torch.randn(6, 5, 4, 3, generator=generator, dtype=torch.float64)


def passed(norm: SyncedBatchNorm, x: Tensor, weights: Tensor) -> dict[str, Any]:
    """Two passes, the second backward too: what came out, as arrays that processes can send."""
    x = x.clone().requires_grad_()
    norm(x + 1)
    y = norm(x)
    (weights * y.sin()).sum().backward()
    found = {"y": y.detach(), "x": x.grad, "weight": norm.weight.grad, "bias": norm.bias.grad}
    found |= {"mean": norm.running_mean, "var": norm.running_var, "batches": norm.num_batches_tracked}
    return {name: value.numpy() for name, value in found.items() if value is not None}


def on_rank(rank: int, shares: tuple[int, int]) -> dict[str, Any]:
    x, weights = (tensor.split(shares)[rank] for tensor in batch())
    return passed(layer(), x, weights)


@pytest.mark.parametrize("shares", SHARES.values(), ids=SHARES)
def test_two_ranks_are_one_with_the_whole_batch(shares: tuple[int, int]) -> None:
    first, second = on_ranks(on_rank, shares)
    whole = passed(layer(), *batch())
    for name in ("y", "x"):
        np.testing.assert_allclose(np.concatenate([first[name], second[name]]), whole[name], rtol=1e-10, atol=1e-12)
    for name in ("weight", "bias"):
        np.testing.assert_allclose(first[name] + second[name], whole[name], rtol=1e-10, atol=1e-12)
    for name in ("mean", "var", "batches"):
        np.testing.assert_array_equal(first[name], second[name])
        np.testing.assert_allclose(first[name], whole[name], rtol=1e-12)


def half_on_rank(rank: int) -> tuple[Any, str]:
    x, _ = (tensor.chunk(2)[rank] for tensor in batch())
    y = layer().float()(x.bfloat16())
    return y.float().detach().numpy(), str(y.dtype)


def test_half_precision_is_normalised_in_float32() -> None:
    found = on_ranks(half_on_rank)
    assert {dtype for _, dtype in found} == {"torch.bfloat16"}
    whole = layer()(batch()[0]).detach().numpy()
    np.testing.assert_allclose(np.concatenate([y for y, _ in found]), whole, rtol=0.02, atol=0.03)
