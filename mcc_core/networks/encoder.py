"""A timm vision transformer as MCC uses it: class token, patch features, auxiliary features, masked forward.

Shapes: B images, V local views, N = h*w patch tokens, P prefix tokens (class token first, then others), D width,
T tokens of several sequences packed behind each other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
from torch.utils.checkpoint import checkpoint

from mcc_core.determinism import bicubic
from mcc_core.device import moved
from mcc_core.errors import UsageError

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
        self._block: Callable[..., Tensor] = _block
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

    def features_of(self, batches: Sequence[Tensor]) -> list[Features]:
        """Features of batches of images, each B,3,H,W of its own size, in one pass over the tokens of all.

        Only attention is computed batch by batch. For what needs no gradient. Few large kernels suit a GPU; a CPU is as
        fast batch by batch, and needs less memory.
        """
        if batches[0].device.type in PIECEWISE:
            return [self(images) for images in batches]
        kind = batches[0].dtype
        with self.autocast(batches[0]):
            embedded = [self.embed(images) for images in batches]
            layout = _Grouped(tuple((x.shape[0], x.shape[1]) for x in embedded))
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
            return self.vit.norm(self._run(last, tokens, _Dense(class_only=True))).to(images.dtype)

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
            cls = self.vit.norm(self._run(last, tokens[count:], _Dense(class_only=True)))
            tokens = tokens[:count]
        tokens = self._run(last, tokens)
        if self.aux_block == len(self.vit.blocks):
            aux = tokens
        return self.vit.norm(tokens), aux, cls

    def _run(self, block: Any, tokens: Tensor, layout: _Dense | _Packed | _Grouped | None = None) -> Tensor:
        """One block, keeping for the backward pass what `recompute` says."""
        recompute = self.recompute if torch.is_grad_enabled() else "nothing"
        layout = layout or _Dense()
        if recompute == "blocks":
            return _again(self._block, block, tokens, layout, False, random=self.stochastic_depth)
        return self._block(block, tokens, layout, recompute == "elementwise")

    def compile_blocks(self) -> None:
        """Compile the blocks' computation at their first use, once for each shape of tokens."""
        self._block = torch.compile(_block)

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
        kept_BVN = masks.flatten(2) == 0
        views = kept_BVN.shape[1]
        kept = kept_BVN.transpose(0, 1).flatten(0, 1)  # view-major: VB,N
        prefix = kept.new_ones(len(kept), self.prefix)
        kept = torch.cat([prefix, kept], dim=1)
        if drop:
            return self._packed_cls(tokens, kept)
        layout = _Dense(moved(kept, tokens.device)[:, None, None, :])
        tokens = tokens.repeat(views, 1, 1)
        for block in self.vit.blocks:
            tokens = self._run(block, tokens, layout)
        return self.vit.norm(tokens)[:, 0]

    def _packed_cls(self, tokens: Tensor, kept: Tensor) -> Tensor:
        """Kept tokens of all views as one packed sequence T,D; only attention is padded to the longest view.

        `kept` is on the host, and so is all that is computed of it: a GPU would have to be waited for.
        """
        sequence, position = kept.nonzero(as_tuple=True)
        places = sequence % len(tokens) * tokens.shape[1] + position
        counts = kept.sum(1)
        rank = kept.cumsum(1)[sequence, position] - 1  # place of each packed token within its own sequence
        longest = int(counts.max())
        places, slots = moved(torch.stack([places, sequence * longest + rank]), tokens.device)
        padding = torch.arange(longest) >= counts[:, None]
        bias = None
        if padding.any():  # made once: attention makes one of a boolean mask in every block
            kind = torch.bfloat16 if self.use_bfloat16 else tokens.dtype
            empty = torch.zeros(padding.shape, dtype=kind).masked_fill(padding, -torch.inf)
            bias = moved(empty, tokens.device)[:, None, None, :]
        layout = _Packed(bias, False, len(kept), longest, slots, moved(counts.cumsum(0) - counts, tokens.device))
        packed = tokens.flatten(0, 1)[places]
        *blocks, last = self.vit.blocks
        for block in blocks:
            packed = self._run(block, packed, layout)
        return self.vit.norm(self._run(last, packed, replace(layout, class_only=True)))

    def _as_map(self, tokens: Tensor, h: int, w: int) -> Tensor:
        return tokens[:, self.prefix :].transpose(1, 2).unflatten(2, (h, w))

    def _resized(self, positions: Tensor, grid: tuple[int, int]) -> Tensor:
        """Position table 1,N0,D resized to `grid` by bicubic interpolation without antialiasing, as published."""
        old = getattr(self.vit.patch_embed, "grid_size", None) or (int(positions.shape[1] ** 0.5),) * 2
        if not torch.compiler.is_exporting() and tuple(old) == tuple(grid):  # an export is for images of any size
            return positions
        table = positions.transpose(1, 2).unflatten(2, tuple(old))
        return bicubic(table, grid).flatten(2).transpose(1, 2)


@dataclass(frozen=True)
class _Dense:
    """Sequences of one length, S,T,D, the class token first."""

    key_mask: Tensor | None = None  # S,1,1,T, True = a key that may be seen; None: all
    class_only: bool = False  # the class tokens S,D are all that is asked for; the others are keys and values

    def class_tokens(self, tokens: Tensor) -> Tensor:
        return tokens[:, 0]

    def padded(self, tokens: Tensor) -> Tensor:
        return tokens

    def unpadded(self, tokens: Tensor) -> Tensor:
        return tokens


@dataclass(frozen=True)
class _Packed:
    """Where packed tokens T,D stand in a padded batch of sequences."""

    key_mask: Tensor | None  # sequences,1,1,longest, 0 = a real key, else -inf; None when nothing is padded
    class_only: bool
    sequences: int
    longest: int
    slots: Tensor  # T: flat index into sequences*longest
    first: Tensor  # sequences: where each class token is among the packed

    def class_tokens(self, tokens: Tensor) -> Tensor:
        return tokens[self.first]

    def padded(self, tokens: Tensor) -> Tensor:
        empty = tokens.new_zeros(self.sequences * self.longest, tokens.shape[1])
        return empty.index_copy(0, self.slots, tokens).unflatten(0, (self.sequences, self.longest))

    def unpadded(self, tokens: Tensor) -> Tensor:
        return tokens.flatten(0, 1)[self.slots]


@dataclass(frozen=True)
class _Grouped:
    """Sequences of several lengths behind each other, T,D; those of one length are a batch."""

    shapes: tuple[tuple[int, int], ...]  # of each batch: sequences and their length
    class_only: bool = False

    def parted(self, tokens: Tensor) -> list[Tensor]:
        """Each batch as sequences,length,D."""
        parts = tokens.split([sequences * length for sequences, length in self.shapes])
        return [part.unflatten(0, shape) for part, shape in zip(parts, self.shapes, strict=True)]


def _block(block: Any, tokens: Tensor, layout: _Dense | _Packed | _Grouped, lean: bool) -> Tensor:
    """A timm `Block` on tokens in a layout; only class tokens come out where it says so.

    `lean` keeps no output of a normalisation or an activation for the backward pass: each is computed again from
    its input, which is kept anyway.
    """
    attn, mlp = block.attn, block.mlp
    run = _again if lean else _call
    if isinstance(layout, _Grouped):
        parts = layout.parted(run(_normed, block.norm1, attn.qkv, tokens))
        seen = torch.cat(
            [_attended(attn, *_qkv(attn, part)).transpose(1, 2).flatten(2).flatten(0, 1) for part in parts]
        )
    elif layout.class_only:
        q, kv = run(_class_query, block, tokens, layout)
        q = q.unflatten(1, (attn.num_heads, 1, -1))
        k, v = layout.padded(kv).unflatten(2, (2, attn.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        tokens = layout.class_tokens(tokens)
        seen = _attended(attn, q, k, v, layout.key_mask).transpose(1, 2).flatten(2)[:, 0]
    else:
        q, k, v = _qkv(attn, layout.padded(run(_normed, block.norm1, attn.qkv, tokens)))
        seen = layout.unpadded(_attended(attn, q, k, v, layout.key_mask).transpose(1, 2).flatten(2))
    tokens = tokens + block.drop_path1(block.ls1(attn.proj(attn.norm(seen))))
    hidden = run(_normed, block.norm2, mlp.fc1, tokens)
    return tokens + block.drop_path2(block.ls2(run(_activated, mlp, hidden)))


def _qkv(attn: Any, joined: Tensor) -> tuple[Tensor, ...]:
    """Queries, keys and values S,heads,T,d of S,T,3D."""
    return joined.unflatten(2, (3, attn.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)


def _attended(attn: Any, q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None = None) -> Tensor:
    return F.scaled_dot_product_attention(attn.q_norm(q), attn.k_norm(k), v, attn_mask=key_mask)


def _normed(norm: nn.Module, linear: nn.Module, tokens: Tensor) -> Tensor:
    return linear(norm(tokens))


def _activated(mlp: Any, hidden: Tensor) -> Tensor:
    return mlp.fc2(mlp.norm(mlp.act(hidden)))


def _class_query(block: Any, tokens: Tensor, layout: _Dense | _Packed) -> tuple[Tensor, Tensor]:
    """Queries S,D of the class tokens; keys and values of all tokens."""
    weight, bias, width = block.attn.qkv.weight, block.attn.qkv.bias, block.attn.attn_dim
    q_bias, kv_bias = (None, None) if bias is None else (bias[:width], bias[width:])
    normed = block.norm1(tokens)
    return F.linear(layout.class_tokens(normed), weight[:width], q_bias), F.linear(normed, weight[width:], kv_bias)


def _call(function: Callable[..., Any], *arguments: Any) -> Any:
    return function(*arguments)


def _again(function: Callable[..., Any], *arguments: Any, random: bool = False) -> Any:
    """The function's value; the backward pass calls it again rather than keeping what it computed on the way.

    A `random` function draws the same again.
    """
    return checkpoint(function, *arguments, use_reentrant=False, preserve_rng_state=random)
