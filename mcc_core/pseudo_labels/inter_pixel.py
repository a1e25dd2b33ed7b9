"""Relations of nearby pixels, and the random walk that spreads class maps along them (Ahn et al., CVPR 2019).

A pair is a source pixel and a destination in one of the P directions of `directions`, so that each pair of pixels
counts once. Over a map of h x w, sources are those all of whose destinations lie inside: h-r rows and w-2r columns,
with r the radius minus one. B images, K maps.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from mcc_core.pseudo_labels.labels import IGNORE

Offset = tuple[int, int]  # rows, columns
_EPSILON = 1e-5


@lru_cache(maxsize=16)
def directions(radius: int) -> tuple[Offset, ...]:
    """Offsets closer than `radius`: to the right in the same row, or in rows below."""
    near = range(1 - radius, radius)
    return tuple((y, x) for y in range(radius) for x in near if (y > 0 or x > 0) and y * y + x * x < radius * radius)


@lru_cache(maxsize=1024)
def path(offset: Offset) -> tuple[Offset, ...]:
    """Pixels on the way from (0, 0) to `offset`, both included: of their rectangle, those less than 1 from the line."""
    y, x = offset
    rows, columns = (range(min(0, end), max(0, end) + 1) for end in offset)
    return tuple((i, j) for i in rows for j in columns if (y * j - x * i) ** 2 < y * y + x * x)


def path_affinity(boundary: Tensor, radius: int) -> Tensor:
    """Affinity B,P,h-r,w-2r of pairs: one minus the largest value on the way, of a boundary map B,h,w in [0, 1]."""
    return torch.stack(
        [1 - torch.stack([moved_to(boundary, at, radius) for at in path(to)]).amax(0) for to in directions(radius)], 1
    )


def differences(field: Tensor, radius: int) -> Tensor:
    """Source minus destination, B,D,P,h-r,w-2r, of a field B,D,h,w."""
    source = moved_to(field, (0, 0), radius)
    return torch.stack([source - moved_to(field, to, radius) for to in directions(radius)], 2)


@dataclass(frozen=True)
class Relations:
    """Pairs of labelled pixels, each boolean B,P,h-r,w-2r."""

    background: Tensor  # both background
    foreground: Tensor  # both of one class
    different: Tensor


def relations(label: Tensor, radius: int) -> Relations:
    """What pairs are by a label map B,h,w: 0 background, 1..C classes, IGNORE."""
    source = moved_to(label, (0, 0), radius)[:, None]
    destination = torch.stack([moved_to(label, to, radius) for to in directions(radius)], 1)
    known = (source != IGNORE) & (destination != IGNORE)
    same = known & (source == destination)
    return Relations(same & (source == 0), same & (source != 0), known & ~same)


def affinity_losses(affinity: Tensor, pairs: Relations) -> tuple[Tensor, Tensor]:
    """Cross entropies of affinities, of alike and of unlike pairs.

    The first is the mean of those of background and of foreground pairs. A kind of pair that does not occur adds 0.
    """
    alike, unlike = -(affinity + _EPSILON).log(), -(1 + _EPSILON - affinity).log()
    return (mean_where(alike, pairs.background) + mean_where(alike, pairs.foreground)) / 2, mean_where(
        unlike, pairs.different
    )


def displacement_losses(field: Tensor, pairs: Relations, radius: int) -> tuple[Tensor, Tensor]:
    """Mean absolute errors of a displacement field B,2,h,w (rows, columns), of foreground and of background pairs.

    Foreground pixels of a pair point at one place; background ones have one displacement.
    """
    found = differences(field, radius)
    wanted = torch.tensor(directions(radius), dtype=field.dtype, device=field.device).T[None, :, :, None, None]
    foreground = (found - wanted).abs().mean(1)
    return mean_where(foreground, pairs.foreground), mean_where(found.abs().mean(1), pairs.background)


def transitions(boundary: Tensor, radius: int, power: float) -> Tensor:
    """Transition probabilities N,N of a boundary map h,w with N = h w pixels, as `transition_matrix` has them."""
    # What is beyond the border is behind a boundary.
    affinity = path_affinity(bordered(boundary[None], radius, 1.0), radius)[0]
    return transition_matrix(affinity, radius, power)


def transition_matrix(affinity: Tensor, radius: int, power: float) -> Tensor:
    """Transition probabilities N,N, sparse, from row to column, of affinities P,h,w with N = h w pixels.

    Affinities to the power, 1 of a pixel with itself, with columns of sum 1. Affinities with what is beyond the border
    do not count.
    """
    height, width = affinity.shape[-2:]
    pixels = torch.arange(height * width, device=affinity.device)
    rows, columns = pixels // width, pixels % width
    starts, ends, values = [pixels], [pixels], [affinity.new_ones(height * width)]
    for (y, x), strength in zip(directions(radius), affinity, strict=True):
        inside = (rows + y < height) & (columns + x >= 0) & (columns + x < width)
        starts.append(pixels[inside])
        ends.append(pixels[inside] + y * width + x)
        values.append(strength.flatten()[inside].pow(power))
    start, end = (torch.cat([*first, *second[1:]]) for first, second in ((starts, ends), (ends, starts)))
    weight = torch.cat([*values, *values[1:]])
    total = affinity.new_zeros(height * width).index_add(0, end, weight)
    size = (height * width, height * width)
    return torch.sparse_coo_tensor(torch.stack([start, end]), weight / total[end], size, check_invariants=False)


def random_walk(maps: Tensor, boundary: Tensor, *, radius: int, power: float, log_steps: int) -> Tensor:
    """Class maps K,h,w after 2^log_steps steps of a random walk that boundaries h,w in [0, 1] hold up."""
    return walked(maps * (1 - boundary), transitions(boundary, radius, power), log_steps)


def walked(maps: Tensor, matrix: Tensor, log_steps: int) -> Tensor:
    """Maps K,h,w after 2^log_steps steps by a `transition_matrix` N,N.

    Each step costs a product with a sparse matrix, which for K maps is cheaper than squaring it.
    """
    with warnings.catch_warnings(action="ignore"):  # torch: sparse CSR is in beta
        walk = matrix.t().coalesce().to_sparse_csr()
    x = maps.flatten(1).T.contiguous()
    for _ in range(2**log_steps):
        x = walk @ x
    return x.T.reshape(maps.shape)


def bordered(x: Tensor, radius: int, value: float) -> Tensor:
    """A map ...,h,w with a border of a value, so that every pixel of it is a source."""
    reach = radius - 1
    return F.pad(x, (reach, reach, 0, reach), value=value)


def moved_to(x: Tensor, offset: Offset, radius: int) -> Tensor:
    """The part of a map ...,h,w that lies `offset` from the sources."""
    reach, (y, x_by) = radius - 1, offset
    height, width = x.shape[-2] - reach, x.shape[-1] - 2 * reach
    return x[..., y : y + height, reach + x_by : reach + x_by + width]


def mean_where(values: Tensor, where: Tensor) -> Tensor:
    """Mean of values where a boolean map of their shape is true; 0 where it nowhere is."""
    return (values * where).sum() / (where.to(values.dtype).sum() + _EPSILON)
