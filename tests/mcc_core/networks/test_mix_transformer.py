"""The mix transformer: published sizes, attention by its formula, strides, weights in both namings."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from mcc_core.errors import UsageError
from mcc_core.experiment_files import resolve
from mcc_core.import_weights import import_weights
from mcc_core.networks.mix_sizes import MIX_TRANSFORMERS, MixSizes, mix_sizes
from mcc_core.networks.mix_transformer import Attention, MixTransformer
from mcc_core.networks.mix_weights import load_mix_transformer

SMALL = MixSizes(embed_dims=(8, 8, 16, 16), depths=(1, 2, 1, 2), num_heads=(1, 2, 2, 4))
MILLIONS = {"mit_b0": 3.4, "mit_b1": 13.1, "mit_b2": 24.2, "mit_b3": 44.0, "mit_b4": 60.8, "mit_b5": 81.4}


def small(strides: tuple[int, ...] = (4, 2, 2, 1), drop_path: float = 0.0) -> MixTransformer:
    torch.manual_seed(0)
    return MixTransformer(SMALL, strides, drop_path).eval()


def transformers_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors in SegFormer's naming as the library transformers names them, a classifier behind them."""
    found: dict[str, Tensor] = {"classifier.weight": torch.zeros(1000, 16)}
    parts = {"norm1": "layer_norm_1", "norm2": "layer_norm_2", "attn.q": "attention.self.query"}
    parts |= {"attn.sr": "attention.self.sr", "attn.norm": "attention.self.layer_norm"}
    parts |= {"attn.proj": "attention.output.dense", "mlp.fc1": "mlp.dense1", "mlp.fc2": "mlp.dense2"}
    for name, tensor in state.items():
        kind, stage, rest = re.fullmatch(r"(patch_embed|block|norm)(\d)\.(.+)", name).groups()  # type: ignore[union-attr]
        if kind == "norm":
            found[f"segformer.encoder.layer_norm.{int(stage) - 1}.{rest}"] = tensor
        elif kind == "patch_embed":
            layer = rest.replace("norm.", "layer_norm.")
            found[f"segformer.encoder.patch_embeddings.{int(stage) - 1}.{layer}"] = tensor
        else:
            number, part, end = re.fullmatch(r"(\d+)\.(.+)\.(\w+)", rest).groups()  # type: ignore[union-attr]
            begin = f"segformer.encoder.block.{int(stage) - 1}.{number}"
            if part == "attn.kv":
                keys, values = tensor.chunk(2)
                found[f"{begin}.attention.self.key.{end}"] = keys
                found[f"{begin}.attention.self.value.{end}"] = values
            else:
                found[f"{begin}.{parts.get(part, part)}.{end}"] = tensor
    return found


@pytest.mark.parametrize("name", MIX_TRANSFORMERS)
def test_published_sizes_have_the_published_number_of_parameters(name: str) -> None:
    with torch.device("meta"):
        network = MixTransformer(MIX_TRANSFORMERS[name], (4, 2, 2, 2), 0.1)
    assert sum(p.numel() for p in network.parameters()) / 1e6 == pytest.approx(MILLIONS[name], rel=0.03)
    rates = [getattr(b.drop_path, "drop_prob", 0.0) for stage in (1, 2, 3, 4) for b in network.blocks(stage)]
    assert rates == pytest.approx([0.1 * i / (len(rates) - 1) for i in range(len(rates))])


def test_attention_is_its_formula() -> None:
    """Softmax of q k^T / sqrt(d) over keys, which are merged squares of 2x2 tokens."""
    torch.manual_seed(1)
    attention = Attention(8, 2, 2).double()
    x = torch.randn(1, 12, 8, dtype=torch.float64)
    grid = (2, 6)
    merged = torch.stack([x[0].view(2, 6, 8)[:, 2 * j : 2 * j + 2].permute(2, 0, 1).flatten() for j in range(3)])
    assert attention.sr.bias is not None
    keys_of = attention.norm(merged @ attention.sr.weight.flatten(1).T + attention.sr.bias)
    q, (k, v) = attention.q(x[0]), attention.kv(keys_of).chunk(2, dim=1)
    heads = [slice(0, 4), slice(4, 8)]
    seen = torch.cat([(q[:, h] @ k[:, h].T / 2).softmax(1) @ v[:, h] for h in heads], 1)
    torch.testing.assert_close(attention(x, grid)[0], attention.proj(seen), rtol=1e-12, atol=1e-12)


def test_strides_are_what_is_asked() -> None:
    network = small()
    found = network(torch.randn(2, 3, 64, 97))
    assert [tuple(m.shape[1:]) for m in found.maps] == [(8, 16, 25), (8, 8, 13), (16, 4, 7), (16, 4, 7)]
    assert len(found.last_inputs) == 2 and found.last_inputs[0].shape == (2, 28, 16)
    assert (network.stride, network.least_side) == (16, 32)
    assert small((4, 2, 1, 1))(torch.randn(1, 3, 32, 32)).maps[3].shape[-2:] == (4, 4)


def test_recomputed_blocks_have_the_same_gradients() -> None:
    network, images, found = small(drop_path=0.5).train(), torch.randn(2, 3, 32, 32), []
    for network.recompute in (False, True):
        network.zero_grad()
        torch.manual_seed(3)
        network(images).maps[3].square().mean().backward()
        found.append([p.grad.clone() for p in network.parameters() if p.grad is not None])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("naming", ["segformer", "transformers", "checkpoint"])
def test_weights_load_in_every_naming(tmp_path: Path, naming: str) -> None:
    state, path = small().state_dict(), tmp_path / "mit.safetensors"
    named = {"segformer": state | {"head.weight": torch.zeros(1000, 16)}, "transformers": transformers_names(state)}
    named["checkpoint"] = {f"encoder.{name}": t for name, t in state.items()} | {"decoder.x": torch.zeros(1)}
    save_file({name: t.contiguous() for name, t in named[naming].items()}, path)
    network = MixTransformer(SMALL, (4, 2, 2, 2), 0.0)
    load_mix_transformer(network, "mit_b0", path)
    assert all(torch.equal(tensor, state[name]) for name, tensor in network.state_dict().items())


def test_a_backbone_in_the_naming_of_transformers_is_imported(tmp_path: Path) -> None:
    network = MixTransformer(MIX_TRANSFORMERS["mit_b0"], (4, 2, 2, 2), 0.0)
    save_file({n: t.contiguous() for n, t in transformers_names(network.state_dict()).items()}, tmp_path / "b0.pth")
    found = import_weights(tmp_path / "b0.pth")
    saved = found.checkpoint
    assert (found.kind, saved.experiment.method, saved.experiment.model.backbone) == ("backbone alone", "afa", "mit_b0")
    assert found.unused == ("classifier.weight",) and all(not name.startswith("encoder.") for name in found.fresh)
    assert torch.equal(saved.model["encoder.block2.1.attn.kv.bias"], network.blocks(2)[1].attn.kv.bias)


def test_what_does_not_fit_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = small().state_dict()
    network = MixTransformer(SMALL, (4, 2, 2, 1), 0.0)
    save_file({n: t for n, t in state.items() if not n.startswith("block4.1.")}, tmp_path / "less.pth")
    with pytest.raises(UsageError, match=r"less\.pth: lacks 16 tensors of the mix transformer, such as block4\.1"):
        load_mix_transformer(network, "mit_b0", tmp_path / "less.pth")
    save_file(state | {"norm4.weight": torch.zeros(3)}, tmp_path / "odd.pth")
    with pytest.raises(UsageError, match=r"odd\.pth: does not fit model\.backbone: norm4\.weight is 3, not 16"):
        load_mix_transformer(network, "mit_b0", tmp_path / "odd.pth")
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda *a, **k: (_ for _ in ()).throw(OSError("no net")))
    with pytest.raises(UsageError, match=r"could not download mit_b1 \(OSError\); give a local file"):
        load_mix_transformer(network, "mit_b1", "imagenet")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model.backbone": "mit_b9"}, r"backbone: 'mit_b9' is not a mix transformer: expected one of mit_b0"),
        ({"model.backbone_args": {"depth": 3}}, r"backbone_args: depth: unknown field, did you mean depths"),
        ({"model.backbone_args": {"depths": [1, 1, 1]}}, r"backbone_args: depths\[3\]: is missing"),
        ({"model.backbone_args": {"depths": [1, 1, 0, 1]}}, r"backbone_args: depths\[2\]: 0: must be at least 1"),
        ({"model.backbone_args": {"num_heads": [1, 2, 5, 7]}}, r"7 heads cannot share 256 channels"),
        ({"model.weights": "imagenet", "model.backbone_args": {"depths": [1, 1, 1, 1]}}, r"imagenet's do not fit"),
    ],
)
def test_sizes_are_checked_where_an_experiment_is_read(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        resolve("afa", {"model.backbone": "mit_b0", "model.weights": "random"} | fields)
    assert "\n" not in str(caught.value)
    assert mix_sizes("mit_b0", {"depths": [1, 1, 1, 1]}).depths == (1, 1, 1, 1)
