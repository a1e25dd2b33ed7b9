"""A frozen CLIP of open_clip: texts to features, images to what class maps are made of.

Shapes: T = 1+N tokens, class token first, N = h*w patches, D width, E the space of texts and images.
"""

from __future__ import annotations

import copy
import importlib.util
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms.v2 import functional as TF

from mcc_core.clip.config import ClipConfig, ClipNetworkConfig
from mcc_core.clip.prompts import Prompts
from mcc_core.determinism import bicubic
from mcc_core.device import moved
from mcc_core.errors import UsageError
from mcc_core.files import file_digest
from mcc_core.networks.backbones import shape_text
from mcc_core.weights_file import named_tensors, read_content

_NOT_WEIGHTS = ("input_resolution", "context_length", "vocab_size")  # of OpenAI's files


@dataclass(frozen=True)
class Seen:
    """An image after all blocks but the last."""

    tokens: Tensor  # T,D
    attention: Tensor  # N,N mean over heads and the last blocks, queries first
    grid: tuple[int, int]  # h,w


class ClipNetwork:
    """A CLIP that is not trained, of whole images and texts.

    Attributes:
        digest: of its weights' file, for the record.

    Raises UsageError where open_clip is not installed, knows no such network, or the weights cannot be had or do not
    fit.
    """

    def __init__(self, config: ClipNetworkConfig, device: torch.device) -> None:
        require_clip()
        self.device = device
        self.clip, self._tokenizer = _network(config)
        self.digest = _load(self.clip, config)
        self.clip.requires_grad_(False).eval().to(device)
        self.visual: Any = self.clip.visual

    @torch.no_grad()
    def text_features(self, names: Sequence[str], prompts: Prompts) -> Tensor:
        """Unit features len(names),E: of each name the mean over templates. Raises UsageError for a text too long."""
        found = []
        for name in names:
            texts = prompts.filled(name)
            for text in texts:
                if len(self._tokenizer.encode(text)) > self.clip.context_length - 2:  # begin and end
                    raise UsageError(f"clip.prompts: {text[:60]!r}...: longer than the network's {self._words()}")
            tokens = self._tokenizer(texts, context_length=self.clip.context_length).to(self.device)
            features = F.normalize(self.clip.encode_text(tokens), dim=-1)
            found.append(F.normalize(features.mean(0), dim=-1))
        return torch.stack(found)

    def _words(self) -> str:
        return f"{self.clip.context_length} tokens"

    def image_features(self, images: Tensor) -> Tensor:
        """Unit features B,E of images B,3,H,W that are normalised as CLIP's are; gradients reach the images."""
        small = F.interpolate(images, size=self.visual.image_size, mode="bilinear", align_corners=False)
        return F.normalize(self.clip.encode_image(small), dim=-1)


class FrozenClip(ClipNetwork):
    """A CLIP that is not trained, with what class maps are made of.

    Raises UsageError as any, and where `attention_blocks` are more than it has.
    """

    def __init__(self, config: ClipConfig, device: torch.device) -> None:
        super().__init__(config, device)
        self.config = config
        self.patch: int = self.visual.patch_size[0]
        if config.attention_blocks > len(self.visual.transformer.resblocks):
            count = len(self.visual.transformer.resblocks)
            raise UsageError(f"clip.attention_blocks: {config.attention_blocks}: {config.model} has {count} blocks")

    @torch.no_grad()
    def seen(self, image: np.ndarray) -> Seen:
        """What the blocks before the last make of an image H,W,3 uint8."""
        pixels = moved(self.pixels(image), self.device)
        visual = self.visual
        patches = visual.conv1(pixels)
        grid = (patches.shape[-2], patches.shape[-1])
        tokens = torch.cat([visual.class_embedding.expand(1, 1, -1), patches.flatten(2).transpose(1, 2)], 1)
        tokens = visual.ln_pre(tokens + self._positions(grid))
        *blocks, last = visual.transformer.resblocks
        first = len(blocks) + 1 - self.config.attention_blocks
        total: Tensor | float = 0.0
        for number, block in enumerate((*blocks, last)):
            if number >= first:
                total = total + attention_of(block, tokens)[0, 1:, 1:]
            if block is not last:
                tokens = block(tokens)
        assert isinstance(total, Tensor)
        return Seen(tokens[0], total / self.config.attention_blocks, grid)

    def pixels(self, image: np.ndarray) -> Tensor:
        """1,3,h*P,w*P of an image H,W,3 uint8: sides rounded up to patches of P pixels, normalised as CLIP's are."""
        from open_clip import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD

        height, width = image.shape[:2]
        factor = min(1.0, self.config.long_side / max(height, width))
        size = [max(1, math.ceil(side * factor / self.patch)) * self.patch for side in (height, width)]
        small = TF.resize(
            torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255,
            size,
            TF.InterpolationMode.BICUBIC,
            antialias=min(height, width) > 1,
        )
        return TF.normalize(small.clamp(0, 1), list(OPENAI_DATASET_MEAN), list(OPENAI_DATASET_STD))

    def last_block(self, tokens: Tensor, normed: Tensor) -> Tensor:
        """Image feature E, of unit length, of tokens T,D that enter the last block, and of their norm T,D."""
        visual, block = self.visual, self.visual.transformer.resblocks[-1]
        whole = tokens[None] + block.ls_1(block.attention(normed[None]))
        whole = whole + block.ls_2(block.mlp(block.ln_2(whole)))
        return F.normalize(visual.ln_post(whole[0, 0]) @ visual.proj, dim=-1)

    def _positions(self, grid: tuple[int, int]) -> Tensor:
        """Table 1,T,D resized to a grid of patches."""
        table, old = self.visual.positional_embedding[None], self.visual.grid_size
        if tuple(old) == grid:
            return table
        patches = bicubic(table[:, 1:].transpose(1, 2).unflatten(2, tuple(old)), grid)
        return torch.cat([table[:, :1], patches.flatten(2).transpose(1, 2)], 1)


def attention_of(block: Any, tokens: Tensor) -> Tensor:
    """Attention B,T,T of an open_clip block that gets the tokens B,T,D: mean over heads of the softmax over keys."""
    attn = block.attn
    joined = F.linear(block.ln_1(tokens), attn.in_proj_weight, attn.in_proj_bias)
    queries, keys, _ = joined.unflatten(2, (3, attn.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
    return (queries @ keys.transpose(-2, -1) / math.sqrt(queries.shape[-1])).softmax(-1).mean(1)


def require_clip() -> None:
    """Raise UsageError unless open_clip can be imported."""
    if importlib.util.find_spec("open_clip") is None:
        raise UsageError("CLIP needs open_clip, which is not installed: run `pip install 'mcc[clip]'`")


def _network(config: ClipNetworkConfig) -> tuple[Any, Any]:
    """The network with random weights, and its tokenizer."""
    import open_clip
    from open_clip.tokenizer import SimpleTokenizer
    from open_clip.transformer import ResidualAttentionBlock, VisionTransformer

    sizes = open_clip.get_model_config(config.model)
    if sizes is None:
        close = [name for name in open_clip.list_models() if name.startswith("ViT-B")][:5]
        raise UsageError(f"clip.model: {config.model!r}: open_clip has none; such as {', '.join(close)}")
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            clip = open_clip.CLIP(**_overlaid(sizes, config.model_args))
    except Exception as error:  # of sizes that do not go together
        line = str(error).splitlines()[0] if str(error) else type(error).__name__
        what = f"clip.model_args: {config.model_args}" if config.model_args else f"clip.model: {config.model!r}"
        raise UsageError(f"{what}: open_clip cannot build it as a CLIP: {line[:200]}") from None
    tokenizer = open_clip.get_tokenizer(config.model)
    visual = clip.visual
    plain = isinstance(visual, VisionTransformer) and (visual.attn_pool, visual.pool_type) == (None, "tok")
    blocks = visual.transformer.resblocks if plain else ()
    if (
        not plain
        or visual.final_ln_after_pool
        or any(type(block) is not ResidualAttentionBlock for block in blocks)
        or not isinstance(tokenizer, SimpleTokenizer)
    ):
        raise UsageError(f"clip.model: {config.model!r}: expected CLIP's own vision transformer with a class token")
    return clip, tokenizer


def _overlaid(sizes: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Nested sizes with others in their place."""
    merged = copy.deepcopy(dict(sizes))
    for name, value in changes.items():
        own = merged.get(name)
        merged[name] = _overlaid(own, value) if isinstance(own, dict) and isinstance(value, Mapping) else value
    return merged


def _load(clip: Any, config: ClipNetworkConfig) -> str:
    """Put the weights in; the digest of their file."""
    if config.weights == "random":
        return "random"
    path = config.file or _downloaded(config)
    where = f"clip.weights: {path}"
    state = named_tensors(read_content(path, "clip.weights: "), where)
    state = {name: tensor.float() for name, tensor in state.items() if name not in _NOT_WEIGHTS}
    own = clip.state_dict()
    if missing := [name for name in own if name not in state]:
        raise UsageError(f"{where}: lacks {len(missing)} tensors of {config.model}, such as {missing[0]}")
    if wrong := [name for name in own if state[name].shape != own[name].shape]:
        found, expected = shape_text(state[wrong[0]]), shape_text(own[wrong[0]])
        raise UsageError(f"{where}: does not fit {config.model}: {wrong[0]} is {found}, not {expected}")
    clip.load_state_dict({name: state[name] for name in own})
    return file_digest(path)


def _downloaded(config: ClipNetworkConfig) -> Path:
    import open_clip

    tags = open_clip.list_pretrained_tags_by_model(config.model)
    if config.weights not in tags:
        raise UsageError(
            f"clip.weights: {config.weights!r}: {config.model} has {', '.join(tags) or 'none to download'}; "
            "or give a local file, or random"
        )
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # a line for each of its own tries, which we sum up
    try:
        return Path(open_clip.download_pretrained(open_clip.get_pretrained_cfg(config.model, config.weights)))
    except Exception as error:
        raise UsageError(
            f"clip.weights: open_clip could not download {config.model} {config.weights} ({type(error).__name__}); "
            "give a local file (--set clip.weights=FILE, .safetensors or .pt)"
        ) from None
