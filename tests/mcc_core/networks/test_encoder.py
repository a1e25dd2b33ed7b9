"""Dropping masked tokens must equal masking attention, outputs and gradients, in float64."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from batches import three_views
from hypothesis import given, settings
from hypothesis import strategies as st

from mcc_core.errors import UsageError
from mcc_core.methods.mcc.config import Experiment
from mcc_core.methods.mcc.masking import sample_masks
from mcc_core.methods.mcc.network import MCCNet
from mcc_core.methods.mcc.objective import MCCObjective
from mcc_core.networks.encoder import Encoder

BACKBONES: dict[str, dict[str, Any]] = {
    "deit_tiny_patch16_224": {"img_size": 64},
    "vit_small_patch14_dinov2": {"img_size": 56, "embed_dim": 96, "num_heads": 3},  # LayerScale
    "vit_small_patch14_reg4_dinov2": {"img_size": 56, "embed_dim": 96, "num_heads": 3},  # registers
    "deit_small_patch16_224": {"img_size": 64, "embed_dim": 96, "num_heads": 3},
    "deit_base_patch16_224": {"img_size": 64, "embed_dim": 96, "num_heads": 3},
    "vit_base_patch16_224.augreg_in21k": {"img_size": 64, "embed_dim": 96, "num_heads": 3},
    "vit_base_patch14_dinov2": {"img_size": 56, "embed_dim": 96, "num_heads": 3},
    "deit_tiny_distilled_patch16_224": {"img_size": 64},  # two class tokens; the first is MCC's
}


def build(name: str = "deit_tiny_patch16_224", depth: int = 3) -> Encoder:
    torch.manual_seed(0)
    vit = timm.create_model(name, num_classes=0, depth=depth, **BACKBONES[name])
    for parameter in vit.parameters():  # LayerScale starts near zero, which would hide everything
        if parameter.ndim == 1:
            torch.nn.init.normal_(parameter, 0.5, 0.5)
    return Encoder(vit, aux_block=2).double()


def both_ways(encoder: Encoder, images: torch.Tensor, masks: torch.Tensor) -> list[tuple[torch.Tensor, ...]]:
    results = []
    for drop in (True, False):
        encoder.zero_grad()
        out = encoder.masked_cls(images, masks, drop=drop)
        probe = torch.randn(out.shape, dtype=out.dtype, generator=torch.Generator().manual_seed(1))
        (out * probe).sum().backward()
        gradients = [p.grad.clone() for p in encoder.parameters() if p.grad is not None]
        results.append((out.detach(), *gradients))
    return results


@pytest.mark.parametrize("name", BACKBONES)
@pytest.mark.parametrize("ratio", [0.0, 0.5, 0.95, 1.0])
def test_dropping_equals_masking(name: str, ratio: float) -> None:
    encoder = build(name)
    generator = torch.Generator().manual_seed(3)
    images = torch.randn(2, 3, 4 * encoder.patch, 5 * encoder.patch, dtype=torch.float64, generator=generator)
    masks = sample_masks(2, 3, (4, 5), ratio, 2, generator)
    if ratio == 0.5:
        masks[0, 1] = 1  # a view that keeps nothing but the class token
        masks[1, 2] = 0  # one that keeps everything
    dropped, masked = both_ways(encoder, images, masks)
    assert len(dropped) == len(masked) > 10
    for a, b in zip(dropped, masked, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**31), ratio=st.floats(0, 1), scale=st.integers(1, 4), views=st.integers(1, 4))
def test_dropping_equals_masking_for_any_masks(seed: int, ratio: float, scale: int, views: int) -> None:
    encoder = build(depth=2)
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(1, 3, 48, 64, dtype=torch.float64, generator=generator)
    masks = sample_masks(1, views, (3, 4), ratio, scale, generator)
    with torch.no_grad():
        dropped, masked = (encoder.masked_cls(images, masks, drop=d) for d in (True, False))
    torch.testing.assert_close(dropped, masked, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", BACKBONES)
def test_every_backbone_makes_a_step(name: str) -> None:
    model_fields = {
        "backbone": name,
        "backbone_args": {"depth": 2, **BACKBONES[name]},
        "weights": "random",
        "aux_block": 1,
    }
    fields: dict[str, Any] = {
        "model": {**model_fields, "decoder_channels": 16},
        "loss": {"seg_start": 0},
        "par": {"dilations": [1]},
    }
    experiment = Experiment.model_validate(fields)
    model = MCCNet(experiment.model, 3)
    side = 4 * model.encoder.patch
    images = torch.randn(3, 2, 3, side, side, generator=torch.Generator().manual_seed(0))
    labels, boxes = torch.tensor([[1.0, 0, 1], [0, 1, 0]]), torch.tensor([[0, side, 0, side]] * 2)
    masks = sample_masks(2, 3, (4, 4), 0.5, 2, torch.Generator().manual_seed(1))
    step = MCCObjective(model, experiment)(
        three_views(images[0], images[1], images[2], labels, boxes), {"masks": masks}, 1
    )
    step.total.backward()
    assert len(step.terms) == 6 and step.total.isfinite()
    encoder = dict(model.encoder.named_parameters())
    assert all(p.grad is not None and p.grad.isfinite().all() for n, p in encoder.items())


def test_masked_pixels_do_not_reach_the_class_token() -> None:
    encoder = build()
    images = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    masks = torch.zeros(1, 1, 4, 4, dtype=torch.uint8)
    masks[..., :2] = 1
    changed = images.clone()
    changed[..., :32] += 1
    a, b, c = (encoder.masked_cls(i, m) for i, m in ((images, masks), (changed, masks), (changed, 0 * masks)))
    assert torch.equal(a, b)
    assert not torch.allclose(a, c)


def test_full_forward_without_masks_is_the_unmasked_view() -> None:
    encoder = build("vit_small_patch14_reg4_dinov2")
    images = torch.randn(2, 3, 56, 70, dtype=torch.float64)
    features = encoder(images)
    assert features.patches.shape == features.aux.shape == (2, 96, 4, 5)
    view = encoder.masked_cls(images, torch.zeros(2, 1, 4, 5, dtype=torch.uint8))
    torch.testing.assert_close(features.cls, view, rtol=1e-10, atol=1e-10)


def test_encoder_equals_timm_at_its_own_size() -> None:
    vit = timm.create_model("deit_tiny_patch16_224", num_classes=0, depth=2).double().eval()
    images = torch.randn(1, 3, 224, 224, dtype=torch.float64)
    with torch.no_grad():
        tokens = vit.forward_features(images)  # type: ignore[operator]
        features = Encoder(vit, 1)(images)
    torch.testing.assert_close(features.cls, tokens[:, 0])
    torch.testing.assert_close(features.patches.flatten(2).transpose(1, 2), tokens[:, 1:])


def test_unsuitable_backbones_are_refused() -> None:
    with pytest.raises(UsageError, match="class token"):
        Encoder(timm.create_model("resnet18", num_classes=0), 1)
    with pytest.raises(UsageError, match=r"aux_block: 13: the backbone has 2 blocks"):
        Encoder(timm.create_model("deit_tiny_patch16_224", num_classes=0, depth=2), 13)
