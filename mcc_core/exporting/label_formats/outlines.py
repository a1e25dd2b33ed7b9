"""Regions of a label map as polygons, and polygons as label maps.

Coordinates are those of annotation tools: the pixel in row y and column x covers x to x+1 and y to y+1. A polygon has
the pixels whose centre it encloses, by the even-odd rule, so that a region's outline gives exactly the region.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import cv2
import numpy as np

Polygon = np.ndarray  # P,2 of x, y
_FAR = 1e6  # pixels: no image is so large


@dataclass(frozen=True)
class Region:
    """Connected pixels of one label (sharing sides), as a mask of its own box."""

    label: int
    top: int
    left: int
    mask: np.ndarray  # h,w bool

    @property
    def filled(self) -> np.ndarray:
        """h,w bool: the region with its holes."""
        outside = np.pad(self.mask, 1).astype(np.uint8)
        # What is outside reaches around corners, as the region does not.
        _, parts = cv2.connectedComponents(1 - outside, connectivity=8)
        return (parts != parts[0, 0])[1:-1, 1:-1]


def regions(label: np.ndarray, background: bool = False) -> list[Region]:
    """The regions of a label map H,W uint8, the largest with holes filled first, so that later ones lie on top.

    Args:
        background: also of label 0, those that lie within a region of another label.
    """
    found: list[tuple[int, Region]] = []
    for number in np.unique(label).tolist():
        if number == 0 and not background:
            continue
        count, parts, stats, _ = cv2.connectedComponentsWithStats((label == number).astype(np.uint8), connectivity=4)
        for part in range(1, count):
            left, top, width, height = (int(value) for value in stats[part, :4])
            mask = parts[top : top + height, left : left + width] == part
            touches = left == 0 or top == 0 or left + width == label.shape[1] or top + height == label.shape[0]
            if number == 0 and touches:
                continue  # not within another
            region = Region(number, top, left, mask)
            found.append((int(region.filled.sum()), region))
    return [region for _, region in sorted(found, key=lambda pair: -pair[0])]


def outline(region: Region) -> Polygon:
    """The outer boundary of a region, holes filled, along the sides of pixels: corners alone, clockwise.

    A region that meets itself at a corner is passed there twice, never crossed.
    """
    filled = np.pad(region.filled, 1)
    ahead = _sides(filled)
    start = min(ahead)
    corners, place, step = [start], start, ahead[start][0]
    while True:
        place = (place[0] + step[0], place[1] + step[1])
        if place == start and len(ahead[place]) == 1:
            break
        # At a corner that is passed twice, turn into the region: 4-connected pixels meet there only.
        options = ahead[place]
        turned = step if len(options) == 1 else (-step[1], step[0])
        following = turned if turned in options else options[0]
        if following != step:
            corners.append(place)
        step = following
        if place == start and following == ahead[start][0]:
            break
    return np.array(corners, np.float64) + np.array([region.left - 1, region.top - 1])


def _sides(filled: np.ndarray) -> dict[tuple[int, int], list[tuple[int, int]]]:
    """Corner x, y to the steps along sides that leave it, the region on the right."""
    ahead: dict[tuple[int, int], list[tuple[int, int]]] = {}
    above, below = filled[:-1], filled[1:]
    before, after = filled[:, :-1], filled[:, 1:]
    for sides, first, step in (
        (below & ~above, (0, 1), (1, 0)),  # upper sides, to the right
        (above & ~below, (1, 1), (-1, 0)),  # lower sides, to the left
        (before & ~after, (1, 0), (0, 1)),  # right sides, downward
        (after & ~before, (1, 1), (0, -1)),  # left sides, upward
    ):
        for y, x in np.argwhere(sides).tolist():
            ahead.setdefault((x + first[0], y + first[1]), []).append(step)
    return ahead


def filled(polygon: Polygon | Sequence[Sequence[float]], height: int, width: int) -> np.ndarray:
    """H,W bool: the pixels whose centre a polygon encloses (even-odd); what is outside the image is cut off.

    Raises ValueError for a point that is none, or too far away to be of an image.
    """
    points = np.asarray(polygon, np.float64)
    if not (np.abs(points) <= _FAR).all():  # NaN too
        raise ValueError("a point that is no number, or far outside the image")
    flips = np.zeros((height, width + 1), np.int32)
    for (x0, y0), (x1, y1) in zip(points, np.roll(points, -1, axis=0), strict=True):
        if y0 == y1:
            continue
        low, high = min(y0, y1), max(y0, y1)
        # Rows whose centre y + 0.5 lies in [low, high).
        rows = np.arange(max(0, int(np.ceil(low - 0.5))), min(height, int(np.ceil(high - 0.5))))
        crossing = x0 + (rows + 0.5 - y0) * (x1 - x0) / (y1 - y0)
        columns = np.ceil(crossing - 0.5).clip(0, width).astype(np.int64)
        np.add.at(flips, (rows, columns), 1)
    return (flips.cumsum(1)[:, :width] % 2).astype(bool)


def painted(shapes: Iterable[tuple[int, np.ndarray]], height: int, width: int) -> np.ndarray:
    """Labels H,W uint8 of (label, mask H,W) pairs, 0 elsewhere; a later one lies on top."""
    label = np.zeros((height, width), np.uint8)
    for number, mask in shapes:
        label[mask] = number
    return label


def runs(mask: np.ndarray) -> list[int]:
    """Lengths of runs of a mask h,w bool, row by row, the first of false."""
    flat = mask.ravel()
    changes = np.flatnonzero(np.diff(flat)) + 1
    bounds = [0, *changes.tolist(), flat.size]
    lengths = [end - begin for begin, end in pairwise(bounds)]
    return [0, *lengths] if flat.size and flat[0] else lengths


def from_runs(lengths: Iterable[int], height: int, width: int) -> np.ndarray:
    """The mask h,w bool of `runs`. Raises ValueError where they are not those of so many pixels."""
    counts = list(lengths)
    if min(counts, default=-1) < 0 or sum(counts) != height * width:
        raise ValueError(f"runs of {sum(counts)} pixels, expected {width}x{height}")
    return np.repeat(np.arange(len(counts)) % 2 == 1, counts).reshape(height, width)
