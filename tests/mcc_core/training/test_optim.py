"""Optimisers and learning rates that a method may ask for."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mcc_core.config import OptimConfig
from mcc_core.networks.base import Network, ParameterGroup
from mcc_core.training.optim import build_optimizer, learning_rate, set_learning_rate


class TwoWeights(Network):
    """One weight at the base rate, one at five times it and, after a restart, at half."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.two = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))

    def parameter_groups(self, optim: OptimConfig) -> list[ParameterGroup]:
        return [ParameterGroup((self.first,)), ParameterGroup((self.two,), lr_scale=5, restart_lr_scale=0.5)]


def config(**fields: object) -> OptimConfig:
    return OptimConfig.model_validate({"lr": 0.1, "warmup": 0, "power": 1.0, **fields})


def test_a_schedule_ends_where_the_next_begins() -> None:
    optim = config(restart=10, restart_lr=0.02)
    rates = [learning_rate(optim, i, 30) for i in range(30)]
    assert rates[:10] == pytest.approx([0.1 * (1 - i / 10) for i in range(10)])
    assert rates[10:] == pytest.approx([0.02 * (1 - i / 20) for i in range(20)])
    short = config(restart=10, restart_lr=0.02, warmup=4)
    assert learning_rate(short, 6, 8) == pytest.approx(0.1 * (1 - 6 / 8))  # a run that ends before it
    assert learning_rate(short, 10, 30) == pytest.approx(0.02)  # no second warm-up


def test_a_group_may_have_another_rate_after_the_restart() -> None:
    optim = config(restart=10, restart_lr=0.02)
    optimizer = build_optimizer(TwoWeights(), optim)
    found = []
    for iteration in (0, 10):
        set_learning_rate(optimizer, optim, iteration, 30)
        found.append([group["lr"] for group in optimizer.param_groups])
    assert found == [pytest.approx([0.1, 0.5]), pytest.approx([0.02, 0.01])]
    saved = optimizer.state_dict()
    for group in saved["param_groups"]:
        del group["restart_lr_scale"]  # as checkpoints of before have it
    optimizer.load_state_dict(saved)
    set_learning_rate(optimizer, optim, 10, 30)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.02, 0.1])


def test_a_constant_rate_stays() -> None:
    optim = config(schedule="constant", warmup=2)
    assert [learning_rate(optim, i, 9) for i in range(2, 9)] == [0.1] * 7 and learning_rate(optim, 1, 9) < 0.1


def test_decay_is_part_of_adams_gradient() -> None:
    """The first step of Adam is the rate long whatever the gradient: a decay of its own would make it longer."""
    steps = {}
    for kind in ("adam", "adamw"):
        network = TwoWeights()
        optim = config(kind=kind, weight_decay=0.5)
        optimizer = build_optimizer(network, optim)
        set_learning_rate(optimizer, optim, 0, 9)
        (network.first + network.two).sum().backward()
        optimizer.step()
        steps[kind] = 1 - network.first.item()
    assert steps == pytest.approx({"adam": 0.1, "adamw": 0.1 + 0.1 * 0.5}, rel=1e-4)
