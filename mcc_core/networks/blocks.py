"""A timm transformer block over tokens in a layout: of sequences of one length, packed, or several kinds in one pass.

Norms, linear layers and activations see tokens behind each other; only attention asks which sequence they belong to.
Shapes: S sequences of L tokens, T tokens of several sequences behind each other, D width, d width of a head.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mcc_core.networks.compiled import compiled

try:  # attention that needs no padding
    from torch.nn.attention import varlen

    varlen_attn: Any = varlen.varlen_attn
except ImportError:  # an older PyTorch
    varlen_attn = None

AMPERE = (8, 0)  # compute capability that flash attention needs


def unpadded_attention(device: torch.device, dtype: torch.dtype, head: int) -> bool:
    """Whether packed sequences of heads of width `head` can be attended without padding, repeatably if it must be."""
    if varlen_attn is None or device.type != "cuda" or dtype not in (torch.bfloat16, torch.float16):
        return False
    if head % 8 or head > 256 or torch.are_deterministic_algorithms_enabled():
        return False
    return torch.cuda.get_device_capability(device) >= AMPERE


@dataclass(frozen=True)
class Dense:
    """Sequences of one length, S,L,D, the class token first."""

    key_mask: Tensor | None = None  # S,1,1,L, True = a key that may be seen; None: all
    class_only: bool = False  # the class tokens S,D are all that is asked for; the others are keys and values

    def asking(self, tokens: Tensor) -> Tensor:
        """The tokens that come out of the block."""
        return tokens[:, 0] if self.class_only else tokens

    def attended(self, attn: Any, joined: Tensor) -> Tensor:
        """What tokens see of each other, S,L,D (class tokens alone: S,D), of queries, keys and values S,L,3D."""
        q, k, v = _heads(attn, joined)
        if self.class_only:
            return _merged(_attended(attn, q[:, :, :1], k, v, self.key_mask))[:, 0]
        return _merged(_attended(attn, q, k, v, self.key_mask))

    def class_attended(self, attn: Any, q: Tensor, kv: Tensor) -> Tensor:
        """The same S,D of queries S,D of the class tokens alone, keys and values S,L,2D."""
        k, v = kv.unflatten(2, (2, attn.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        return _merged(_attended(attn, q.unflatten(1, (attn.num_heads, 1, -1)), k, v, self.key_mask))[:, 0]


@dataclass(frozen=True)
class Packed:
    """Sequences of several lengths behind each other, T,D."""

    sequences: int
    longest: int
    first: Tensor  # sequences: where each class token is
    slots: Tensor  # T: where each token stands in a padded batch, sequences*longest
    key_mask: Tensor | None = None  # sequences,1,1,longest, 0 = a real key, else -inf; None when nothing is padded
    ends: Tensor | None = None  # sequences+1, int32: where each begins and the last ends; None: attention pads
    class_only: bool = False

    def asking(self, tokens: Tensor) -> Tensor:
        return tokens[self.first] if self.class_only else tokens

    def attended(self, attn: Any, joined: Tensor) -> Tensor:
        """As `Dense`'s, of T,3D."""
        if self.ends is None:
            q, k, v = _heads(attn, self._padded(joined))
            if self.class_only:
                return _merged(_attended(attn, q[:, :, :1], k, v, self.key_mask))[:, 0]
            return _merged(_attended(attn, q, k, v, self.key_mask)).flatten(0, 1)[self.slots]
        q, k, v = joined.unflatten(1, (3, attn.num_heads, -1)).unbind(1)
        return self._unpadded(attn, q[self.first] if self.class_only else q, k, v)

    def class_attended(self, attn: Any, q: Tensor, kv: Tensor) -> Tensor:
        if self.ends is None:
            padded = Dense(self.key_mask)
            return padded.class_attended(attn, q, self._padded(kv))
        k, v = kv.unflatten(1, (2, attn.num_heads, -1)).unbind(1)
        return self._unpadded(attn, q.unflatten(1, (attn.num_heads, -1)), k, v)

    def _padded(self, tokens: Tensor) -> Tensor:
        padded = tokens.new_zeros(self.sequences * self.longest, tokens.shape[1])
        padded[self.slots] = tokens  # not index_copy, which copies the zeros and keeps the tokens for the backward pass
        return padded.unflatten(0, (self.sequences, self.longest))

    def _unpadded(self, attn: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """T,D, or sequences,D of the class tokens alone, of T,heads,d each."""
        ends, asking, most = self.ends, self.ends, self.longest
        if self.class_only:
            asking, most = torch.arange(self.sequences + 1, dtype=torch.int32, device=q.device), 1
        seen = varlen_attn(attn.q_norm(q).to(v.dtype), attn.k_norm(k).to(v.dtype), v, asking, ends, most, self.longest)
        return seen.flatten(1)


@dataclass(frozen=True)
class Group:
    """Batches of sequences behind each other, T,D, each in a layout of its own."""

    parts: tuple[tuple[Dense | Packed, tuple[int, ...]], ...]  # layout and shape of each batch, without D
    class_only: bool = field(default=False, init=False)  # of the whole; parts have their own

    def parted(self, tokens: Tensor) -> list[Tensor]:
        """Each batch in its shape."""
        pieces = tokens.split([torch.Size(shape).numel() for _, shape in self.parts])
        return [piece.unflatten(0, shape) for piece, (_, shape) in zip(pieces, self.parts, strict=True)]

    def asking(self, tokens: Tensor) -> Tensor:
        if not any(layout.class_only for layout, _ in self.parts):
            return tokens
        return self._joined([layout.asking(part) for (layout, _), part in self._each(tokens)])

    def attended(self, attn: Any, joined: Tensor) -> Tensor:
        return self._joined([layout.attended(attn, part) for (layout, _), part in self._each(joined)])

    def class_attended(self, attn: Any, q: Tensor, kv: Tensor) -> Tensor:
        raise TypeError("a group's parts say what comes out of them")

    def _each(self, tokens: Tensor) -> Sequence[tuple[tuple[Dense | Packed, tuple[int, ...]], Tensor]]:
        return list(zip(self.parts, self.parted(tokens), strict=True))

    def _joined(self, pieces: Sequence[Tensor]) -> Tensor:
        return torch.cat([piece.flatten(0, -2) for piece in pieces])


Layout = Dense | Packed | Group


class BlockRunner:
    """Computes blocks, which may be compiled: what comes before attention and what comes after it.

    Attention stays out of what is compiled, and with it every length of a sequence: each half is compiled once for any
    number of tokens, and a plan is not made again for another layout.
    """

    def __init__(self) -> None:
        self.before: Callable[..., Tensor] = _before
        self.after: Callable[..., Tensor] = _after

    def compile(self) -> None:
        self.before = compiled(_before)
        self.after = compiled(_after)

    def __deepcopy__(self, _memo: object) -> BlockRunner:
        return self  # of an encoder's copy: it has no weights

    def __call__(self, block: Any, tokens: Tensor, layout: Layout, lean: bool) -> Tensor:
        """A timm `Block` on tokens in a layout; only class tokens come out where it says so.

        `lean` keeps no output of a normalisation or an activation for the backward pass: each is computed again from
        its input, which is kept anyway.
        """
        attn = block.attn
        if layout.class_only:
            seen = layout.class_attended(attn, *(again if lean else _call)(_class_query, block, tokens, layout))
        else:
            seen = layout.attended(attn, self.before(block.norm1, attn.qkv, tokens, lean))
        return self.after(block, layout.asking(tokens), seen, lean)


def _before(norm: nn.Module, linear: nn.Module, tokens: Tensor, lean: bool) -> Tensor:
    return (again if lean else _call)(_normed, norm, linear, tokens)


def _after(block: Any, tokens: Tensor, seen: Tensor, lean: bool) -> Tensor:
    attn, mlp = block.attn, block.mlp
    run = again if lean else _call
    tokens = tokens + block.drop_path1(block.ls1(attn.proj(attn.norm(seen))))
    hidden = run(_normed, block.norm2, mlp.fc1, tokens)
    return tokens + block.drop_path2(block.ls2(run(_activated, mlp, hidden)))


def _heads(attn: Any, joined: Tensor) -> tuple[Tensor, ...]:
    """Queries, keys and values S,heads,L,d of S,L,3D."""
    return joined.unflatten(2, (3, attn.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)


def _merged(seen: Tensor) -> Tensor:
    """S,heads,L,d to S,L,D."""
    return seen.transpose(1, 2).flatten(2)


def _attended(attn: Any, q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None = None) -> Tensor:
    return F.scaled_dot_product_attention(attn.q_norm(q), attn.k_norm(k), v, attn_mask=key_mask)


def _normed(norm: nn.Module, linear: nn.Module, tokens: Tensor) -> Tensor:
    return linear(norm(tokens))


def _activated(mlp: Any, hidden: Tensor) -> Tensor:
    return mlp.fc2(mlp.norm(mlp.act(hidden)))


def _class_query(block: Any, tokens: Tensor, layout: Dense | Packed) -> tuple[Tensor, Tensor]:
    """Queries S,D of the class tokens; keys and values of all tokens."""
    weight, bias, width = block.attn.qkv.weight, block.attn.qkv.bias, block.attn.attn_dim
    q_bias, kv_bias = (None, None) if bias is None else (bias[:width], bias[width:])
    normed = block.norm1(tokens)
    return F.linear(layout.asking(normed), weight[:width], q_bias), F.linear(normed, weight[width:], kv_bias)


def _call(function: Callable[..., Any], *arguments: Any) -> Any:
    return function(*arguments)


def again(function: Callable[..., Any], *arguments: Any, random: bool = False) -> Any:
    """The function's value; the backward pass calls it again rather than keeping what it computed on the way.

    A `random` function draws the same again.
    """
    return checkpoint(function, *arguments, use_reentrant=False, preserve_rng_state=random)
