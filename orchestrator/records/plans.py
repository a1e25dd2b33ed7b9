"""The record of a plan: what `sweeps/<id>/plan.json` holds, which every view of a sweep is made of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NotRequired, TypedDict


class TrialRecord(TypedDict):
    """A trial within a plan."""

    identity: str
    name: str  # unique within the sweep
    point: str  # of the configuration, the same for all of its seeds
    varied: dict[str, str]  # dotted field to value as text
    seed: int
    fingerprint: str  # of the data
    experiment: dict[str, Any]


class PlanRecord(TypedDict):
    """A sweep that was submitted."""

    sweep: str  # id
    name: str
    source: str  # the sweep file
    created: float  # unix seconds
    command: list[str]
    commit: str | None
    file: Mapping[str, Any]  # the sweep file on its base, or a post-hoc file
    concurrent: int
    estimate: dict[str, Any] | None
    disk_bytes: NotRequired[float | None]
    trials: list[TrialRecord]


def supervision(trial: Mapping[str, Any]) -> str:
    """`full` of a trial that learns from masks that people drew, else `weak`."""
    labels = trial["experiment"].get("labels")
    return str(labels["supervision"]) if labels else "weak"
