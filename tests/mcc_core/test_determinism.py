"""What `compute.deterministic` sets, and that no step has an operation without a deterministic form on GPUs."""

from __future__ import annotations

import os
from contextlib import nullcontext
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from last_step import LastStep
from operations import operations_of
from torch import nn
from trained import SMALLEST, smallest

from mcc_core.determinism import bicubic, repeatable
from mcc_core.experiment_files import resolve
from mcc_core.methods.registry import network_of, random_network
from mcc_core.networks.heads import pooled_logits
from mcc_core.precision import arithmetic

# Those that raise on a GPU (torch.use_deterministic_algorithms); bilinear resizing is replaced by torch itself there.
WITHOUT = {
    "_adaptive_avg_pool2d_backward",
    "adaptive_max_pool2d_backward",
    "bincount",
    "grid_sampler_2d_backward",
    "histc",
    "kthvalue",
    "median",
    "put_",
    "reflection_pad2d_backward",
    "upsample_bicubic2d_backward",
}


def _state() -> tuple[object, ...]:
    memory: Any = torch.utils.deterministic
    cudnn = torch.backends.cudnn
    return (
        torch.are_deterministic_algorithms_enabled(),
        memory.fill_uninitialized_memory,
        cudnn.deterministic,
        cudnn.benchmark,
        os.environ.get("CUBLAS_WORKSPACE_CONFIG"),
    )


@pytest.mark.parametrize("workspace", [None, ":0:0", ":16:8"])
def test_all_is_set_inside_and_restored(workspace: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    if workspace:
        monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", workspace)
    before = _state()
    with pytest.raises(KeyError), arithmetic("float32", True):
        assert _state() == (True, False, True, False, ":16:8" if workspace == ":16:8" else ":4096:8")
        raise KeyError
    assert _state() == before
    with arithmetic("float32"):
        assert _state() == before


@pytest.mark.parametrize("name", SMALLEST)
def test_a_step_has_only_operations_with_a_deterministic_form(name: str) -> None:
    case = LastStep(smallest(name), torch.device("cpu"), images=2)
    with repeatable():
        found = operations_of(case.run).kernels
    assert not WITHOUT & set(found)
    x = torch.rand(1, 2, 4, 4, requires_grad=True)
    assert set(operations_of(lambda: F.adaptive_max_pool2d(x, 1).sum().backward()).kernels) & WITHOUT


def test_a_network_knows_and_hands_it_on() -> None:
    experiment = resolve("tiny", {"compute.deterministic": True})
    assert network_of(experiment, 3).deterministic and random_network(experiment, 3).deterministic
    assert not network_of(resolve("tiny"), 3).deterministic


def test_resizing_is_bicubic_in_its_deterministic_form_too() -> None:
    table = torch.randn(1, 3, 14, 9, dtype=torch.float64, requires_grad=True)
    found = []
    for inside in (nullcontext(), repeatable()):
        with inside:
            resized = bicubic(table, (21, 5))
            (gradient,) = torch.autograd.grad(resized.square().sum(), table)
        found.append((resized.detach(), gradient))
    for plain, deterministic in zip(*found, strict=True):
        torch.testing.assert_close(plain, deterministic, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("preset", ["tiny", "toco-tiny"])
def test_a_step_repeats_to_the_bit_and_is_the_same_step(preset: str) -> None:
    found = []
    for inside in (nullcontext(), repeatable(), repeatable()):
        torch.manual_seed(0)
        case = LastStep(preset, torch.device("cpu"), images=2)
        with inside:
            step = case.run()
        found.append(
            [float(step.total.detach()), *(float(p.grad.norm()) for p in case.parameters() if p.grad is not None)]
        )
    assert found[1] == found[2] == pytest.approx(found[0], rel=1e-4, abs=1e-7)


def test_pooling_is_adaptive_pooling_where_values_are_equal_too() -> None:
    values = torch.randint(0, 3, (2, 5, 4, 4)).float()
    classifier = nn.Conv2d(5, 3, 1, bias=False)
    gradients = []
    for pooled in (
        lambda x: pooled_logits(x, classifier),
        lambda x: classifier(F.adaptive_max_pool2d(x, 1)).flatten(1),
    ):
        x = values.clone().requires_grad_()
        (pooled(x) * torch.arange(1.0, 4.0)).sum().backward()
        gradients.append(x.grad)
    assert torch.equal(*gradients)  # type: ignore[arg-type]
