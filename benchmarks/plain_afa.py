"""AFA's training step without its savings, as the baseline that the benchmarks state ratios against.

Classification and CAMs have forwards of their own, CAMs are computed for all classes, every head of the attention has a
map, and each refinement has its own affinity.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from plain import refine_separately
from torch import Tensor

from mcc_core.methods.afa import objective
from mcc_core.methods.afa.network import AFANet
from mcc_core.methods.afa.objective import AFAObjective as PlainObjective
from mcc_core.networks.mix_transformer import Stages
from mcc_core.pseudo_labels.cam import MapPair, raw_maps

__all__ = ["PlainObjective", "REPLACED"]


def _separate_maps(
    network: AFANet, images: Tensor, scales: Sequence[float], known: Any, classes: Tensor
) -> dict[str, list[MapPair]]:
    found = raw_maps(network, images, scales)["cam"]
    return {"cam": [(straight[:, classes], flipped[:, classes]) for straight, flipped in found]}


def _affinity(network: AFANet, features: Stages, count: int | None = None) -> Tensor:
    """Both blocks' products of queries and keys for every head B,H,N,N, of all images; then a 1x1 convolution."""
    heads = []
    for block, x in zip(network.last_blocks, features.last_inputs, strict=True):
        tokens, attention = block.norm1(x), block.attn
        shape = (*tokens.shape[:2], attention.num_heads, -1)
        queries = attention.q(tokens).view(shape).transpose(1, 2)
        keys = attention.kv(tokens)[..., : tokens.shape[2]].reshape(shape).transpose(1, 2)
        heads.append(queries @ keys.transpose(2, 3))
    raw = torch.cat(heads, 1)
    return network.attn_proj(raw + raw.transpose(2, 3)).sigmoid()[:count, 0]


# What stands in for ours while the plain step runs: where, which, by what.
REPLACED = (
    (objective, "raw_maps", _separate_maps),
    (objective, "refine", refine_separately),
    (AFANet, "affinity", _affinity),
)
