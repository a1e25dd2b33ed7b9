"""The mix transformer, SegFormer's encoder (Xie et al., NeurIPS 2021, section 3.1), with strides of one's choice.

Written from the paper. Parts have the names of SegFormer's checkpoints. B images, N = h*w tokens, D a stage's width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers.drop import DropPath
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mcc_core.networks.compiled import compiled
from mcc_core.networks.mix_sizes import MixSizes

_STAGES = (1, 2, 3, 4)
_EPSILON = 1e-6  # of the norms around blocks; those of merged patches and keys have torch's


class PatchEmbed(nn.Module):
    """Overlapping patches merged into tokens by a strided convolution."""

    def __init__(self, inputs: int, width: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(inputs, width, kernel, stride, padding=kernel // 2)
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Tokens B,N,D of maps B,C,H,W, and their grid h,w."""
        maps = self.proj(x)
        return self.norm(maps.flatten(2).transpose(1, 2)), (maps.shape[-2], maps.shape[-1])


class Attention(nn.Module):
    """Self-attention whose keys and values are of squares of tokens, merged by a convolution (Eq. 2)."""

    def __init__(self, width: int, heads: int, merged: int) -> None:
        super().__init__()
        self.num_heads, self.merged = heads, merged
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(width, 2 * width)
        self.proj = nn.Linear(width, width)
        if merged > 1:
            self.sr = nn.Conv2d(width, width, merged, merged)
            self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        """Tokens B,N,D of a grid."""
        seen = x
        if self.merged > 1:
            seen = self.norm(self.sr(x.transpose(1, 2).unflatten(2, grid)).flatten(2).transpose(1, 2))
        queries = self.q(x).unflatten(2, (self.num_heads, -1)).transpose(1, 2)
        keys, values = self.kv(seen).unflatten(2, (2, self.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        return self.proj(F.scaled_dot_product_attention(queries, keys, values).transpose(1, 2).flatten(2))


class DepthwiseConv(nn.Module):
    """A 3x3 convolution of each channel, which stands in for a table of positions."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.dwconv = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)

    def forward(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        """Tokens B,N,D of a grid."""
        return self.dwconv(x.transpose(1, 2).unflatten(2, grid)).flatten(2).transpose(1, 2)


class MixFFN(nn.Module):
    """Two linear layers with a depthwise convolution and GELU between them (Eq. 3)."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.dwconv = DepthwiseConv(hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        """Tokens B,N,D of a grid."""
        return self.fc2(F.gelu(self.dwconv(self.fc1(x), grid)))


class Block(nn.Module):
    """A pre-norm transformer block with stochastic depth."""

    def __init__(self, width: int, heads: int, merged: int, mlp_ratio: int, drop_path: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, _EPSILON)
        self.attn = Attention(width, heads, merged)
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()
        self.norm2 = nn.LayerNorm(width, _EPSILON)
        self.mlp = MixFFN(width, mlp_ratio * width)
        self.attended, self.fed = _attended, _fed

    def forward(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        """Tokens B,N,D of a grid."""
        x = x + self.drop_path(self.attended(self, x, grid))
        return x + self.drop_path(self.fed(self, x, grid))


# What may be compiled of a block. Stochastic depth, whose rate each block has of its own, stays out of it.


def _attended(block: Block, x: Tensor, grid: tuple[int, int]) -> Tensor:
    return block.attn(block.norm1(x), grid)


def _fed(block: Block, x: Tensor, grid: tuple[int, int]) -> Tensor:
    return block.mlp(block.norm2(x), grid)


@dataclass(frozen=True)
class Stages:
    """One forward pass of images B,3,H,W."""

    maps: tuple[Tensor, Tensor, Tensor, Tensor]  # B,D,h,w of each stage, normalised
    last_inputs: tuple[Tensor, ...]  # B,N,D before each block of the last stage

    def detach(self) -> Stages:
        """The same values without their graph."""
        first, two, three, four = (x.detach() for x in self.maps)
        return Stages((first, two, three, four), tuple(x.detach() for x in self.last_inputs))


class MixTransformer(nn.Module):
    """Four stages of overlapping patches and attention over fewer keys.

    Args:
        strides: of the four patch embeddings. Kernels stay, so that pretrained weights load.
        drop_path: stochastic depth of the last block; linear from 0.
    """

    def __init__(self, sizes: MixSizes, strides: Sequence[int], drop_path: float) -> None:
        super().__init__()
        self.widths, self.depths = sizes.embed_dims, sizes.depths
        total, number, inputs = sum(sizes.depths), 0, 3
        for stage, stride in zip(_STAGES, strides, strict=True):
            i = stage - 1
            width = sizes.embed_dims[i]
            setattr(self, f"patch_embed{stage}", PatchEmbed(inputs, width, 7 if stage == 1 else 3, stride))
            blocks = nn.ModuleList()
            for _ in range(sizes.depths[i]):
                rate = drop_path * number / max(1, total - 1)
                blocks.append(Block(width, sizes.num_heads[i], sizes.sr_ratios[i], sizes.mlp_ratios[i], rate))
                number += 1
            setattr(self, f"block{stage}", blocks)
            setattr(self, f"norm{stage}", nn.LayerNorm(width, _EPSILON))
            inputs = width
        self.stride = math.prod(strides)
        # The smallest side of an image whose keys can still be merged in every stage.
        self.least_side = max(math.prod(strides[:s]) * sizes.sr_ratios[s - 1] for s in _STAGES)
        self.use_bfloat16 = self.recompute = False
        self.apply(_initialise)

    def blocks(self, stage: int) -> Any:
        """The blocks of a stage, counted from 1."""
        return getattr(self, f"block{stage}")

    def compile_blocks(self) -> None:
        """Compile the blocks' computation at their first use, once for each stage and any number of tokens."""
        attended, fed = compiled(_attended), compiled(_fed)
        for stage in _STAGES:
            for block in self.blocks(stage):
                block.attended, block.fed = attended, fed

    def forward(self, images: Tensor) -> Stages:
        """Normalised maps of all stages of images B,3,H,W."""
        with torch.autocast(images.device.type, dtype=torch.bfloat16, enabled=self.use_bfloat16):
            x, maps, last_inputs = images, [], []
            for stage in _STAGES:
                tokens, grid = getattr(self, f"patch_embed{stage}")(x)
                for block in self.blocks(stage):
                    if stage == 4:
                        last_inputs.append(tokens.to(images.dtype))
                    recompute = self.recompute and torch.is_grad_enabled()
                    tokens = checkpoint(block, tokens, grid, use_reentrant=False) if recompute else block(tokens, grid)
                tokens = getattr(self, f"norm{stage}")(tokens)
                x = tokens.transpose(1, 2).unflatten(2, grid).contiguous()
                maps.append(x.to(images.dtype))
        return Stages((maps[0], maps[1], maps[2], maps[3]), tuple(last_inputs))


def _initialise(module: nn.Module) -> None:
    """Linear layers narrow, convolutions by what leaves them; biases 0."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
    elif isinstance(module, nn.Conv2d):
        fan_out = module.out_channels * math.prod(module.kernel_size) // module.groups
        nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))
    else:
        return
    assert module.bias is not None
    nn.init.zeros_(module.bias)
