"""A frozen CLIP's class maps: against open_clip's own forward pass, and against slow forms in double precision."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from tiny_clip import CPU, TINY
from torch import Tensor

from mcc_core.clip.class_maps import affinity, aware_of_classes, class_maps, gradient_maps, in_boxes, scaled
from mcc_core.clip.config import ClipConfig
from mcc_core.clip.network import FrozenClip, Seen, attention_of
from mcc_core.clip.prompts import load_prompts
from mcc_core.errors import UsageError


def randn(*size: int, seed: int = 0) -> Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture(scope="module")
def clip() -> Iterator[FrozenClip]:
    yield FrozenClip(TINY, CPU)


@pytest.fixture(scope="module")
def double() -> FrozenClip:
    made = FrozenClip(TINY, CPU)
    made.clip.double()
    return made


def image(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_the_parts_make_the_whole_network(clip: FrozenClip) -> None:
    picture = image(32, 32)
    seen = clip.seen(picture)
    block = clip.visual.transformer.resblocks[-1]
    with torch.no_grad():
        whole = clip.clip.encode_image(clip.pixels(picture), normalize=True)[0]
        torch.testing.assert_close(clip.last_block(seen.tokens, block.ln_1(seen.tokens)), whole)
    assert seen.grid == (4, 4) and seen.tokens.shape == (17, 16) and seen.attention.shape == (16, 16)


def test_images_of_any_size_are_seen_in_whole_patches(clip: FrozenClip) -> None:
    assert clip.seen(image(1, 70)).grid == (1, 9)
    made = class_maps(clip, image(37, 50), *F.normalize(torch.randn(2, 3, 12), dim=-1))
    assert made.shape == (3, 5, 7) and made.amin() >= 0 and made.amax() <= 1
    small = FrozenClip.__new__(FrozenClip)
    small.config, small.patch = TINY.model_copy(update={"long_side": 16}), 8
    assert small.pixels(image(37, 50)).shape == (1, 3, 16, 16)


def test_attention_of_the_last_blocks_is_a_mean_over_heads(double: FrozenClip) -> None:
    block, tokens = double.visual.transformer.resblocks[0], randn(1, 5, 16)
    found = attention_of(block, tokens)[0]
    joined = F.linear(block.ln_1(tokens)[0], block.attn.in_proj_weight, block.attn.in_proj_bias)
    for i in range(5):
        row = torch.zeros(5, dtype=torch.float64)
        for head in (slice(0, 8), slice(8, 16)):
            scores = torch.stack([joined[i, :16][head] @ joined[j, 16:32][head] / math.sqrt(8) for j in range(5)])
            row += scores.exp() / scores.exp().sum() / 2
        torch.testing.assert_close(found[i], row)
    _, weights = block.attn(*[block.ln_1(tokens)] * 3, need_weights=True)
    torch.testing.assert_close(found, weights[0])


def test_softmax_gradients_are_those_of_differences(double: FrozenClip) -> None:
    tokens, texts = randn(7, 16), F.normalize(randn(5, 12, seed=1), dim=-1)
    seen = Seen(tokens, torch.eye(6), (2, 3))
    found = gradient_maps(double, seen, texts[:2], texts[2:])
    normed = double.visual.transformer.resblocks[-1].ln_1(tokens).detach()

    def share(shift: Tensor, number: int) -> float:
        moved = normed.clone()
        moved[1:] += shift
        with torch.no_grad():
            logits = double.clip.logit_scale.exp() * texts @ double.last_block(tokens, moved)
        return float(logits.softmax(0)[number])

    for number in range(2):
        weights = []
        for channel in range(16):
            shift = torch.zeros(16, dtype=torch.float64)
            shift[channel] = 1e-5
            weights.append((share(shift, number) - share(-shift, number)) / 2e-5 / 6)  # the mean over 6 patches
        for n in range(6):
            value = sum(float(normed[1 + n, d]) * weights[d] for d in range(16))
            assert float(found[number].flatten()[n]) == pytest.approx(max(0.0, value), rel=1e-5, abs=1e-9)


def test_affinity_is_normalised_both_ways_and_squared() -> None:
    attention = randn(4, 4).softmax(1)
    config = ClipConfig(rounds=2, squarings=1)
    rows = [[float(x) for x in row] for row in attention]
    for _ in range(2):
        columns = [sum(rows[i][j] for i in range(4)) for j in range(4)]
        rows = [[rows[i][j] / columns[j] for j in range(4)] for i in range(4)]
        rows = [[x / sum(row) for x in row] for row in rows]
    even = [[(rows[i][j] + rows[j][i]) / 2 for j in range(4)] for i in range(4)]
    squared = [[sum(even[i][k] * even[k][j] for k in range(4)) for j in range(4)] for i in range(4)]
    torch.testing.assert_close(affinity(attention, config), torch.tensor(squared, dtype=torch.float64))
    many = affinity(attention, ClipConfig(rounds=50))
    torch.testing.assert_close(many.sum(0), torch.ones(4, dtype=torch.float64))


def test_a_class_spreads_from_its_own_boxes() -> None:
    cam = torch.zeros(4, 5, dtype=torch.float64)
    cam[0, 0], cam[1, 1], cam[3, 4], cam[0, 4] = 1.0, 0.7, 0.41, 0.4  # joined by a corner; alone; not above
    mask = in_boxes(cam, 0.4)
    expected = torch.zeros_like(cam)
    expected[:2, :2] = 1
    expected[3, 4] = 1
    assert torch.equal(mask, expected) and not in_boxes(torch.zeros_like(cam), 0.4).any()
    matrix, maps = randn(20, 20).softmax(1), torch.stack([cam, scaled(randn(1, 4, 5))[0]])
    found = aware_of_classes(maps, matrix, 0.4)
    for k in range(2):
        inside = in_boxes(maps[k], 0.4).flatten()
        values = [
            sum(float(matrix[n, m]) * float(inside[m]) * float(maps[k].flatten()[m]) for m in range(20))
            for n in range(20)
        ]
        low, high = min(values), max(values)
        spread = torch.tensor([(v - low) / (high - low) for v in values], dtype=torch.float64)
        torch.testing.assert_close(found[k].flatten(), spread)


def test_maps_are_scaled_however_small_they_are() -> None:
    assert scaled(torch.tensor([[[1e-12, 3e-12]], [[5.0, 5.0]]])).tolist() == [[[0, 1]], [[0, 0]]]


def test_texts_are_means_of_their_templates(clip: FrozenClip) -> None:
    prompts = load_prompts("default", ["cat"]).model_copy(update={"templates": ("a {}.", "the {}")})
    found = clip.text_features(["cat", "dog"], prompts)
    with torch.no_grad():
        each = [clip.clip.encode_text(clip._tokenizer([text]), normalize=True)[0] for text in ("a dog.", "the dog")]
    torch.testing.assert_close(found[1], F.normalize((each[0] + each[1]) / 2, dim=0))
    with pytest.raises(UsageError, match=r"clip\.prompts: 'a cat cat.*\.\.\.: longer than the network's 77 tokens"):
        clip.text_features(["cat " * 90], prompts)


def test_weights_of_a_file(clip: FrozenClip, tmp_path: Path) -> None:
    state = {name: tensor + 0.5 for name, tensor in clip.clip.state_dict().items()}
    save_file(state, tmp_path / "clip.safetensors")
    half = {name: tensor.half() for name, tensor in state.items()}
    torch.save(half | {"vocab_size": torch.tensor(49408)}, tmp_path / "clip.pt")  # as OpenAI's files are
    for name in ("clip.safetensors", "clip.pt"):
        made = FrozenClip(TINY.model_copy(update={"weights": str(tmp_path / name)}), CPU)
        assert made.digest != "random" and not any(p.requires_grad for p in made.clip.parameters())
        torch.testing.assert_close(made.visual.proj, state["visual.proj"], atol=1e-2, rtol=1e-2)
    del state["visual.proj"]
    save_file(state, tmp_path / "less.safetensors")
    for fields, line in (
        ({"weights": str(tmp_path / "less.safetensors")}, r"less\.safetensors: lacks 1 tensors .* visual\.proj"),
        ({"weights": str(tmp_path / "none.pt")}, r"clip\.weights: .*none\.pt: no such file"),
        ({"weights": "opnai"}, r"clip\.weights: 'opnai': ViT-B-16-quickgelu has openai.* or give a local file"),
        ({"model": "ViT-Q"}, r"clip\.model: 'ViT-Q': open_clip has none; such as ViT-B"),
        ({"model": "RN50", "model_args": {}}, r"clip\.model: 'RN50': expected CLIP's own vision transformer"),
        ({"model_args": {"embed": 3}}, r"clip\.model_args: \{'embed': 3\}: open_clip cannot build it"),
        ({"attention_blocks": 9}, r"clip\.attention_blocks: 9: ViT-B-16-quickgelu has 3 blocks"),
    ):
        with pytest.raises(UsageError, match=line):
            FrozenClip(TINY.model_copy(update=fields), CPU)


def test_a_download_that_fails_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    import open_clip

    def fails(config: Any) -> str:
        raise OSError("no way there")

    monkeypatch.setattr(open_clip, "download_pretrained", fails)
    with pytest.raises(UsageError, match=r"could not download ViT-B-16-quickgelu openai \(OSError\); give a local"):
        FrozenClip(TINY.model_copy(update={"weights": "openai"}), CPU)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"not installed: run `pip install 'mcc\[clip\]'`"):
        FrozenClip(TINY, CPU)
