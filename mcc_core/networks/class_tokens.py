"""A timm vision transformer with one class token for each class, and the attention of its blocks.

Shapes: B images, C classes, N = h*w patches, T = C+N tokens, class tokens first, D width.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mcc_core.errors import UsageError
from mcc_core.networks.backbones import fill_backbone
from mcc_core.networks.encoder import Encoder


@dataclass(frozen=True)
class Attention:
    """Means over heads and blocks of attention, of which a query's sum over all T keys is 1."""

    to_patches: Tensor  # B,C,h,w what class tokens see of patches, in the last blocks
    affinity: Tensor  # B,N,N what patches see of patches, queries first, in all blocks


@dataclass(frozen=True)
class Tokens:
    """Output tokens of the last block, before any norm."""

    classes: Tensor  # B,C,D
    patches: Tensor  # B,D,h,w


class MultiClassEncoder(Encoder):
    """Every class token begins as the backbone's one class token, with its position. The final norm is left out.

    Raises UsageError when the backbone has other tokens beside the class token, or no position for it.
    """

    def __init__(self, vit: Any, classes: int) -> None:
        super().__init__(vit, len(vit.blocks), stochastic_depth=True)
        if self.prefix != 1 or vit.pos_embed is None or vit.no_embed_class:
            raise UsageError("model.backbone: several class tokens need a backbone of one, which has a position")
        self.prefix = classes
        vit.norm = nn.Identity()
        self._take(vit)

    def fill(self, tensors: Mapping[str, Tensor], where: str) -> tuple[str, ...]:
        """Put tensors of a plain backbone into this one; the names of those that have no place.

        Raises UsageError, with `where`, when some are missing or of other shapes.
        """
        plain = copy.deepcopy(self.vit)
        plain.cls_token = nn.Parameter(plain.cls_token[:, :1])
        plain.pos_embed = nn.Parameter(plain.pos_embed[:, self.prefix - 1 :])
        fill_backbone(plain, tensors, where)
        own = plain.state_dict()
        self._take(plain)
        return tuple(name for name in tensors if name not in own)

    def _take(self, plain: Any) -> None:
        """Make `plain`, a backbone with one class token, this encoder's."""
        token, positions = plain.cls_token.detach(), plain.pos_embed.detach()
        plain.cls_token = nn.Parameter(token.repeat(1, self.prefix, 1))
        own = positions[:, :1].repeat(1, self.prefix, 1)
        plain.pos_embed = nn.Parameter(torch.cat([own, positions[:, 1:]], 1))
        self.vit = plain

    def tokens(self, images: Tensor) -> Tokens:
        """Output tokens of images B,3,H,W."""
        with self.autocast(images):
            tokens = self.embed(images)
            for block in self.vit.blocks:
                tokens = self._run(block, tokens)
        return self._parted(tokens, images)

    def tokens_and_attention(self, images: Tensor, last: int) -> tuple[Tokens, Attention]:
        """Output tokens of images B,3,H,W, and attention, that of class tokens from the `last` blocks."""
        depth = len(self.vit.blocks)
        with self.autocast(images):
            tokens = self.embed(images)
            total = late = tokens.new_zeros(())
            for number, block in enumerate(self.vit.blocks):
                seen = attention_of(block, tokens)
                total = total + seen
                if number >= depth - last:
                    late = late + seen
                tokens = self._run(block, tokens)
        grid = self.grid(*images.shape[-2:])
        to_patches = late[:, : self.prefix, self.prefix :].unflatten(2, grid) / last
        affinity = total[:, self.prefix :, self.prefix :] / depth
        attention = Attention(to_patches.to(images.dtype), affinity.to(images.dtype))
        return self._parted(tokens, images), attention

    def _parted(self, tokens: Tensor, images: Tensor) -> Tokens:
        tokens = tokens.to(images.dtype)
        return Tokens(tokens[:, : self.prefix], self._as_map(tokens, *self.grid(*images.shape[-2:])))


def attention_of(block: Any, tokens: Tensor) -> Tensor:
    """Attention B,T,T of a timm `Block` that gets the tokens B,T,D: mean over heads of the softmax over keys."""
    attn = block.attn
    joined = attn.qkv(block.norm1(tokens)).unflatten(2, (3, attn.num_heads, -1))
    queries, keys, _ = joined.permute(2, 0, 3, 1, 4).unbind(0)
    queries, keys = attn.q_norm(queries), attn.k_norm(keys)
    return (queries * attn.scale @ keys.transpose(-2, -1)).softmax(-1).mean(1)
