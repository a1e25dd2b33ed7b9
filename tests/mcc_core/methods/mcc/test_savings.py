"""Every saving of the step against the plain computation, in float64: losses, gradients, to 1e-10."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from batches import three_views
from experiments import mcc_experiment
from plain import PlainObjective, explicit_attention, refine_separately
from torch import Tensor

from mcc_core.config import ComputeConfig
from mcc_core.methods.mcc import objective as objective_module
from mcc_core.methods.mcc.config import Experiment
from mcc_core.methods.mcc.network import MCCNet
from mcc_core.methods.mcc.objective import Batch, MCCObjective, MCCStep
from mcc_core.pseudo_labels import labels as pseudo_label

SIZE = 48
VOC: dict[str, Any] = {
    "model.weights": "random",
    "model.backbone": "deit_tiny_patch16_224",
    "model.backbone_args": {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 4, "num_heads": 2},
    "model.aux_block": 3,
    "model.decoder_channels": 16,
    "model.projector.hidden": 32,
    "model.projector.bottleneck": 16,
    "model.projector.out": 24,
    "train.crop": SIZE,
    "par.dilations": [1, 2, 4],
}


def settings(name: str) -> tuple[Experiment, int, int, int]:
    """Experiment, foreground classes, first class index that the batch has, iteration."""
    if name == "voc":
        return mcc_experiment("voc", VOC), 20, 3, 5000
    return mcc_experiment("coco", VOC | {"model.aux_block": 2}), 80, 61, 13_000


def batch_of(classes: int, first: int) -> tuple[Batch, Tensor]:
    generator = torch.Generator().manual_seed(4)
    coarse = torch.randn(9, 3, 6, 6, generator=generator, dtype=torch.float64)
    images = F.interpolate(coarse, size=SIZE, mode="bicubic").unflatten(0, (3, 3))
    labels = torch.zeros(3, classes, dtype=torch.float64)
    labels[0, [first, first + 4]] = 1
    labels[1, first + 4] = 1
    labels[2, [0, first, first + 9]] = 1
    boxes = torch.tensor([[0, SIZE, 0, SIZE], [5, SIZE, 0, 40], [0, 30, 8, SIZE]])
    masks = (torch.rand(3, 4, 6, 6, generator=generator) < 0.7).to(torch.uint8)  # uneven token counts
    masks[0, 1] = 1  # keeps nothing but the class token
    masks[2, 3] = 0  # keeps everything
    return three_views(images[0], images[1], images[2], labels, boxes), masks


def stepped(
    kind: type[MCCObjective], name: str, compute: ComputeConfig | None = None
) -> tuple[MCCStep, dict[str, Tensor]]:
    experiment, classes, first, iteration = settings(name)
    torch.manual_seed(1)
    model = MCCNet(experiment.model, classes, compute or ComputeConfig())
    for parameter in model.parameters():
        if parameter.ndim == 1:  # LayerScale, biases and norms away from their neutral start
            torch.nn.init.normal_(parameter, 0.5, 0.3)
    model.momentum_projector.load_state_dict(model.projector.state_dict())
    model.double()
    batch, masks = batch_of(classes, first)
    with explicit_attention() if kind is PlainObjective else nullcontext():
        result = kind(model, experiment)(batch, {"masks": masks}, iteration)
    result.total.backward()
    return result, {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", ["voc", "coco"])
def test_the_step_is_the_plain_step(name: str) -> None:
    ours, gradients = stepped(MCCObjective, name)
    with (
        mock.patch.object(pseudo_label, "refine", refine_separately),
        mock.patch.object(objective_module, "settled", lambda function, x: function(x)),
    ):
        plain, expected = stepped(PlainObjective, name, ComputeConfig(recompute="nothing"))
    assert set(ours.terms) == set(plain.terms) == {"cls", "cls_aux", "aff", "mcc", "seg", "reg"}
    for term, value in plain.terms.items():
        torch.testing.assert_close(ours.terms[term], value, rtol=1e-10, atol=1e-12)
    assert gradients.keys() == expected.keys() and len(gradients) > 60
    for parameter, gradient in expected.items():
        torch.testing.assert_close(gradients[parameter], gradient, rtol=1e-10, atol=1e-10, msg=parameter)
    assert plain.refined is not None and ours.refined is not None and torch.equal(ours.refined, plain.refined)
    assert len(plain.refined.unique()) > 2 and plain.contrast is not None  # the comparison has something to compare
    assert 0 < plain.contrast.flags[:, 2:].mean() < 1


@pytest.mark.parametrize(
    "compute",
    [ComputeConfig(recompute="nothing"), ComputeConfig(recompute="blocks"), ComputeConfig(channels_last=True)],
    ids=["nothing", "blocks", "channels_last"],
)
def test_memory_options_change_only_rounding(compute: ComputeConfig) -> None:
    default, expected = stepped(MCCObjective, "voc")
    other, gradients = stepped(MCCObjective, "voc", compute)
    torch.testing.assert_close(other.total, default.total, rtol=1e-12, atol=0)
    for parameter, gradient in expected.items():
        torch.testing.assert_close(gradients[parameter], gradient, rtol=1e-9, atol=1e-11, msg=parameter)


def _float_step(compute: ComputeConfig) -> dict[str, float]:
    experiment, classes, first, iteration = settings("voc")
    torch.manual_seed(1)
    model = MCCNet(experiment.model, classes, compute)
    batch, masks = batch_of(classes, first)
    batch = {name: tensor if name == "box" else tensor.float() for name, tensor in batch.items()}
    step = MCCObjective(model, experiment)(batch, {"masks": masks}, iteration)
    step.total.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    assert all(p.dtype == torch.float32 for p in model.parameters())
    return {name: float(term.detach()) for name, term in step.terms.items()}


def test_bfloat16_stays_near_float32() -> None:
    exact, rounded = (_float_step(ComputeConfig(precision=p)) for p in ("float32", "bfloat16"))
    assert exact != rounded
    for term in ("cls", "cls_aux", "mcc"):  # those that no threshold decides
        assert rounded[term] == pytest.approx(exact[term], rel=0.02), term


@pytest.mark.slow
def test_compiled_blocks_change_only_rounding() -> None:
    plain, compiled = (_float_step(ComputeConfig(compile=c)) for c in (False, True))
    assert compiled == pytest.approx(plain, rel=1e-4)
