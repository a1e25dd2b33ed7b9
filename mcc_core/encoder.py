"""A timm vision transformer as MCC uses it: class token, patch features, auxiliary features, masked forward.

Shapes: B images, V local views, N = h*w patch tokens, P prefix tokens (class token first, then registers), D width,
T tokens of several sequences packed behind each other.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers.attention import Attention
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from mcc_core.errors import UsageError


@dataclass(frozen=True)
class Features:
    """Outputs of a full forward pass."""

    cls: Tensor  # B,D after the final norm
    patches: Tensor  # B,D,h,w after the final norm
    aux: Tensor  # B,D,h,w output of the auxiliary block, before any norm (PAPER_NOTES row 19)


class Encoder(nn.Module):
    """Wraps a timm `VisionTransformer`; accepts any image size that holds at least one patch.

    Raises UsageError when the backbone has no class token or fewer blocks than `aux_block`.
    """

    vit: Any  # a timm VisionTransformer

    def __init__(self, vit: Any, aux_block: int) -> None:
        super().__init__()
        if getattr(vit, "cls_token", None) is None or not hasattr(vit, "blocks"):
            raise UsageError(f"model.backbone: {type(vit).__name__} is not a vision transformer with a class token")
        if aux_block > len(vit.blocks):
            raise UsageError(f"model.aux_block: {aux_block}: the backbone has {len(vit.blocks)} blocks")
        if any(
            type(block) is not Block or type(block.attn) is not Attention or block.attn.gate for block in vit.blocks
        ):
            raise UsageError("model.backbone: only timm's standard transformer blocks can drop masked tokens exactly")
        self.vit = vit
        self.aux_block = aux_block
        self.width: int = vit.embed_dim
        self.patch: int = vit.patch_embed.proj.kernel_size[0]
        self.prefix: int = vit.num_prefix_tokens

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Token grid of an image of `height` x `width` pixels."""
        return height // self.patch, width // self.patch

    def forward(self, images: Tensor) -> Features:
        """Full forward of images B,3,H,W."""
        h, w = self.grid(*images.shape[-2:])
        tokens = self.embed(images)
        aux = tokens
        for number, block in enumerate(self.vit.blocks, start=1):
            tokens = block(tokens)
            if number == self.aux_block:
                aux = tokens
        tokens = self.vit.norm(tokens)
        return Features(tokens[:, 0], self._as_map(tokens, h, w), self._as_map(aux, h, w))

    def embed(self, images: Tensor) -> Tensor:
        """Token embeddings B,P+N,D of images B,3,H,W, positions added."""
        vit = self.vit
        patches = vit.patch_embed.norm(vit.patch_embed.proj(images).flatten(2).transpose(1, 2))
        prefix = [vit.cls_token] + ([vit.reg_token] if getattr(vit, "reg_token", None) is not None else [])
        prefix_tokens = torch.cat(prefix, dim=1).expand(len(images), -1, -1)
        positions = vit.pos_embed
        if positions is not None:
            own = 0 if vit.no_embed_class else self.prefix
            patches = patches + self._resized(positions[:, own:], self.grid(*images.shape[-2:]))
            prefix_tokens = prefix_tokens + positions[:, :own] if own else prefix_tokens
        return vit.norm_pre(torch.cat([prefix_tokens, patches], dim=1))

    def masked_cls(self, images: Tensor, masks: Tensor, drop: bool = True) -> Tensor:
        """Class tokens V*B,D (view-major) that see only unmasked keys.

        Args:
            images: B,3,H,W local views.
            masks: B,V,h,w key masks, 1 = masked (section 3.3).
            drop: drop masked tokens. The same keys are masked in every block, so a masked token never reaches the
                class token: dropping is exact and leaves about 1 - ratio of the work. False masks attention instead.
        """
        tokens = self.embed(images)
        kept_BVN = masks.flatten(2) == 0
        views = kept_BVN.shape[1]
        kept = kept_BVN.transpose(0, 1).flatten(0, 1)  # view-major: VB,N
        prefix = kept.new_ones(len(kept), self.prefix)
        kept = torch.cat([prefix, kept], dim=1)
        if drop:
            return self._packed_cls(tokens, kept, views)
        tokens = tokens.repeat(views, 1, 1)
        for block in self.vit.blocks:
            tokens = block(tokens, attn_mask=kept[:, None, None, :])
        return self.vit.norm(tokens)[:, 0]

    def _packed_cls(self, tokens: Tensor, kept: Tensor, views: int) -> Tensor:
        """Kept tokens of all views as one packed sequence T,D; only attention is padded to the longest view."""
        sequence, position = kept.nonzero(as_tuple=True)
        packed = tokens[sequence % len(tokens), position]
        counts = kept.sum(1)
        rank = kept.cumsum(1)[sequence, position] - 1  # place of each packed token within its own sequence
        longest = int(counts.max())
        slots = sequence * longest + rank
        valid = torch.arange(longest, device=kept.device) < counts[:, None]
        key_mask = None if bool(valid.all()) else valid[:, None, None, :]
        layout = _Layout(len(kept), longest, slots, key_mask)
        for block in self.vit.blocks:
            packed = packed + block.ls1(_packed_attention(block.attn, block.norm1(packed), layout))
            packed = packed + block.ls2(block.mlp(block.norm2(packed)))
        first = counts.cumsum(0) - counts
        return self.vit.norm(packed[first])

    def _as_map(self, tokens: Tensor, h: int, w: int) -> Tensor:
        return tokens[:, self.prefix :].transpose(1, 2).unflatten(2, (h, w))

    def _resized(self, positions: Tensor, grid: tuple[int, int]) -> Tensor:
        """Position table 1,N0,D resized to `grid` by bicubic interpolation without antialiasing, as published."""
        old = getattr(self.vit.patch_embed, "grid_size", None) or (int(positions.shape[1] ** 0.5),) * 2
        if tuple(old) == tuple(grid):
            return positions
        table = positions.transpose(1, 2).unflatten(2, tuple(old))
        return F.interpolate(table, size=grid, mode="bicubic", align_corners=False).flatten(2).transpose(1, 2)


@dataclass(frozen=True)
class _Layout:
    """Where packed tokens stand in a padded batch of sequences."""

    sequences: int
    longest: int
    slots: Tensor  # T: flat index into sequences*longest
    key_mask: Tensor | None  # sequences,1,1,longest, True = a real key; None when nothing is padded


def _packed_attention(attn: Any, packed: Tensor, layout: _Layout) -> Tensor:
    """Self-attention of a timm `Attention` within each packed sequence: T,D to T,D."""
    qkv = attn.qkv(packed)
    padded = qkv.new_zeros(layout.sequences * layout.longest, qkv.shape[1]).index_copy(0, layout.slots, qkv)
    heads = padded.view(layout.sequences, layout.longest, 3, attn.num_heads, -1).permute(2, 0, 3, 1, 4)
    q, k, v = heads.unbind(0)
    out = F.scaled_dot_product_attention(attn.q_norm(q), attn.k_norm(k), v, attn_mask=layout.key_mask)
    out = out.transpose(1, 2).flatten(0, 1).flatten(1)[layout.slots]
    return attn.proj(attn.norm(out))
