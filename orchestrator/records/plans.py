"""The record of a plan: what `sweeps/<id>/plan.json` holds, which every view of a sweep is made of."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NotRequired, TypedDict


class TrialRecord(TypedDict):
    """A trial within a plan."""

    identity: str
    name: str  # unique within the sweep
    point: str  # of the configuration, the same for all of its seeds
    varied: dict[str, str]  # dotted field to value as text
    seed: int
    fingerprint: str  # of the data
    experiment: dict[str, Any]  # of labels, that of the network whose maps they are made of
    stage: NotRequired[str]  # of a sweep of stages
    input: NotRequired[str | None]  # identity of the trial whose product this one takes
    refine: NotRequired[dict[str, Any] | None]  # the refinement, where labels are made
    network: NotRequired[str]  # identity of the trial whose network the refinement brings along


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


def inputs(trial: Mapping[str, Any]) -> list[str]:
    """Identities of the trials that one takes from."""
    return [identity for name in ("input", "network") if (identity := trial.get(name))]


def followers(trials: Sequence[TrialRecord], identities: Iterable[str]) -> list[str]:
    """Identities of these trials of a plan and of all that take from them, directly or not, in the plan's order."""
    wanted = set(identities)
    for trial in trials:  # inputs come first
        if wanted.intersection(inputs(trial)):
            wanted.add(trial["identity"])
    return [trial["identity"] for trial in trials if trial["identity"] in wanted]


def last_stages(document: PlanRecord) -> set[str]:
    """Stages that a sweep is for: no other takes from them. Without stages: the one that has no name."""
    stages: Mapping[str, Any] = document["file"].get("stages") or {}
    taken = {stage.get(name) for stage in stages.values() for name in ("of", "network")}
    return {name for name in stages if name not in taken} or {""}


def supervision(trial: Mapping[str, Any]) -> str:
    """`full` of a trial that learns from masks that people drew, else `weak`."""
    labels = trial["experiment"].get("labels")
    return str(labels["supervision"]) if labels else "weak"
