"""The order of a sweep of stages, by what is in storage, without processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from staged import BOUNDARIES, staged_plan

from orchestrator.execution.choose_queue import queue_of
from orchestrator.execution.stage_queue import StageQueue
from orchestrator.planning.configurations import Trial
from orchestrator.planning.plan import Plan, plan_document
from orchestrator.records.budget import Meter
from orchestrator.records.events import write_end
from orchestrator.records.status import TrialStatus
from orchestrator.records.sweeps import results
from orchestrator.settings import Settings
from orchestrator.spec.budget import Budget
from orchestrator.storage.store import Storage
from orchestrator.worker.assignment import Assignment

AGAIN = {"of": "refine", "refine": {"kind": "par"}}


def assign(trial: Trial, **changes: Any) -> Assignment:
    fields: dict[str, Any] = {
        "identity": trial.identity,
        "name": trial.name,
        "experiment": trial.experiment.model_dump(mode="json"),
        "seed": trial.seed,
        "fingerprint": trial.fingerprint,
        "metric": "",
        "mode": "max",
        "storage": "",
        "home": None,
        "stop_key": "",
        "launch": "l",
        "cpus_per_worker": 1.0,
        "gpus_per_worker": 0.0,
        "input": trial.input,
        "refine": trial.refine,
        "network": trial.network,
    }
    return Assignment(**fields | changes)


@pytest.fixture
def made(settings: Settings) -> Plan:
    return staged_plan(settings, again=AGAIN)


def queue(made: Plan, storage: Storage, *names: str, budget: int | None = None) -> StageQueue:
    """A queue of the trials of these names, of all without any."""
    todo = [t for t in made.trials if not names or t.name in names]
    found = queue_of(made, todo, storage, assign, Meter(storage, made.sweep, Budget(trials=budget)))
    assert isinstance(found, StageQueue)
    return found


def end(found: StageQueue, storage: Storage, task: Assignment, status: TrialStatus = TrialStatus.FINISHED) -> None:
    write_end(storage, task.identity, status, "")
    found.ended(task.identity)


def test_a_trial_is_handed_out_when_what_it_takes_is_there(made: Plan, storage: Storage) -> None:
    found = queue(made, storage)
    seeds = found.take()
    assert seeds is not None and seeds.name == "seeds" and found.take() is None and not found.over()
    end(found, storage, seeds)
    first, second = found.take(), found.take()
    assert first is not None and second is not None and found.take() is None
    assert {first.name, second.name} == {"refine threshold=0.3", "refine threshold=0.5"}
    assert first.input == seeds.identity and first.refine == {"kind": ["none"], "threshold": 0.3}
    end(found, storage, second)  # the other is still at work
    third = found.take()
    assert third is not None and third.name == "again threshold=0.5" and not found.over()
    end(found, storage, first)
    assert found.take() is not None and found.take() is None and found.over()


def test_what_was_done_before_is_not_waited_for(made: Plan, storage: Storage) -> None:
    seeds, first, *_ = made.trials
    for trial in (seeds, first):
        write_end(storage, trial.identity, TrialStatus.FINISHED, "")
    found = queue(made, storage, "refine threshold=0.5", "again threshold=0.3", "again threshold=0.5")
    tasks = [found.take(), found.take(), found.take()]
    assert [task.name if task else None for task in tasks] == ["refine threshold=0.5", "again threshold=0.3", None]


def test_what_follows_a_failure_is_left_out_and_said(made: Plan, storage: Storage) -> None:
    found = queue(made, storage)
    seeds = found.take()
    assert seeds is not None
    end(found, storage, seeds)
    first, second = found.take(), found.take()
    assert first is not None and second is not None
    end(found, storage, first, TrialStatus.FAILED)
    end(found, storage, second)
    last = found.take()
    assert last is not None and last.name == "again threshold=0.5" and found.over()
    end(found, storage, last)
    (lost,) = found.blocked
    told = {r.name: (r.status, r.message) for r in results(storage, plan_document(made, ["mcc"], None))}
    assert told["again threshold=0.3"] == ("new", "not begun: its input refine threshold=0.3 failed")
    assert told["again threshold=0.5"][0] == "finished"
    assert lost == next(t.identity for t in made.trials if t.name == "again threshold=0.3")


def test_all_that_follows_failed_seeds_is_named(made: Plan, storage: Storage) -> None:
    found = queue(made, storage)
    seeds = found.take()
    assert seeds is not None
    end(found, storage, seeds, TrialStatus.FAILED)
    assert found.take() is None and found.over() and len(found.blocked) == 4
    told = [r.message for r in results(storage, plan_document(made, ["mcc"], None)) if r.status == "new"]
    assert told == ["not begun: its input seeds failed"] * 4


def test_what_takes_from_two_waits_for_both(settings: Settings, storage: Storage) -> None:
    made = staged_plan(settings, **BOUNDARIES)
    found = queue(made, storage)
    for name in ("seeds", "unsure", "boundaries", "refine"):
        task = found.take()
        assert task is not None and task.name == name and found.take() is None
        assert (task.network is not None) == (name == "refine")
        end(found, storage, task)
    assert found.over()
    again = queue(made, storage, "refine")  # both were done before
    assert again.take() is not None and again.over()


@pytest.mark.parametrize("failed", ["seeds", "unsure", "boundaries"])
def test_what_takes_from_one_that_failed_is_left_out_once(settings: Settings, storage: Storage, failed: str) -> None:
    made = staged_plan(settings, **BOUNDARIES)
    found, task = queue(made, storage), None
    while task is None or task.name != failed:
        task = found.take()
        assert task is not None
        end(found, storage, task, TrialStatus.FAILED if task.name == failed else TrialStatus.FINISHED)
    assert found.take() is None and found.over()
    left = [t.name for t in made.trials][[t.name for t in made.trials].index(failed) + 1 :]
    assert sorted(found.blocked) == sorted(t.identity for t in made.trials if t.name in left)
    told = {r.name: r.message for r in results(storage, plan_document(made, ["mcc"], None))}
    assert {told[name] for name in left} == {f"not begun: its input {failed} failed"}


def test_a_stopped_input_begins_nothing_and_ends_the_queue(made: Plan, storage: Storage) -> None:
    found = queue(made, storage)
    seeds = found.take()
    assert seeds is not None
    end(found, storage, seeds, TrialStatus.STOPPED)
    assert found.take() is None and found.over()


def test_without_an_input_in_this_launch_nothing_is_waited_for(made: Plan, storage: Storage) -> None:
    found = queue(made, storage, "again threshold=0.3")
    assert found.take() is None and found.over() and len(found.blocked) == 1


def test_a_budget_of_trials_counts_what_it_does_not_let_follow(made: Plan, storage: Storage) -> None:
    found = queue(made, storage, budget=2)
    seeds = found.take()
    assert seeds is not None
    end(found, storage, seeds)
    first = found.take()
    assert first is not None and found.take() is None
    end(found, storage, first)
    assert found.take() is None and found.over() and len(found.refused) == 3


def test_seeds_that_run_again_are_waited_for(made: Plan, storage: Storage, tmp_path: Path) -> None:
    """With --force what finished before is in the list again."""
    for trial in made.trials:
        write_end(storage, trial.identity, TrialStatus.FINISHED, "")
    found = queue(made, storage)
    assert found.take() is not None and found.take() is None and not found.over()
