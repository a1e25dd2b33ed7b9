"""Formulas of MCTformer against loops in double precision, and its encoder against timm's."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor
from trained import smallest

from mcc_core.errors import UsageError
from mcc_core.methods.mctformer.maps import fused, pooled, spread
from mcc_core.methods.mctformer.network import MCTformerNet
from mcc_core.methods.registry import METHODS
from mcc_core.networks.backbones import build_vit
from mcc_core.networks.class_tokens import MultiClassEncoder, attention_of
from mcc_core.pseudo_labels.cam import map_logits

SIDE = 32


def randn(*size: int, seed: int = 0) -> Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def plain_vit(seed: int = 0) -> Any:
    experiment: Any = smallest("mctformer")
    torch.manual_seed(seed)
    config = experiment.model.model_copy(update={"backbone_args": experiment.backbone_args()})
    return build_vit(config).double().eval()


def network(fields: dict[str, Any] | None = None, seed: int = 0) -> MCTformerNet:
    experiment: Any = smallest("mctformer", **(fields or {}))
    torch.manual_seed(seed)
    return MCTformerNet(experiment, 3).double().eval()


def test_attention_of_a_block_is_the_softmax_of_each_head() -> None:
    block, tokens = plain_vit().blocks[1], randn(2, 5, 32)
    found = attention_of(block, tokens)
    width = 32 // block.attn.num_heads
    for b in range(2):
        joined = F.linear(block.norm1(tokens[b]), block.attn.qkv.weight, block.attn.qkv.bias)
        for i in range(5):
            row = torch.zeros(5, dtype=torch.float64)
            for head in range(block.attn.num_heads):
                at = slice(head * width, (head + 1) * width)
                q, k = joined[i, :32][at], joined[:, 32:64][:, at]
                scores = torch.stack([(q @ k[j] / math.sqrt(width)).exp() for j in range(5)])
                row += scores / scores.sum() / block.attn.num_heads
            torch.testing.assert_close(found[b, i], row)


def test_class_maps_are_attention_times_patch_maps_spread_by_affinity() -> None:
    net, images = network({"maps.last_blocks": 2}), randn(1, 3, SIDE, SIDE)
    with torch.no_grad():
        found = net.class_maps(images)["cam"][0]
        vit, seen = net.encoder.vit, []
        tokens = net.encoder.embed(images)
        for block in vit.blocks:
            seen.append(attention_of(block, tokens)[0])
            tokens = block(tokens)
        cam = net.head(tokens[:, 3:].transpose(1, 2).unflatten(2, (4, 4)))[0]
    count = len(seen)
    product = torch.zeros(3, 16, dtype=torch.float64)
    for c in range(3):
        for n in range(16):
            attention = (seen[-1][c, 3 + n] + seen[-2][c, 3 + n]) / 2
            product[c, n] = max(float(cam[c].flatten()[n]), 0.0) * attention
    for c in range(3):
        for n in range(16):
            value = sum(
                sum(float(layer[3 + n, 3 + m]) for layer in seen) / count * float(product[c, m]) for m in range(16)
            )
            assert float(found[c].flatten()[n]) == pytest.approx(value, rel=1e-10)
    net.maps = net.maps.model_copy(update={"affinity": False})
    with torch.no_grad():
        torch.testing.assert_close(net.class_maps(images)["cam"][0].flatten(1), product)


def test_fusion_and_spreading() -> None:
    maps, affinity = randn(2, 3, 2, 3), randn(2, 6, 6, seed=1).softmax(-1)
    assert (fused(-maps.abs(), maps) == 0).all()
    torch.testing.assert_close(spread(maps, torch.eye(6, dtype=torch.float64).expand(2, 6, 6)), maps)
    expected = (affinity[1] @ maps[1, 2].flatten()).reshape(2, 3)
    torch.testing.assert_close(spread(maps, affinity)[1, 2], expected)


@pytest.mark.parametrize("decay", [1.0, 0.9])
def test_pooling_by_rank(decay: float) -> None:
    maps = randn(2, 3, 2, 2)
    for b in range(2):
        for k in range(3):
            values = sorted(maps[b, k].flatten().tolist(), reverse=True)
            weights = [decay**r for r in range(4)]
            expected = sum(w * v for w, v in zip(weights, values, strict=True)) / sum(weights)
            assert float(pooled(maps, decay)[b, k]) == pytest.approx(expected)


def test_scores_are_means_over_channels_and_over_patches() -> None:
    net, images = network(), randn(2, 3, SIDE, SIDE)
    with torch.no_grad():
        scores, output = net.scores(images), net(images)
        tokens = net.encoder.tokens(images)
    torch.testing.assert_close(scores.tokens, tokens.classes.sum(2) / 32)
    torch.testing.assert_close((scores.tokens + scores.patches) / 2, output.cls)
    torch.testing.assert_close(scores.patches, output.features.patch_cam.mean((2, 3)))
    ranked = network({"model.pooling": "ranked", "model.rank_decay": 0.5})
    with torch.no_grad():
        torch.testing.assert_close(ranked.scores(images).patches, pooled(output.features.patch_cam, 0.5))


def test_one_class_token_is_timms_network_before_its_norm() -> None:
    vit, images = plain_vit(), randn(2, 3, SIDE, SIDE)
    encoder = MultiClassEncoder(plain_vit(), 1).eval()
    vit.norm = torch.nn.Identity()
    with torch.no_grad():
        whole, found = vit.forward_features(images), encoder.tokens(images)
    torch.testing.assert_close(found.classes, whole[:, :1])
    torch.testing.assert_close(found.patches.flatten(2).transpose(1, 2), whole[:, 1:])


def test_class_tokens_begin_as_the_pretrained_one(tmp_path: Path) -> None:
    state = {name: tensor.float() for name, tensor in plain_vit(seed=5).state_dict().items()}
    save_file(state, tmp_path / "vit.safetensors")
    loaded = network({"model.weights": tmp_path / "vit.safetensors"})
    filled = network(seed=1)
    assert METHODS["mctformer"].fill_backbone(filled, state, "a file") == ("norm.weight", "norm.bias")
    for net in (loaded, filled):
        own = net.encoder.vit
        for c in range(3):
            torch.testing.assert_close(own.cls_token[0, c], state["cls_token"][0, 0].double())
            torch.testing.assert_close(own.pos_embed[0, c], state["pos_embed"][0, 0].double())
        torch.testing.assert_close(own.pos_embed[0, 3:], state["pos_embed"][0, 1:].double())
        torch.testing.assert_close(own.blocks[1].mlp.fc1.weight, state["blocks.1.mlp.fc1.weight"].double())


def test_a_segmentation_of_class_maps() -> None:
    maps, cls = randn(1, 3, 4, 4), torch.tensor([[1.0, -1.0, 2.0]], dtype=torch.float64)
    label = map_logits(maps, cls, 0.3).argmax(1)[0]
    for i in range(4):
        for j in range(4):
            values = [0.3]
            for c in range(3):
                positive = maps[0, c].clamp(min=0)
                low, high = float(positive.min()), float(positive.max())
                values.append((float(positive[i, j]) - low) / (high - low + 1e-5) if cls[0, c] > 0 else 0.0)
            assert int(label[i, j]) == values.index(max(values))
    shares = map_logits(maps, cls, 0.3).softmax(1)[0, :, 1, 2]
    assert float(shares.sum()) == pytest.approx(1) and float(shares[2]) < 1e-4


def test_what_does_not_fit_is_one_line() -> None:
    with pytest.raises(UsageError, match=r"augment\.resize \(30\) must be at least train\.crop \(32\)"):
        smallest("mctformer", **{"augment.resize": 30})
    with pytest.raises(UsageError, match=r"maps\.last_blocks: 4: the backbone has 3 blocks"):
        network({"maps.last_blocks": 4})
    with pytest.raises(UsageError, match=r"model\.backbone: several class tokens need a backbone of one"):
        network({"model.backbone_args": smallest("mctformer").model.backbone_args | {"no_embed_class": True}})
