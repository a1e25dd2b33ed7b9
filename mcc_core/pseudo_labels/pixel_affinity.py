"""Affinity of nearby cells by the distance of features (AffinityNet, Ahn and Kwak, CVPR 2018, sections 3.1 to 3.3).

A pair is a cell and another in one of the P directions of `inter_pixel.directions`, so that each pair counts once. All
cells of a map h,w are sources: what is beyond the border is of no pair.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from mcc_core.pseudo_labels.inter_pixel import (
    Relations,
    bordered,
    directions,
    mean_where,
    moved_to,
    relations,
    walked,
)
from mcc_core.pseudo_labels.labels import IGNORE

Distance = Literal["mean", "sum"]
_EPSILON = 1e-5


def distances(features: Tensor, radius: int, kind: Distance) -> Tensor:
    """L1 distances B,P,h,w of the features B,D,h,w of pairs; with `mean` they are divided by D."""
    wide = bordered(features, radius, 0.0)
    source = moved_to(wide, (0, 0), radius)

    def to(index: int) -> Tensor:
        apart = (source - moved_to(wide, directions(radius)[index], radius)).abs()
        return apart.mean(1) if kind == "mean" else apart.sum(1)

    count = len(directions(radius))
    if not torch.is_grad_enabled():
        return torch.stack([to(index) for index in range(count)], 1)
    # Computed again in the backward pass: differences take P times the memory of the features.
    again = [checkpoint(to, index, use_reentrant=False, preserve_rng_state=False) for index in range(count)]
    return torch.stack(again, 1)


def affinity(distance: Tensor) -> Tensor:
    """Affinities in (0, 1] of distances: the exponential of minus them."""
    return (-distance).exp()


def pairs_of(label: Tensor, radius: int) -> Relations:
    """What the pairs B,P,h,w are by a label map B,h,w (0 background, 1..C, IGNORE), in which IGNORE is of no pair."""
    return relations(bordered(label, radius, IGNORE), radius)


def cross_entropies(distance: Tensor, pairs: Relations) -> tuple[Tensor, Tensor, Tensor]:
    """Cross entropy of the affinities of background, of foreground and of different pairs.

    Each is the mean over its kind of pair, 0 where there is none. Minus the logarithm of an affinity is the distance.
    """
    apart = -(1 + _EPSILON - affinity(distance)).log()
    return (
        mean_where(distance, pairs.background),
        mean_where(distance, pairs.foreground),
        mean_where(apart, pairs.different),
    )


def background_score(maps: Tensor, power: float) -> Tensor:
    """Scores 1,h,w of the background: what the highest of the maps K,h,w in [0, 1] leaves of 1, to a power."""
    return (1 - maps.amax(0, keepdim=True)).clamp(min=0).pow(power)


def affinity_walk(scores: Tensor, affinity: Tensor, *, radius: int, power: float, log_steps: int) -> Tensor:
    """Scores K,h,w after 2^log_steps steps of a random walk between cells of affinities P,h,w.

    A step mixes a cell with those closer than `radius`, itself among them, in proportion to their affinities to the
    power.
    """
    return walked(scores, affinity, radius=radius, power=power, log_steps=log_steps)
