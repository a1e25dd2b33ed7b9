"""Affinity between tokens: its labels, its loss, and the propagation of class scores by it.

Shapes: B images, N = h * w tokens, K present classes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mcc_core.pseudo_labels.labels import IGNORE


def near(grid: tuple[int, int], radius: int, device: torch.device | None = None) -> Tensor:
    """Boolean N,N: pairs of tokens at most `radius` rows and `radius` columns apart."""
    rows, columns = (torch.arange(side, device=device) for side in grid)
    row, column = (x.flatten() for x in torch.meshgrid(rows, columns, indexing="ij"))
    apart = torch.maximum((row[:, None] - row).abs(), (column[:, None] - column).abs())
    return apart <= radius


def pair_labels(label: Tensor, grid: tuple[int, int], radius: int) -> Tensor:
    """Labels B,N,N of token pairs from pixel labels B,H,W: 1 same class, 0 different, IGNORE unknown or too far.

    A token has the label of the pixel nearest to its corner, as nearest resizing has it (section 3.3).
    """
    tokens = F.interpolate(label[:, None].float(), size=grid, mode="nearest").flatten(1)
    pairs = (tokens[:, :, None] == tokens[:, None, :]).long()
    known = tokens != IGNORE
    usable = known[:, :, None] & known[:, None, :] & near(grid, radius, label.device)
    return pairs.masked_fill(~usable, IGNORE)


def affinity_loss(affinity: Tensor, pairs: Tensor) -> Tensor:
    """Half the mean of 1 - A over pairs of one class plus half the mean of A over others (Eq. 4).

    Over the whole batch, with one more than the pairs in each denominator, as published. Both B,N,N.
    """
    same, different = (pairs == 1).to(affinity.dtype), (pairs == 0).to(affinity.dtype)
    pull = ((1 - affinity) * same).sum() / (same.sum() + 1)
    push = (affinity * different).sum() / (different.sum() + 1)
    return 0.5 * pull + 0.5 * push


def transition(affinity: Tensor, grid: tuple[int, int], radius: int, power: float, epsilon: float) -> Tensor:
    """What moves scores (section 3.4): B,N,N, columns sum to just below 1; zero beyond the radius."""
    close = affinity.masked_fill(~near(grid, radius, affinity.device), 0) ** power
    return close / (close.sum(1, keepdim=True) + epsilon)


def propagated(scores: Tensor, matrix: Tensor, grid: tuple[int, int], steps: int) -> Tensor:
    """Scores K,H,W of one image, resized to the grid, softmaxed over classes and moved: K,h,w."""
    small = F.interpolate(scores[None], size=grid, mode="bilinear", align_corners=False)[0]
    moved = small.softmax(0).flatten(1)
    for _ in range(steps):
        moved = moved @ matrix
    return moved.unflatten(1, grid)
