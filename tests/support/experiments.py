"""Experiments and records of plans, with their types, for tests that ask for one method's fields."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from mcc_core.experiment_files import resolve
from mcc_core.methods.mcc.config import Experiment
from orchestrator.records.plans import PlanRecord


def mcc_experiment(source: str | Path = "tiny", overrides: Mapping[str, Any] | None = None) -> Experiment:
    """A resolved experiment of the method `mcc`."""
    experiment = resolve(source, dict(overrides or {}))
    assert isinstance(experiment, Experiment)
    return experiment


def plan_record(sweep: str, trials: Sequence[Mapping[str, Any]] = (), **fields: Any) -> PlanRecord:
    """What is written of a sweep that was submitted; `fields` replace what is not said."""
    record = {"sweep": sweep, "name": sweep, "source": f"{sweep}.yaml", "created": 0.0, "command": ["mcc"]}
    record |= {"commit": None, "file": {}, "concurrent": 1, "estimate": None, "trials": list(trials)} | fields
    return cast(PlanRecord, record)
