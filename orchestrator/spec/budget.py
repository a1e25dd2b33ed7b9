"""How much a sweep may use, over all of its launches, and what it has used."""

from __future__ import annotations

from pydantic import Field

from mcc_core.config import Strict


class Budget(Strict):
    """Limits of a sweep. At the first that is reached running trials write a checkpoint and stop."""

    trials: int | None = Field(None, ge=1, description="trials that may be begun")
    hours: float | None = Field(None, gt=0, description="wall time with trials running")
    worker_hours: float | None = Field(None, gt=0, description="that time, times the workers at work")
