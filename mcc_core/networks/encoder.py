"""A timm vision transformer as MCC uses it: class token, patch features, auxiliary features, masked forward.

Shapes: B images, V local views, N = h*w patch tokens, P prefix tokens (class token first, then others), D width,
T tokens of several sequences packed behind each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from timm.layers.attention import Attention
from timm.layers.drop import DropPath
from timm.layers.mlp import Mlp
from timm.layers.patch_dropout import PatchDropout
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from mcc_core.determinism import bicubic
from mcc_core.device import moved
from mcc_core.errors import UsageError
from mcc_core.networks.blocks import BlockRunner, Dense, Group, Layout, Packed, again, unpadded_attention

PIECEWISE = {"cpu"}  # devices on which batches of several sizes pass one after the other
Recompute = Literal["nothing", "elementwise", "blocks"]


@dataclass(frozen=True)
class Features:
    """Outputs of a full forward pass."""

    cls: Tensor  # B,D after the final norm
    patches: Tensor  # B,D,h,w after the final norm
    aux: Tensor  # B,D,h,w output of the auxiliary block, before any norm


class Encoder(nn.Module):
    """Wraps a timm `VisionTransformer`; accepts any image size that holds at least one patch.

    Raises UsageError when the backbone has no class token or fewer blocks than `aux_block`, or stochastic depth that
    the caller does not allow.
    """

    vit: Any  # a timm VisionTransformer
    mask_token: Any

    def __init__(self, vit: Any, aux_block: int, *, stochastic_depth: bool = False) -> None:
        super().__init__()
        if getattr(vit, "cls_token", None) is None or not hasattr(vit, "blocks"):
            raise UsageError(f"model.backbone: {type(vit).__name__} is not a vision transformer with a class token")
        if aux_block > len(vit.blocks):
            raise UsageError(f"model.aux_block: {aux_block}: the backbone has {len(vit.blocks)} blocks")
        standard = (Block, Attention, Mlp)
        if any((type(b), type(b.attn), type(b.mlp)) != standard or b.attn.gate for b in vit.blocks):
            raise UsageError("model.backbone: only timm's standard transformer blocks can drop masked tokens exactly")
        refused = PatchDropout if stochastic_depth else DropPath | PatchDropout
        if any(isinstance(m, refused) or getattr(m, "p", 0) for m in vit.modules()):
            raise UsageError("model.backbone_args: dropout and stochastic depth would make dropping tokens inexact")
        self.vit = vit
        self.aux_block = aux_block
        self.stochastic_depth = stochastic_depth
        self.width: int = vit.embed_dim
        self.patch: int = vit.patch_embed.proj.kernel_size[0]
        self.prefix: int = vit.num_prefix_tokens
        self.use_bfloat16 = False  # matrix products under autocast
        self.recompute: Recompute = "nothing"  # of what the backward pass needs
        self._block = BlockRunner()
        self.register_parameter("mask_token", None)  # 1,D of methods that hide patches

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Token grid of an image of `height` x `width` pixels."""
        return height // self.patch, width // self.patch

    def forward(self, images: Tensor) -> Features:
        """Full forward of images B,3,H,W."""
        return self.features_and_cls(images)[0]

    def features_and_cls(self, images: Tensor, others: Tensor | None = None) -> tuple[Features, Tensor | None]:
        """Features of images B,3,H,W, and the class tokens O,D of `others` O,3,H,W, which go through the same pass.

        The last block computes only the class tokens of `others`: nothing else of them is asked for.
        """
        with self.autocast(images):
            tokens, aux, cls = self._tokens(images, others)
        h, w = self.grid(*images.shape[-2:])
        tokens, aux = tokens.to(images.dtype), aux.to(images.dtype)
        features = Features(tokens[:, 0], self._as_map(tokens, h, w), self._as_map(aux, h, w))
        return features, None if cls is None else cls.to(images.dtype)

    @staticmethod
    def passes_together(images: Tensor) -> bool:
        """Whether what is of several sizes should go through in one pass where `images` are.

        Few large kernels suit a GPU; a CPU is as fast batch by batch, and needs less memory.
        """
        return images.device.type not in PIECEWISE

    def features_and_views(
        self, images: Tensor, others: Tensor | None, local: Tensor, masks: Tensor
    ) -> tuple[Features, Tensor | None, Tensor]:
        """`features_and_cls` and `masked_cls` in one pass over the tokens of all, equal but for rounding.

        Args:
            images, others: as in `features_and_cls`. local: B,3,H,W local views of their size.
            masks: B,V,h,w as in `masked_cls`; masked tokens are dropped.
        """
        count, kind = images.shape[0], images.dtype
        seen = [images, *([] if others is None else [others]), local]
        with self.autocast(images):
            embedded = self.embed(torch.cat(seen))
            whole, length = embedded[: -len(local)], embedded.shape[1]
            packed, layout = self._packed(embedded[-len(local) :], self._kept(masks.cpu()))
            tokens = aux = torch.cat([whole.flatten(0, 1), packed])
            views = (layout, (len(packed),))
            group = Group(((Dense(), (len(whole), length)), views))
            *blocks, last = self.vit.blocks
            for number, block in enumerate(blocks, start=1):
                tokens = self._run(block, tokens, group)
                if number == self.aux_block:
                    aux = tokens
            ending: list[tuple[Dense | Packed, tuple[int, ...]]] = [
                (Dense(), (count, length)),
                (replace(layout, class_only=True), (len(packed),)),
            ]
            if others is not None:
                ending.insert(1, (Dense(class_only=True), (len(others), length)))
            tokens = self._run(last, tokens, Group(tuple(ending)))
            if self.aux_block == len(self.vit.blocks):
                aux = tokens
            sizes = [count * length, 0 if others is None else len(others), layout.sequences]
            full, cls, keys = self.vit.norm(tokens).to(kind).split(sizes)
        h, w = self.grid(*images.shape[-2:])
        full, aux = (x.unflatten(0, (count, length)) for x in (full, aux[: count * length].to(kind)))
        features = Features(full[:, 0], self._as_map(full, h, w), self._as_map(aux, h, w))
        return features, None if others is None else cls, keys

    def features_of(self, batches: Sequence[Tensor]) -> list[Features]:
        """Features of batches of images, each B,3,H,W of its own size, in one pass over the tokens of all.

        Only attention is computed batch by batch. For what needs no gradient.
        """
        if not self.passes_together(batches[0]):
            return [self(images) for images in batches]
        kind = batches[0].dtype
        with self.autocast(batches[0]):
            embedded = [self.embed(images) for images in batches]
            layout = Group(tuple((Dense(), tuple(x.shape[:2])) for x in embedded))
            tokens = torch.cat([x.flatten(0, 1) for x in embedded])
            aux = tokens
            for number, block in enumerate(self.vit.blocks, start=1):
                tokens = self._run(block, tokens, layout)
                if number == self.aux_block:
                    aux = tokens
            tokens, aux = self.vit.norm(tokens).to(kind), aux.to(kind)
        features = []
        for images, last, early in zip(batches, layout.parted(tokens), layout.parted(aux), strict=True):
            h, w = self.grid(*images.shape[-2:])
            features.append(Features(last[:, 0], self._as_map(last, h, w), self._as_map(early, h, w)))
        return features

    def class_tokens(self, images: Tensor) -> Tensor:
        """Class tokens B,D of images B,3,H,W; the last block computes nothing else."""
        with self.autocast(images):
            tokens = self.embed(images)
            *blocks, last = self.vit.blocks
            for block in blocks:
                tokens = self._run(block, tokens)
            return self.vit.norm(self._run(last, tokens, Dense(class_only=True))).to(images.dtype)

    def _tokens(self, images: Tensor, others: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
        """Final and auxiliary tokens of `images`, class tokens of `others`."""
        count = images.shape[0]
        tokens = self.embed(images if others is None else torch.cat([images, others]))
        aux = tokens
        *blocks, last = self.vit.blocks
        for number, block in enumerate(blocks, start=1):
            tokens = self._run(block, tokens)
            if number == self.aux_block:
                aux = tokens[:count]
        cls = None
        if others is not None:
            cls = self.vit.norm(self._run(last, tokens[count:], Dense(class_only=True)))
            tokens = tokens[:count]
        tokens = self._run(last, tokens)
        if self.aux_block == len(self.vit.blocks):
            aux = tokens
        return self.vit.norm(tokens), aux, cls

    def _run(self, block: Any, tokens: Tensor, layout: Layout | None = None) -> Tensor:
        """One block, keeping for the backward pass what `recompute` says."""
        recompute = self.recompute if torch.is_grad_enabled() else "nothing"
        layout = layout or Dense()
        if recompute == "blocks":
            return again(self._block, block, tokens, layout, False, random=self.stochastic_depth)
        return self._block(block, tokens, layout, recompute == "elementwise")

    def compile_blocks(self) -> None:
        """Compile the blocks' computation at their first use, once for any number of tokens."""
        self._block.compile()

    def autocast(self, images: Tensor) -> torch.autocast:
        return torch.autocast(images.device.type, dtype=torch.bfloat16, enabled=self.use_bfloat16)

    def embed(self, images: Tensor, mask: Tensor | None = None) -> Tensor:
        """Token embeddings B,P+N,D of images B,3,H,W, positions added; where `mask` B,h,w is true, the mask token's."""
        vit = self.vit
        patches = vit.patch_embed.norm(vit.patch_embed.proj(images).flatten(2).transpose(1, 2))
        if mask is not None:
            patches = torch.where(mask.flatten(1)[..., None], self.mask_token.to(patches.dtype), patches)
        extra = [getattr(vit, name, None) for name in ("dist_token", "reg_token")]
        prefix = torch.cat([vit.cls_token, *(token for token in extra if token is not None)], dim=1)
        prefix_tokens = prefix.expand(images.shape[0], -1, -1)  # no len(): an export is for any number of them
        positions = vit.pos_embed
        if positions is not None:
            own = 0 if vit.no_embed_class else self.prefix
            patches = patches + self._resized(positions[:, own:], self.grid(*images.shape[-2:]))
            prefix_tokens = prefix_tokens + positions[:, :own] if own else prefix_tokens
        return vit.norm_pre(torch.cat([prefix_tokens, patches], dim=1))

    def hidden_patches(self, images: Tensor, mask: Tensor) -> Tensor:
        """Patch tokens M,D, after the final norm, of the M places where `mask` B,h,w puts the mask token."""
        with self.autocast(images):
            tokens = self.embed(images, mask)
            for block in self.vit.blocks:
                tokens = self._run(block, tokens)
            return self.vit.norm(tokens[:, self.prefix :][mask.flatten(1)]).to(images.dtype)

    def masked_cls(self, images: Tensor, masks: Tensor, drop: bool = True) -> Tensor:
        """Class tokens V*B,D (view-major) that see only unmasked keys.

        Args:
            images: B,3,H,W local views.
            masks: B,V,h,w key masks, 1 = masked (section 3.3), on the host: they decide sizes.
            drop: drop masked tokens. The same keys are masked in every block, so a masked token never reaches the
                class token: dropping is exact and leaves about 1 - ratio of the work. False masks attention instead.
        """
        with self.autocast(images):
            return self._masked_cls(self.embed(images), masks.cpu(), drop).to(images.dtype)

    def _masked_cls(self, tokens: Tensor, masks: Tensor, drop: bool) -> Tensor:
        views, kept = masks.shape[1], self._kept(masks)
        if drop:
            return self._packed_cls(tokens, kept)
        layout = Dense(moved(kept, tokens.device)[:, None, None, :])
        tokens = tokens.repeat(views, 1, 1)
        for block in self.vit.blocks:
            tokens = self._run(block, tokens, layout)
        return self.vit.norm(tokens)[:, 0]

    def _kept(self, masks: Tensor) -> Tensor:
        """Tokens that masks B,V,h,w leave: V*B,P+N, view-major, the prefix always."""
        kept = (masks.flatten(2) == 0).transpose(0, 1).flatten(0, 1)
        return torch.cat([kept.new_ones(len(kept), self.prefix), kept], dim=1)

    def _packed_cls(self, tokens: Tensor, kept: Tensor) -> Tensor:
        """Kept tokens of all views as one packed sequence T,D."""
        packed, layout = self._packed(tokens, kept)
        *blocks, last = self.vit.blocks
        for block in blocks:
            packed = self._run(block, packed, layout)
        return self.vit.norm(self._run(last, packed, replace(layout, class_only=True)))

    def _packed(self, tokens: Tensor, kept: Tensor) -> tuple[Tensor, Packed]:
        """The tokens B,P+N,D that `kept` V*B,P+N, view-major, keeps of each view, behind each other: T,D.

        `kept` is on the host, and so is all that is computed of it: a GPU would have to be waited for.
        """
        device, kind = tokens.device, torch.bfloat16 if self.use_bfloat16 else tokens.dtype
        sequence, position = kept.nonzero(as_tuple=True)
        places = sequence % len(tokens) * tokens.shape[1] + position
        counts = kept.sum(1)
        ends = F.pad(counts.cumsum(0), (1, 0))
        rank = kept.cumsum(1)[sequence, position] - 1  # place of each packed token within its own sequence
        longest = int(counts.max())
        places, slots = moved(torch.stack([places, sequence * longest + rank]), device)
        layout = Packed(len(kept), longest, moved(ends[:-1], device), slots)
        attn = self.vit.blocks[0].attn
        padding = torch.arange(longest) >= counts[:, None]
        if not padding.any():
            pass
        elif unpadded_attention(device, kind, attn.head_dim):
            layout = replace(layout, ends=moved(ends.to(torch.int32), device))
        else:  # made once: attention makes one of a boolean mask in every block
            empty = torch.zeros(padding.shape, dtype=kind).masked_fill(padding, -torch.inf)
            layout = replace(layout, key_mask=moved(empty, device)[:, None, None, :])
        return tokens.flatten(0, 1)[places], layout

    def _as_map(self, tokens: Tensor, h: int, w: int) -> Tensor:
        return tokens[:, self.prefix :].transpose(1, 2).unflatten(2, (h, w))

    def _resized(self, positions: Tensor, grid: tuple[int, int]) -> Tensor:
        """Position table 1,N0,D resized to `grid` by bicubic interpolation without antialiasing, as published."""
        old = getattr(self.vit.patch_embed, "grid_size", None) or (int(positions.shape[1] ** 0.5),) * 2
        if not torch.compiler.is_exporting() and tuple(old) == tuple(grid):  # an export is for images of any size
            return positions
        table = positions.transpose(1, 2).unflatten(2, tuple(old))
        return bicubic(table, grid).flatten(2).transpose(1, 2)
