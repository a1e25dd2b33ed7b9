"""A trial of a sweep as it stands."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from mcc_core.methods.registry import DEFAULT
from orchestrator.records.status import TrialStatus


@dataclass(frozen=True)
class Result:
    """One trial as the reports see it; `metrics` are those of its last evaluation."""

    identity: str
    name: str
    point: str
    varied: Mapping[str, str]
    seed: int
    status: TrialStatus
    metrics: Mapping[str, float] = field(default_factory=dict)
    message: str = ""
    log: str | None = None  # where the last output of a trial that did not finish is
    cause: str = ""  # of a failure that has a name, such as nan
    method: str = DEFAULT  # by its name in `method:`
    stage: str = ""  # of a sweep of stages
    compared: bool = True  # its stage is what the sweep is for; others are only shown
    input: str | None = None  # identity of the trial whose product it takes
    full: bool = False  # it learns from masks that people drew

    def score(self, metric: str) -> float | None:
        """A metric's value; None where it was not measured, or is no number."""
        value = self.metrics.get(metric, math.nan)
        return None if math.isnan(value) else value
