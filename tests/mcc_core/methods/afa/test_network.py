"""The network of AFA: affinity without maps of heads, frozen norms, published names."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch

from mcc_core.experiment_files import resolve
from mcc_core.methods.afa.affinity import pair_labels
from mcc_core.methods.afa.config import Experiment
from mcc_core.methods.afa.network import AFANet
from mcc_core.methods.afa.objective import AFAObjective


@pytest.fixture
def experiment() -> Experiment:
    return cast(Experiment, resolve("afa-tiny", {"par.dilations": [1, 2]}))


@pytest.fixture
def network(experiment: Experiment) -> AFANet:
    torch.manual_seed(0)
    return AFANet(experiment.model, 3)


def test_affinity_is_the_convolution_of_all_heads(network: AFANet) -> None:
    network.double()
    features = network.encoder(torch.randn(2, 3, 32, 48, dtype=torch.float64))
    heads = []
    for block, x in zip(network.last_blocks, features.last_inputs, strict=True):
        tokens, attention = block.norm1(x), block.attn
        shape = (2, tokens.shape[1], attention.num_heads, -1)
        q, k = attention.q(tokens).view(shape), attention.kv(tokens)[..., : tokens.shape[2]].reshape(shape)
        heads.append(torch.einsum("bnhd,bmhd->bhnm", q, k))
    raw = torch.cat(heads, 1)
    expected = network.attn_proj(raw + raw.transpose(2, 3)).sigmoid()[:, 0]
    assert torch.allclose(network.affinity(features), expected, atol=1e-12)


def test_every_stage_reaches_every_parameter(network: AFANet, experiment: Experiment) -> None:
    batch = {
        "view1": torch.randn(2, 3, 32, 32),
        "labels": torch.tensor([[1.0, 0, 0], [1, 0, 1]]),
        "box": torch.tensor([[0, 32, 0, 32], [4, 32, 0, 20]]),
    }
    for iteration, terms in ((0, {"cls"}), (100, {"cls", "seg", "aff"}), (200, {"cls", "seg", "aff"})):
        network.zero_grad()
        step = AFAObjective(network, experiment)(batch, {}, iteration)
        step.total.backward()
        assert set(step.terms) == terms
        assert [name for name, p in network.named_parameters() if p.grad is None] == []


def test_norms_of_the_encoder_are_not_trained() -> None:
    experiment: Any = resolve("afa", {"model.weights": "random", "model.backbone": "mit_b0"})
    network = AFANet(experiment.model, 3)
    others, norms, heads = network.parameter_groups(experiment.optim)
    assert (norms.lr_scale, norms.decay_scale, others.lr_scale, heads.lr_scale) == (0, 0, 1, 10)
    assert all(p.ndim == 1 for p in norms.parameters)
    assert sum(len(g.parameters) for g in (others, norms, heads)) == len(list(network.parameters()))


def test_on_coco_affinity_learns_from_the_propagated_label(network: AFANet) -> None:
    decided = {"thresholds.background": 0.5, "thresholds.foreground": 0.501, "par.dilations": [1, 2]}
    experiment = cast(Experiment, resolve("afa-tiny", decided | {"affinity.label": "segmentation"}))
    assert resolve("afa-coco").affinity == experiment.affinity  # type: ignore[attr-defined]
    torch.manual_seed(2)
    batch = {
        "view1": torch.randn(2, 3, 40, 40),
        "labels": torch.tensor([[1.0, 0, 0], [0, 1, 1]]),
        "box": torch.tensor([[0, 40, 0, 40], [4, 40, 0, 20]]),
    }
    step = AFAObjective(network, experiment)(batch, {}, 200)
    assert step.seg_label is not None and step.pairs is not None
    grid = (step.output.features.maps[3].shape[-2], step.output.features.maps[3].shape[-1])
    assert torch.equal(step.pairs, pair_labels(step.seg_label, grid, experiment.affinity.radius))
    assert (step.pairs != 255).any()
