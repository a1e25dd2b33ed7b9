"""Gaussian filtering in many dimensions on the permutohedral lattice, in tensor operations on the input's device.

Source: Adams, Baek and Davis 2010, in the variant of Krähenbühl and Koltun's dense CRF. Points are splatted onto the
vertices of the lattice simplex around them, the vertices are blurred along each lattice direction, and points are read
back with the weights they were splatted with. Every step is a gather (`embedding_bag`): no atomic additions, so that
the result is reproducible, on a GPU too.

Shapes: B images, P points an image, D feature dimensions, K channels, M lattice vertices in use.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

_LEAST, _MOST = -256.0, 511.0  # grey levels; real images keep to 0..255


class PermutohedralLattice:
    """The lattice of one set of features, to filter any number of values with.

    Args:
        features: B,P,D, float32 or float64, in units of the Gaussian's standard deviation.
        low, high: bounds of each feature dimension. Given by the caller, so that a GPU need not be waited for.

    Raises:
        ValueError: the bounds span more lattice cells than a 64-bit key can number.
    """

    def __init__(self, features: Tensor, low: Sequence[float], high: Sequence[float]) -> None:
        batch, _, self.dimensions = features.shape
        strides, base, per_image = _key_layout(low, high)
        if batch * per_image >= 2**62:
            raise ValueError(f"sigma too small: {batch * per_image:.1g} lattice keys needed (at most 4e18)")
        elevated = _elevate(features.reshape(-1, self.dimensions).T)
        corner, rank = _enclosing_simplex(elevated)
        keys = _vertex_keys(corner, rank, strides) - sum(b * s for b, s in zip(base, strides, strict=True))
        keys += torch.arange(batch, device=keys.device).mul_(per_image).repeat_interleave(features.shape[1])
        self._weights = _barycentric(elevated, corner, rank).T.contiguous()
        self._connect(keys, strides)

    def _connect(self, keys: Tensor, strides: Sequence[int]) -> None:
        """Number the distinct keys among D+1,BP and find, per vertex, the entries it gathers and its neighbours."""
        ordered, entries = keys.flatten().sort(stable=True)
        vertices, inverse, counts = torch.unique_consecutive(ordered, return_inverse=True, return_counts=True)
        points = keys.shape[1]
        self._slice = torch.empty_like(entries).scatter_(0, entries, inverse).view(-1, points).T.contiguous()
        # One more row than vertices, gathering nothing: the zero that stands for missing neighbours.
        self._offsets = F.pad(counts.cumsum(0), (1, 0))
        self._splat = entries.remainder(points)
        self._splat_weights = self._weights.T.flatten()[entries]
        self._neighbours = [_neighbours(vertices, shift) for shift in _blur_shifts(strides)]

    @property
    def vertices(self) -> int:
        """Lattice vertices in use, over all images."""
        return len(self._offsets) - 1

    def filter(self, values: Tensor) -> Tensor:
        """About in proportion to sum_j exp(-|f_i - f_j|^2 / 2) v_j for values B,P,K; the sum includes i itself."""
        flat = values.reshape(-1, values.shape[-1]).contiguous()  # a point's channels side by side: far faster
        table = self.slice(self.blur(self.splat(flat)))
        return table.view(values.shape)

    def splat(self, values: Tensor) -> Tensor:
        """BP,K onto vertices M+1,K, the last row zero."""
        weights = self._splat_weights.to(values.dtype)
        return F.embedding_bag(self._splat, values, self._offsets, per_sample_weights=weights, mode="sum")

    def blur(self, table: Tensor) -> Tensor:
        """Each vertex plus half its two neighbours, along each of the D+1 lattice directions in turn."""
        weights = table.new_full((len(table), 3), 0.5)
        weights[:, 0].fill_(1)
        for neighbours in self._neighbours:
            table = F.embedding_bag(neighbours, table, per_sample_weights=weights, mode="sum")
        return table

    def slice(self, table: Tensor) -> Tensor:
        """Vertices M+1,K read at the points BP,K."""
        alpha = 1 / (1 + 2.0**-self.dimensions)
        weights = self._weights.to(table.dtype) * alpha
        return F.embedding_bag(self._slice, table, per_sample_weights=weights, mode="sum")


@torch.no_grad()
def bilateral_filter(images: Tensor, values: Tensor, sigma_rgb: float, sigma_xy: float) -> Tensor:
    """Unnormalised bilateral filter: about in proportion to the sum over pixels j of exp(-|f_i - f_j|^2 / 2) v_j.

    Features are the position over `sigma_xy` (pixels) and the colour over `sigma_rgb` (grey levels). Inherent in the
    lattice are a factor, about 0.55 on images, and errors of 5 to 10 % beyond it.

    Args:
        images: B,3,H,W in 0..255 (what lies outside -256..511 is cut). values: B,K,H,W.

    Returns:
        B,K,H,W, float32 or, where the values are, float64. No gradient flows through.

    Raises:
        ValueError: the shapes disagree, or a sigma is not positive.
    """
    batch, channels, height, width = values.shape
    if images.shape != (batch, 3, height, width):
        raise ValueError(f"images are {tuple(images.shape)}, not {(batch, 3, height, width)} as the values are")
    if min(sigma_rgb, sigma_xy) <= 0:
        raise ValueError(f"sigmas must be positive, not {sigma_rgb} and {sigma_xy}")
    dtype = torch.promote_types(values.dtype, torch.float32)
    features = images.new_empty(batch, 5, height, width, dtype=torch.promote_types(images.dtype, torch.float32))
    features[:, 0] = torch.arange(width, device=images.device) / sigma_xy
    features[:, 1] = torch.arange(height, device=images.device)[:, None] / sigma_xy
    features[:, 2:] = images.clamp(_LEAST, _MOST) / sigma_rgb
    low = [0.0, 0.0, *[_LEAST / sigma_rgb] * 3]
    high = [(width - 1) / sigma_xy, (height - 1) / sigma_xy, *[_MOST / sigma_rgb] * 3]
    lattice = PermutohedralLattice(features.flatten(2).transpose(1, 2), low, high)
    points = values.to(dtype).flatten(2).transpose(1, 2)
    return lattice.filter(points).transpose(1, 2).reshape(batch, channels, height, width)


def _axis_scales(dimensions: int) -> list[float]:
    """Scale of each feature such that splat, blur and slice together have a standard deviation of 1."""
    deviation = math.sqrt(2 / 3) * (dimensions + 1)
    return [deviation / math.sqrt((i + 1) * (i + 2)) for i in range(dimensions)]


def _elevate(features: Tensor) -> Tensor:
    """Features D,N, scaled, in the hyperplane of D+1 coordinates that sum to zero (Adams et al., Section 3.1)."""
    dimensions, points = features.shape
    elevated = features.new_empty(dimensions + 1, points)
    total = features.new_zeros(points)
    for i, scale in reversed(list(enumerate(_axis_scales(dimensions), start=1))):
        scaled = features[i - 1] * scale
        elevated[i] = total - i * scaled
        total = total + scaled
    elevated[0] = total
    return elevated


def _enclosing_simplex(elevated: Tensor) -> tuple[Tensor, Tensor]:
    """The remainder-0 vertex of the simplex around each point, and the rank of each coordinate's distance from it."""
    size = len(elevated)
    scaled = elevated / size
    up, down = scaled.ceil() * size, scaled.floor() * size
    corner = torch.where(up - elevated < elevated - down, up, down)
    # The nearest multiples need not sum to zero: the coordinates that were rounded most go one multiple further.
    excess = (corner.sum(0) / size).round().to(torch.int8)
    distance = elevated - corner
    order = torch.arange(size, dtype=torch.int8, device=elevated.device)  # as if each were less than all before it
    rank = excess + order[:, None]
    for i in range(size):
        less = (distance[i] < distance[i + 1 :]).view(torch.int8)
        rank[i] += less.sum(0, dtype=torch.int8)
        rank[i + 1 :] -= less
    rank = rank.to(torch.int64)
    wrap = (rank < 0).to(torch.int64) - (rank >= size).to(torch.int64)
    return corner + size * wrap, rank + size * wrap


def _barycentric(elevated: Tensor, corner: Tensor, rank: Tensor) -> Tensor:
    """Weights D+1,N of the simplex's vertices, by remainder."""
    size = len(elevated)
    descending = torch.empty_like(elevated).scatter_(0, size - 1 - rank, (elevated - corner) / size)
    weights = descending - descending.roll(1, 0)
    weights[0] += 1
    return weights


def _key_layout(low: Sequence[float], high: Sequence[float]) -> tuple[list[int], list[int], int]:
    """How a vertex's first D coordinates make one integer: strides D+1 (the last 0), smallest coordinates, keys needed.

    All coordinates of a vertex are congruent modulo D+1, so a digit holds the quotient only. With digits whose number
    is a multiple of D+1 the strides sum to 1 modulo D+1: the key then holds the remainder too, and moving a vertex by a
    lattice vector adds a constant to its key.
    """
    size = len(low) + 1
    scales = _axis_scales(size - 1)
    strides, base, cells = [], [], 1
    for i in range(size - 1):
        # Coordinate i is the sum of the scaled features from i on, less i times the one before (`_elevate`).
        spans = [(s * lo, s * hi) for s, lo, hi in zip(scales[i:], low[i:], high[i:], strict=True)]
        least, most = sum(lo for lo, _ in spans), sum(hi for _, hi in spans)
        if i:
            least, most = least - i * scales[i - 1] * high[i - 1], most - i * scales[i - 1] * low[i - 1]
        first = math.floor(least / size) - 3  # margin: vertices around a point, their neighbours
        digits = math.ceil(most / size) + 4 - first
        strides.append(cells)
        base.append(first * size)
        cells *= -(-digits // size) * size
    return [*strides, 0], [*base, 0], 2 * size * cells


def _vertex_keys(corner: Tensor, rank: Tensor, strides: Sequence[int]) -> Tensor:
    """Keys D+1,N of the vertices of the simplices, by remainder."""
    size = len(corner)
    # Filled on the device: a copy from the host would wait for a GPU.
    stride = torch.cat([rank.new_full((1, 1), value) for value in strides])
    keys = torch.empty_like(rank)
    keys[0] = (corner.to(torch.int64) * stride).sum(0)
    # From one remainder to the next every coordinate grows by 1, and the next in descending rank falls back by D+1.
    falls = torch.empty_like(rank).scatter_(0, size - 1 - rank, stride.expand_as(rank))
    for k in range(1, size):
        keys[k] = keys[k - 1] + sum(strides) - size * falls[k - 1]
    return keys


def _blur_shifts(strides: Sequence[int]) -> list[int]:
    """What a step along each lattice direction adds to a key."""
    return [len(strides) * stride - sum(strides) for stride in strides]


def _neighbours(vertices: Tensor, shift: int) -> Tensor:
    """Rows M+1,3 of each vertex and its two neighbours along one direction; M where there is none."""
    count = len(vertices)
    wanted = vertices + shift
    place = torch.searchsorted(vertices, wanted).clamp_(max=count - 1)
    rows = torch.arange(count + 1, device=vertices.device)
    ahead = F.pad(torch.where(vertices[place] == wanted, place, count), (0, 1), value=count)
    behind = torch.full_like(rows, count).scatter_(0, ahead, rows)
    behind[count:].fill_(count)
    return torch.stack([rows, ahead, behind], dim=1)
