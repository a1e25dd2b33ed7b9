"""What a sweep took: time, worker-hours and disk, from its trials' events and files."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from orchestrator.records.events import Event


@dataclass(frozen=True)
class Span:
    """An attempt of a trial: from its first event to its last, unix seconds, with its number of workers."""

    start: float
    end: float
    workers: int


@dataclass(frozen=True)
class Usage:
    """Seconds with at least one trial at work; seconds of each worker, added up; attempts."""

    wall_s: float
    worker_s: float
    attempts: int


def spans(segments: Iterable[tuple[str, Sequence[Event]]], workers: int) -> list[Span]:
    """Attempts of a trial from its segments (name, events), unsettled: what was repeated took its time too."""
    times: dict[str, list[float]] = {}
    for name, events in segments:
        times.setdefault(name.split("-")[0], []).extend(e["t"] for e in events)
    return [Span(min(ts), max(ts), workers) for ts in times.values() if ts]


def usage(spans: Iterable[Span], since: float = 0.0) -> Usage:
    """What attempts took together, from a time on. Attempts beside each other take the wall's time once."""
    cut = sorted(
        (Span(max(s.start, since), s.end, s.workers) for s in spans if s.end > since), key=lambda s: (s.start, s.end)
    )
    wall, reached = 0.0, since
    for span in cut:
        wall += max(0.0, span.end - max(span.start, reached))
        reached = max(reached, span.end)
    return Usage(wall, sum((s.end - s.start) * s.workers for s in cut), len(cut))
