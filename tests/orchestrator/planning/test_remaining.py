"""How long a running sweep will still take."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mcc_core.experiment_files import resolve
from orchestrator.planning.configurations import Trial
from orchestrator.planning.remaining import Going, remaining_s
from orchestrator.records.status import TrialStatus

TRIAL = Trial("", "", {}, resolve("tiny", {}), 0, "", "")
WAITING, RUNNING, FINISHED = TrialStatus.WAITING, TrialStatus.RUNNING, TrialStatus.FINISHED


def trials(**stages: str) -> list[Trial]:
    """By identity; the value is the stage and, after a space, what it takes from."""
    made = []
    for identity, text in stages.items():
        stage, _, of = text.partition(" ")
        made.append(replace(TRIAL, identity=identity, stage=stage, input=of or None))
    return made


def test_nothing_is_said_before_a_speed_is_known() -> None:
    assert remaining_s(trials(a="", b=""), {"a": Going(RUNNING), "b": Going(WAITING)}, {}, 2) is None


def test_those_that_wait_take_as_long_as_those_that_run() -> None:
    going = {"a": Going(RUNNING, 20, 100, 80), "b": Going(WAITING), "c": Going(WAITING), "d": Going(TrialStatus.FAILED)}
    assert remaining_s(trials(a="", b="", c="", d=""), going, {}, 2) == 180  # beside a, then after one another
    assert remaining_s(trials(a="", b="", c="", d=""), going, {}, 1) == 280


def test_a_trial_at_its_last_iteration_is_no_end_of_the_sweep() -> None:
    """Its last evaluation takes as long as that of others; what waits is not forgotten meanwhile."""
    going = {"a": Going(RUNNING, 130, 100, 0), "b": Going(WAITING)}
    assert remaining_s(trials(a="", b=""), going, {}, 1) == 130
    going = {"a": Going(FINISHED, 150, 100, 0), "b": Going(RUNNING, 110, 90, 0)}
    assert remaining_s(trials(a="", b=""), going, {}, 1) == 40
    assert remaining_s(trials(a="", b=""), going | {"b": Going(RUNNING, 160, 90, 0)}, {}, 1) is None  # not `0 s`


def test_stages_take_what_was_planned_at_the_pace_of_those_that_run() -> None:
    pipeline = trials(a="seeds", r="refine a", s="segment r", t="segment r")
    going = {"a": Going(RUNNING, 20, 200, 180), **{i: Going(WAITING) for i in "rst"}}
    planned = {"a": 100.0, "r": 10.0, "s": 50.0, "t": 50.0}
    assert remaining_s(pipeline, going, planned, 2) == pytest.approx(180 + 20 + 100)
    going |= {"a": Going(FINISHED, 200, 180, 0), "r": Going(FINISHED, 20, 20, 0), "s": Going(RUNNING, 0, 60, 60)}
    assert remaining_s(pipeline, going, planned, 1) == pytest.approx(60 + 60)
