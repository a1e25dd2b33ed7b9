"""Which event segments of a trial were read, as a short text that can be kept beside what was made of them."""

from __future__ import annotations

from orchestrator.records.events import is_outside_end, segment_number


class Cursor:
    """A set of segment names. Within an attempt a worker's segments arrive in order, so the last number tells all.

    Across attempts they need not: an attempt that was ended from outside may still send what it had on disk, after
    the segment with its end and before the next attempt starts. That is why this is not the name of one segment.
    """

    def __init__(self, text: str = "") -> None:
        self._last: dict[int, int] = {}  # attempt: highest segment number
        self._ended: set[int] = set()  # attempts whose end was written from outside, and read
        for part in text.split():
            attempt, _, number = part.partition(":")
            self._last[int(attempt)] = int(number.rstrip("e"))
            if number.endswith("e"):
                self._ended.add(int(attempt))

    def __contains__(self, segment: str) -> bool:
        attempt, number = segment_number(segment)
        return attempt in self._ended if is_outside_end(segment) else number <= self._last.get(attempt, 0)

    def add(self, segment: str) -> None:
        """Count a segment, and those of its attempt before it, as read."""
        attempt, number = segment_number(segment)
        if is_outside_end(segment):
            self._ended.add(attempt)
            self._last.setdefault(attempt, 0)
        else:
            self._last[attempt] = max(number, self._last.get(attempt, 0))

    def __str__(self) -> str:
        return " ".join(f"{a}:{n}{'e' * (a in self._ended)}" for a, n in sorted(self._last.items()))
