"""Trials that an earlier version of the training code ran: they count as other trials now, which is to be said."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from mcc_core.errors import UsageError
from mcc_core.methods.registry import experiment_of
from orchestrator.planning.configurations import Trial
from orchestrator.records.events import TrialState
from orchestrator.records.status import TrialStatus
from orchestrator.records.sweeps import Sweep

_NAMED = 3  # trials in a message


def not_begun(trials: Iterable[Trial], states: Mapping[str, TrialState]) -> list[Trial]:
    """Those that no sweep has begun: others are there, or go on, whatever other code has made of them."""
    return [trial for trial in trials if states[trial.identity].status == TrialStatus.NEW]


def earlier_notes(earlier: Iterable[Sweep], sweep: str, trials: Iterable[Trial]) -> list[str]:
    """A line per earlier sweep that ran some of the trials with other code.

    Such a trial has the same experiment, seed and data as one of `trials`, and another identity.
    """
    wanted = {(t.name, t.seed, t.fingerprint): t for t in trials}
    notes = []
    for other in earlier:
        if other.id == sweep:
            continue
        again = []
        for recorded in other.document["trials"]:
            trial = wanted.get((recorded["name"], recorded["seed"], recorded.get("fingerprint")))
            if (
                trial is not None
                and (trial.stage, trial.refine) == (recorded.get("stage", ""), recorded.get("refine"))
                and trial.identity != recorded["identity"]
                and _same(trial, recorded.get("experiment", {}))
            ):
                again.append(trial.name)
        if again:
            more = f" and {len(again) - _NAMED} more" if len(again) > _NAMED else ""
            notes.append(
                f"{', '.join(again[:_NAMED])}{more}: the training code or the initial weights have changed since "
                f"{other.id}, so that they start anew; what they reached there stays: mcc sweep status {other.id}"
            )
    return notes


def _same(trial: Trial, fields: dict[str, object]) -> bool:
    try:
        return experiment_of(fields, "record") == trial.experiment
    except UsageError:  # of a version whose fields are no longer known
        return False
