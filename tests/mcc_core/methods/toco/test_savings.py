"""Every saving of ToCo's step against the plain computation, in float64: losses and gradients, to 1e-10."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any, cast
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from batches import three_views
from plain import explicit_attention, refine_separately
from plain_toco import PlainObjective
from torch import Tensor

from mcc_core.config import ComputeConfig
from mcc_core.experiment_files import resolve
from mcc_core.methods.toco import objective as objective_module
from mcc_core.methods.toco.config import Experiment
from mcc_core.methods.toco.network import ToCoNet
from mcc_core.methods.toco.objective import Batch, ToCoObjective, ToCoStep
from mcc_core.pseudo_labels import labels as pseudo_label

SIZE = 48
FIELDS: dict[str, Any] = {
    "model.weights": "random",
    "model.backbone": "deit_tiny_patch16_224",
    "model.backbone_args": {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 4, "num_heads": 2},
    "model.aux_block": 3,
    "model.decoder_channels": 16,
    "model.projector.hidden": 32,
    "model.projector.bottleneck": 16,
    "model.projector.out": 24,
    "crops.size": 20,  # two tokens and a half: what does not fill a patch is cut
    "thresholds.positiveness": 1.0,  # some crops of such maps are negative
    "train.crop": SIZE,
    "par.dilations": [1, 2, 4],
}
CASES = {"toco": (20, 3, 5000), "toco-coco": (80, 61, 13_000)}  # classes, first that the batch has, iteration


def batch_of(classes: int, first: int) -> tuple[Batch, Tensor]:
    generator = torch.Generator().manual_seed(4)
    coarse = torch.randn(9, 3, 6, 6, generator=generator, dtype=torch.float64)
    images = F.interpolate(coarse, size=SIZE, mode="bicubic").unflatten(0, (3, 3))
    labels = torch.zeros(3, classes, dtype=torch.float64)
    labels[0, [first, first + 4]] = labels[1, first + 4] = 1
    labels[2, [0, first, first + 9]] = 1
    boxes = torch.tensor([[0, SIZE, 0, SIZE], [5, SIZE, 0, 40], [0, 30, 8, SIZE]])
    priority = torch.rand(3, SIZE - 20, SIZE - 20, generator=generator)
    return three_views(images[0], images[1], images[2], labels, boxes), priority


def stepped(
    kind: type[ToCoObjective], name: str, compute: ComputeConfig | None = None
) -> tuple[ToCoStep, dict[str, Tensor]]:
    classes, first, iteration = CASES[name]
    experiment = cast(Experiment, resolve(name, FIELDS))
    torch.manual_seed(1)
    model = ToCoNet(experiment.model, classes, compute or ComputeConfig())
    for parameter in model.parameters():
        if parameter.ndim == 1:  # LayerScale, biases and norms away from their neutral start
            torch.nn.init.normal_(parameter, 0.5, 0.3)
    model.momentum_projector.load_state_dict(model.projector.state_dict())
    model.double()
    batch, priority = batch_of(classes, first)
    with ExitStack() as plainly:
        if kind is PlainObjective:
            plainly.enter_context(explicit_attention())
            plainly.enter_context(mock.patch.object(pseudo_label, "refine", refine_separately))
            plainly.enter_context(mock.patch.object(objective_module, "settled", lambda function, x: function(x)))
        result = kind(model, experiment)(batch, {"priority": priority}, iteration)
        result.total.backward()
    return result, {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", CASES)
def test_the_step_is_the_plain_step(name: str) -> None:
    ours, gradients = stepped(ToCoObjective, name)
    plain, expected = stepped(PlainObjective, name, ComputeConfig(recompute="nothing"))
    assert set(ours.terms) == set(plain.terms) == set(ToCoObjective.terms)
    for term, value in plain.terms.items():
        torch.testing.assert_close(ours.terms[term], value, rtol=1e-10, atol=1e-12)
    assert gradients.keys() == expected.keys() and len(gradients) > 60
    for parameter, gradient in expected.items():
        torch.testing.assert_close(gradients[parameter], gradient, rtol=1e-10, atol=1e-10, msg=parameter)
    assert ours.refined is not None and plain.refined is not None and torch.equal(ours.refined, plain.refined)
    assert ours.contrast is not None and plain.contrast is not None
    assert torch.equal(ours.contrast.positions, plain.contrast.positions)
    assert 0 < plain.contrast.flags[:, 2:].mean() < 1  # the comparison has something to compare


@pytest.mark.parametrize("recompute", ["nothing", "blocks"])
def test_memory_options_change_only_rounding(recompute: Any) -> None:
    default, expected = stepped(ToCoObjective, "toco")
    other, gradients = stepped(ToCoObjective, "toco", ComputeConfig(recompute=recompute))
    torch.testing.assert_close(other.total, default.total, rtol=1e-12, atol=0)
    for parameter, gradient in expected.items():
        torch.testing.assert_close(gradients[parameter], gradient, rtol=1e-9, atol=1e-11, msg=parameter)
