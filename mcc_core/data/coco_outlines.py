"""Outlines of COCO's objects: what forms they may have, and label maps drawn of them.

An outline is a list of polygons, `[[x1, y1, x2, y2, x3, y3, …], …]`, or a run-length encoding (RLE) of the whole image,
`{"size": [height, width], "counts": …}`, column by column, from background. Each form is checked here before
pycocotools draws it: it takes four numbers for a box and fills what short counts leave open with memory's content.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

EXPECTED = 'polygons [[x1, y1, x2, y2, x3, y3, ...], ...] or an RLE {"size": [height, width], "counts": ...}'


class OutlineError(ValueError):
    """The message says what was found in place of an outline."""


@dataclass(frozen=True)
class Outline:
    """Polygons, or the counts of an RLE. `slivers` are parts of fewer than three points, which are left out."""

    polygons: tuple[tuple[float, ...], ...] = ()
    counts: tuple[int, ...] = ()
    slivers: int = 0


def is_empty(segmentation: object) -> bool:
    """Whether an annotation says that it has no outline: `[]`, or a list of such."""
    return isinstance(segmentation, list) and all(part == [] for part in segmentation)


def read_outline(segmentation: object, height: int, width: int) -> Outline:
    """The outline of an object in an image of `height` x `width`. Raises OutlineError."""
    if isinstance(segmentation, Mapping):
        return Outline(counts=_counts(segmentation, height, width))
    if not isinstance(segmentation, list):
        raise OutlineError(described(segmentation))
    if all(_is_number(part) for part in segmentation):
        raise OutlineError("four numbers, a box" if len(segmentation) == 4 else described(segmentation))
    if len(segmentation) > 2 and all(_is_point(part) for part in segmentation):
        raise OutlineError(f"{len(segmentation)} pairs of points")
    parts = [_polygon(part, height, width) for part in segmentation if part != []]
    polygons = tuple(part for part in parts if len(part) >= 6)
    if not polygons:
        box = ", a box?" if len(parts) == 1 and len(parts[0]) == 4 else ""
        raise OutlineError(f"no part of three points or more ({len(parts[0]) if parts else 0} numbers{box})")
    return Outline(polygons, slivers=len(parts) - len(polygons))


def label_map(outlines: Sequence[tuple[int, Outline]], height: int, width: int) -> np.ndarray:
    """Labels H,W uint8, 0 background, of (label, outline) pairs; a later one lies on top."""
    from pycocotools import mask as rle

    drawn = np.zeros((height, width), np.uint8)
    for label, outline in outlines:
        if outline.polygons:
            packed = rle.merge(rle.frPyObjects([list(part) for part in outline.polygons], height, width))
        else:
            packed = rle.frPyObjects({"size": [height, width], "counts": list(outline.counts)}, height, width)
        drawn[rle.decode(packed).astype(bool)] = label
    return drawn


def described(value: object) -> str:
    """What a value of a JSON file is, in a few words."""
    if isinstance(value, list):
        if not value:
            return "an empty list"
        if all(_is_number(part) for part in value):
            return f"{len(value)} numbers in one list"
        return f"a list of {len(value)}, the first of it {described(value[0])}"
    if isinstance(value, Mapping):
        return f"an object with {', '.join(map(repr, list(value)[:5])) or 'nothing in it'}"
    if isinstance(value, bool) or value is None:
        return {None: "null", True: "true", False: "false"}[value]
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def _polygon(part: object, height: int, width: int) -> tuple[float, ...]:
    """The numbers of one polygon. Raises OutlineError."""
    if not isinstance(part, list):
        raise OutlineError(f"{described(part)} in place of a polygon")
    if part and all(_is_point(point) for point in part):
        raise OutlineError(f"a polygon of {len(part)} pairs of points")
    if wrong := [number for number in part if not _is_number(number)]:
        raise OutlineError(f"{described(wrong[0])} in a polygon")
    if len(part) % 2:
        raise OutlineError(f"a polygon of {len(part)} numbers, which are no pairs")
    axes = (part[::2], width, f"x in an image {width} wide"), (part[1::2], height, f"y in an image {height} high")
    for numbers, side, where in axes:
        # Far outside: of another image, or of another size of this one.
        if outside := [number for number in numbers if not -side <= number <= 2 * side]:
            raise OutlineError(f"a polygon with {described(outside[0])} as {where}")
    return tuple(map(float, part))


def _counts(rle: Mapping[Any, Any], height: int, width: int) -> tuple[int, ...]:
    """The runs of an RLE that has the image's size. Raises OutlineError."""
    if "size" not in rle or "counts" not in rle:
        raise OutlineError(described(rle))
    size, counts = rle["size"], rle["counts"]
    if size != [height, width]:
        shown = f"{size[0]}x{size[1]}" if isinstance(size, list) and _is_point(size) else described(size)
        raise OutlineError(f"an RLE of {shown} (height x width), its image has {height}x{width}")
    runs = _unpacked(counts) if isinstance(counts, str) else counts
    if not isinstance(runs, list) or any(not isinstance(run, int) or isinstance(run, bool) for run in runs):
        raise OutlineError(f"an RLE whose counts are {described(counts)}")
    if sum(runs) != height * width or min(runs) < 0:
        raise OutlineError(f"an RLE whose counts are not those of {height}x{width} pixels")
    return tuple(runs)


def _unpacked(text: str) -> list[int] | None:
    """The runs of COCO's compressed counts: 5 bits a character, lowest first, from the third run on as a difference to
    the one before the last. None where it is no such text."""
    runs: list[int] = []
    value = bits = 0
    for character in text:
        code = ord(character) - 48
        if not 0 <= code < 64 or bits > 30:
            return None
        value |= (code & 31) << bits
        bits += 5
        if code & 32:
            continue
        if code & 16:
            value -= 1 << bits
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
        value = bits = 0
    return None if bits else runs


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_point(value: object) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(map(_is_number, value))
