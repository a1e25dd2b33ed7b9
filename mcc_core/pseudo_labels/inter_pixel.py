"""Relations of nearby pixels, and the random walk that spreads class maps along them (Ahn et al., CVPR 2019).

A pair is a source pixel and a destination in one of the P directions of `directions`, so that each pair of pixels
counts once. Over a map of h x w, sources are those all of whose destinations lie inside: h-r rows and w-2r columns,
with r the radius minus one. B images, K maps.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from mcc_core.device import constant, moved
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
    wanted = constant(directions(radius), field.dtype, field.device).T[None, :, :, None, None]
    foreground = (found - wanted).abs().mean(1)
    return mean_where(foreground, pairs.foreground), mean_where(found.abs().mean(1), pairs.background)


@dataclass(frozen=True)
class Links:
    """Pixels closer than a radius to each other, each with itself too: E of them, behind each other by pixel."""

    begins: Tensor  # N+1, int32: where those of each pixel begin, and the end
    to: Tensor  # E, int32: the other pixel, ascending
    places: Tensor  # E, int32: of 1 and then the affinities P,h,w in one line, which is theirs


@lru_cache(maxsize=4)  # an evaluation's scales
def links(height: int, width: int, radius: int, device: torch.device) -> Links:
    """Of maps h,w; `weights` gives the numbers. Sizes alone decide them, so that no GPU is waited for."""
    pixels = torch.arange(height * width)
    rows, columns = pixels // width, pixels % width
    starts, ends, places = [pixels], [pixels], [torch.zeros_like(pixels)]
    for number, (y, x) in enumerate(directions(radius)):
        inside = (rows + y < height) & (columns + x >= 0) & (columns + x < width)
        starts.append(pixels[inside])
        ends.append(pixels[inside] + y * width + x)
        places.append(1 + number * len(pixels) + pixels[inside])
    start, end = (torch.cat([*first, *second[1:]]) for first, second in ((starts, ends), (ends, starts)))
    order = (start * len(pixels) + end).argsort()
    begins = F.pad(start.bincount(minlength=len(pixels)).cumsum(0), (1, 0))
    place = torch.cat([*places, *places[1:]])
    return Links(*(moved(x.to(torch.int32), device) for x in (begins, end[order], place[order])))


def between(boundary: Tensor, radius: int) -> Tensor:
    """Affinities P,h,w of the pairs of a boundary map h,w: what is beyond the border is behind a boundary."""
    return path_affinity(bordered(boundary[None], radius, 1.0), radius)[0]


def weights(affinity: Tensor, near: Links, power: float) -> Tensor:
    """Weights E of links by affinities P,h,w: these to the power, and 1 of a pixel with itself."""
    return F.pad(affinity.flatten().pow(power), (1, 0), value=1.0).index_select(0, near.places)


def random_walk(maps: Tensor, boundary: Tensor, *, radius: int, power: float, log_steps: int) -> Tensor:
    """Class maps K,h,w after 2^log_steps steps of a random walk that boundaries h,w in [0, 1] hold up."""
    return walked(maps * (1 - boundary), between(boundary, radius), radius=radius, power=power, log_steps=log_steps)


def walked(maps: Tensor, affinity: Tensor, *, radius: int, power: float, log_steps: int) -> Tensor:
    """Maps K,h,w after 2^log_steps steps by affinities P,h,w. Those with what is beyond the border do not count.

    The probability of a step from a pixel to another is their affinity to the power over the sum of the other's, so
    that each step is a weighted mean over nearby pixels: for K maps that costs less than squaring the matrix of all
    pairs.
    """
    near = links(*maps.shape[-2:], radius, maps.device)
    weight = weights(affinity, near, power)

    def step(x: Tensor) -> Tensor:
        """N,K summed over the linked pixels."""
        return F.embedding_bag(near.to, x, near.begins, per_sample_weights=weight, mode="sum", include_last_offset=True)

    x = maps.flatten(1).T.contiguous()
    total = step(torch.ones_like(x[:, :1]))
    for _ in range(2**log_steps):
        x = step(x) / total
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
