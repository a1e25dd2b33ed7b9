"""Answers to questions about a machine: what is in order, what is not, and what to do."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

LIMIT_S = 15.0  # for the answer to one question


CLUSTER_S = 90.0  # for a cluster of this machine's own to start, or the nodes of a running one to answer


Level = Literal["ok", "warn", "fail"]


@dataclass(frozen=True)
class Finding:
    """One line of the report."""

    section: str
    level: Level
    detail: str
    fix: str = ""


Answer = Iterator[tuple[Level, str, str]]


def one_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:300] if lines else type(error).__name__
