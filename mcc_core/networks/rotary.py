"""A timm transformer with rotary positions, such as DINOv3, as MCC uses it.

Positions turn queries and keys by where a patch is, in every block. A dropped patch takes its turn with it, so that
dropping masked tokens stays exact. Shapes as in `encoder`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from timm.layers.drop import DropPath
from timm.layers.patch_dropout import PatchDropout
from timm.models.eva import Eva, EvaBlock
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mcc_core.errors import UsageError
from mcc_core.networks.compiled import compiled
from mcc_core.networks.encoder import Encoder, Features


def encoder_of(vit: Any, aux_block: int) -> Encoder:
    """The encoder for a timm backbone. Raises UsageError when it does not suit."""
    return RotaryEncoder(vit, aux_block) if isinstance(vit, Eva) else Encoder(vit, aux_block)


class RotaryEncoder(Encoder):
    """Wraps a timm `Eva` whose positions are rotary and the same in every block.

    Raises UsageError when the backbone has no class token, other positions, fewer blocks than `aux_block`, or dropout.
    """

    def __init__(self, vit: Any, aux_block: int) -> None:
        nn.Module.__init__(self)
        if vit.cls_token is None or vit.rope is None or vit.pos_embed is not None or getattr(vit, "rope_mixed", False):
            raise UsageError("model.backbone: needs a class token, and rotary positions alone that all blocks share")
        if aux_block > len(vit.blocks):
            raise UsageError(f"model.aux_block: {aux_block}: the backbone has {len(vit.blocks)} blocks")
        if any(type(block) is not EvaBlock for block in vit.blocks):
            raise UsageError("model.backbone: only timm's standard transformer blocks can drop masked tokens exactly")
        if any(isinstance(m, DropPath | PatchDropout) or getattr(m, "p", 0) for m in vit.modules()):
            raise UsageError("model.backbone_args: dropout and stochastic depth would make dropping tokens inexact")
        self.vit, self.aux_block, self.stochastic_depth = vit, aux_block, False
        self.width: int = vit.embed_dim
        self.patch: int = vit.patch_embed.proj.kernel_size[0]
        self.prefix: int = vit.num_prefix_tokens
        self.use_bfloat16, self.recompute = False, "nothing"  # elementwise keeps what nothing does
        self._whole: Callable[..., Tensor] = _whole
        self.register_parameter("mask_token", None)

    def compile_blocks(self) -> None:
        """Compile the blocks' computation at their first use, once for any number of tokens."""
        self._whole = compiled(_whole)

    def embed(self, images: Tensor, mask: Tensor | None = None) -> Tensor:
        """Token embeddings B,P+N,D of images B,3,H,W; where `mask` B,h,w is true, the mask token's."""
        vit = self.vit
        patches = vit.patch_embed.norm(vit.patch_embed.proj(images).flatten(2).transpose(1, 2))
        if mask is not None:
            patches = torch.where(mask.flatten(1)[..., None], self.mask_token.to(patches.dtype), patches)
        prefix = [token for token in (vit.cls_token, vit.reg_token) if token is not None]
        tokens = torch.cat([*(token.expand(len(images), -1, -1) for token in prefix), patches], dim=1)
        return vit.norm_pre(tokens)

    def features_and_cls(self, images: Tensor, others: Tensor | None = None) -> tuple[Features, Tensor | None]:
        """Features of images B,3,H,W, and the class tokens O,D of `others` O,3,H,W, which go through the same pass."""
        count = len(images)
        with self.autocast(images):
            tokens, aux = self._through(self.embed(images if others is None else torch.cat([images, others])), images)
            normed = self.vit.norm(tokens)
        normed, aux = normed.to(images.dtype), aux.to(images.dtype)
        h, w = self.grid(*images.shape[-2:])
        features = Features(normed[:count, 0], self._as_map(normed[:count], h, w), self._as_map(aux[:count], h, w))
        return features, None if others is None else normed[count:, 0]

    @staticmethod
    def passes_together(images: Tensor) -> bool:
        """Never: positions differ from batch to batch."""
        return False

    def features_of(self, batches: Sequence[Tensor]) -> list[Features]:
        """Features of batches of images, one after the other: positions differ from batch to batch."""
        return [self(images) for images in batches]

    def class_tokens(self, images: Tensor) -> Tensor:
        """Class tokens B,D of images B,3,H,W."""
        return self.features_and_cls(images)[0].cls

    def hidden_patches(self, images: Tensor, mask: Tensor) -> Tensor:
        """Patch tokens M,D, after the final norm, of the M places where `mask` B,h,w puts the mask token."""
        with self.autocast(images):
            tokens = self._through(self.embed(images, mask), images)[0]
            return self.vit.norm(tokens[:, self.prefix :][mask.flatten(1)]).to(images.dtype)

    def _masked_cls(self, tokens: Tensor, masks: Tensor, drop: bool) -> Tensor:
        """Class tokens V*B,D, view-major."""
        views, grid = masks.shape[1], (masks.shape[-2], masks.shape[-1])
        kept = (masks.flatten(2) == 0).transpose(0, 1).flatten(0, 1).to(tokens.device)
        turns = self.vit.rope.get_embed(shape=grid)
        tokens = tokens.repeat(views, 1, 1)
        if drop:
            counts = kept.sum(1)
            longest = int(counts.max())
            places = (~kept).to(torch.uint8).argsort(dim=1, stable=True)[:, :longest]
            patches = tokens[:, self.prefix :].gather(1, places[..., None].expand(-1, -1, tokens.shape[2]))
            tokens = torch.cat([tokens[:, : self.prefix], patches], dim=1)
            turns = turns[places][:, None]
            kept = torch.arange(longest, device=kept.device) < counts[:, None]
        seen = torch.cat([kept.new_ones(len(kept), self.prefix), kept], dim=1)
        return self.vit.norm(self._blocks(tokens, turns, seen[:, None, None, :])[0])[:, 0]

    def _through(self, tokens: Tensor, images: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens of the last block and of the auxiliary one, before any norm."""
        return self._blocks(tokens, self.vit.rope.get_embed(shape=self.grid(*images.shape[-2:])), None)

    def _blocks(self, tokens: Tensor, turns: Tensor, key_mask: Tensor | None) -> tuple[Tensor, Tensor]:
        aux, again = tokens, self.recompute == "blocks" and torch.is_grad_enabled()
        for number, block in enumerate(self.vit.blocks, start=1):
            if again:
                tokens = checkpoint(self._whole, block, tokens, turns, key_mask, use_reentrant=False)
            else:
                tokens = self._whole(block, tokens, turns, key_mask)
            if number == self.aux_block:
                aux = tokens
        return tokens, aux


def _whole(block: Any, tokens: Tensor, turns: Tensor, key_mask: Tensor | None) -> Tensor:
    return block(tokens, turns, key_mask)
