"""Errors, durations, sizes and where a number is from, as one line for people."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path


def reason(error: BaseException) -> str:
    """An error as one line of bounded length; of a long one the beginning and the end, where nested causes stand."""
    line = " ".join(str(error).split()) or type(error).__name__
    return line if len(line) <= 400 else f"{line[:200]} [...] {line[-195:]}"


def shortened(text: str, width: int) -> str:
    """A text with its middle left out: names of trials differ at their ends."""
    if len(text) <= width:
        return text
    head = (width - 1) // 2
    return f"{text[:head]}…{text[len(text) - (width - 1 - head) :]}"


def duration(seconds: float, *, short: bool = False) -> str:
    """Seconds as people say them: 45 s, 3 min 20 s, 2 h 5 min; short: 45s, 3m20s, 2h05m."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s" if short else f"{whole} s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s" if short else f"{whole // 60} min {whole % 60} s"
    hours, minutes = whole // 3600, whole % 3600 // 60
    return f"{hours}h{minutes:02d}m" if short else f"{hours} h {minutes} min"


def size_text(size: float) -> str:
    """Bytes as people say them: 830 kB, 21 MB, 1.2 GB."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= factor:
            return f"{size / factor:.3g} {unit}"
    return f"{size:.0f} bytes"


def seeds_text(seeds: Collection[int]) -> str:
    """So many seeds, and which: 2 seeds (0, 1)."""
    return f"{len(seeds)} seed{'s' if len(seeds) > 1 else ''} ({', '.join(map(str, seeds))})"


def network_text(backbone: str, weights: object, iterations: int) -> str:
    """What was trained, from which weights (an experiment's `model.weights`), for how long."""
    known = {"random": "random weights", "timm": "timm's ImageNet weights"}
    start = known.get(str(weights), f"the weights {Path(str(weights)).name}")
    return f"{backbone} from {start}, {iterations} iterations"
