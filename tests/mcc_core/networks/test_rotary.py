"""A backbone with rotary positions and register tokens (DINOv3): features as timm's, dropping tokens exact."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from mcc_core.errors import UsageError
from mcc_core.experiment_files import resolve
from mcc_core.methods.mcc.masking import sample_masks
from mcc_core.methods.registry import method_of
from mcc_core.networks.rotary import RotaryEncoder

SMALL: dict[str, Any] = {
    "model.backbone": "vit_base_patch16_dinov3",
    "model.backbone_args": {"embed_dim": 32, "depth": 3, "num_heads": 2},
    "model.aux_block": 2,
    "train.crop": 64,
    "loss.seg_start": 0,
    "par.dilations": [1, 2],
}


def network(**fields: Any) -> Any:
    experiment = resolve("tiny", SMALL | fields)
    torch.manual_seed(0)
    return method_of(experiment).network(experiment, 3)


def test_features_are_timms() -> None:
    encoder = network().double().encoder
    assert isinstance(encoder, RotaryEncoder) and encoder.prefix == 5
    images = torch.randn(2, 3, 64, 96, dtype=torch.float64)
    tokens = encoder.vit.forward_features(images)
    features, cls = encoder.features_and_cls(images[:1], images[1:])
    torch.testing.assert_close(features.cls, tokens[:1, 0])
    torch.testing.assert_close(features.patches, tokens[:1, 5:].transpose(1, 2).unflatten(2, (4, 6)))
    torch.testing.assert_close(cls, tokens[1:, 0])
    assert features.aux.shape == (1, 32, 4, 6) and not torch.equal(features.aux, features.patches)


@pytest.mark.parametrize("ratio", [0.0, 0.5, 1.0])
def test_dropping_tokens_is_exact(ratio: float) -> None:
    encoder = network().double().encoder
    images = torch.randn(2, 3, 64, 96, dtype=torch.float64)
    masks = sample_masks(2, 3, (4, 6), ratio, 1, torch.Generator().manual_seed(1))
    found = []
    for drop in (True, False):
        encoder.zero_grad()
        cls = encoder.masked_cls(images, masks, drop=drop)
        cls.sin().sum().backward()
        found.append((cls.detach(), [p.grad.clone() for p in encoder.parameters() if p.grad is not None]))
    torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-10, atol=1e-10)
    for one, other in zip(found[0][1], found[1][1], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("recompute", ["elementwise", "blocks"])
def test_mcc_learns_with_it(recompute: str) -> None:
    fields = {"compute.recompute": recompute, "loss.fsr_patch": 0.1, "contrast.teacher": "network"}
    experiment: Any = resolve("tiny", SMALL | fields)
    model = network(**fields).train()
    method = method_of(experiment)
    views = torch.randn(3, 2, 3, 64, 64)
    batch = {"view1": views[0], "view2": views[1], "local": views[2], "labels": torch.eye(2, 3)}
    batch["box"] = torch.tensor([[0, 64, 0, 64]] * 2)
    draws = method.draws(experiment, model, 2, (64, 64), 100, torch.Generator().manual_seed(0))
    step = method.objective(model, experiment)(batch, draws, 100)
    step.total.backward()
    assert {"mcc", "fsr_patch", "seg"} <= set(step.terms)
    assert [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None] == []


def test_a_local_file_loads_and_what_does_not_suit_is_one_line(tmp_path: Path) -> None:
    state = network().encoder.vit.state_dict()
    save_file({name: tensor.clone() for name, tensor in state.items()}, tmp_path / "dinov3.safetensors")
    torch.manual_seed(5)
    loaded = network(**{"model.weights": str(tmp_path / "dinov3.safetensors")}).encoder.vit.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in loaded.items())
    sizes = SMALL["model.backbone_args"]
    with pytest.raises(UsageError, match="stochastic depth would make dropping tokens inexact"):
        network(**{"model.backbone_args": sizes | {"drop_path_rate": 0.1}})
    with pytest.raises(UsageError, match="rotary positions alone that all blocks share"):
        network(**{"model.backbone_args": sizes | {"use_abs_pos_emb": True}})
    with pytest.raises(UsageError, match=r"model\.aux_block: 4: the backbone has 3 blocks"):
        network(**{"model.aux_block": 4})


def test_vit_of_imagenet_21k_is_a_standard_transformer() -> None:
    name = "vit_base_patch16_224.orig_in21k_ft_in1k"
    args = {"img_size": 64, "embed_dim": 32, "depth": 3, "num_heads": 2}
    model = network(**{"model.backbone": name, "model.backbone_args": args})
    assert model(torch.zeros(1, 3, 48, 64)).seg.shape[-2:] == (3, 4)
