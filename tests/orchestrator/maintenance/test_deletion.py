"""Deleting a sweep while another comes to share its trials."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tiny import tiny_sweep

from mcc_core.errors import UsageError
from orchestrator.execution.runner import run
from orchestrator.maintenance.storage_care import garbage, remove
from orchestrator.planning.plan import Plan, plan_sweep
from orchestrator.records import sweeps as catalog
from orchestrator.records.events import trial_state, write_attempt
from orchestrator.records.leases import Lease, claimed, deleting, held
from orchestrator.settings import Settings
from orchestrator.storage.store import Storage
from orchestrator.workflows import control as sweep_actions


def plan(settings: Settings, name: str, *seeds: int) -> Plan:
    return plan_sweep(tiny_sweep(name, seeds=list(seeds)), "test", settings=settings, estimate=False)


def finished(settings: Settings, storage: Storage, name: str, *seeds: int) -> catalog.Sweep:
    """A sweep that was run."""
    made = plan(settings, name, *seeds)
    for trial in made.trials:
        write_attempt(storage, trial.identity, 4, {"val/seg/single/miou": 0.5}, 0.0, {})
    run(plan(settings, name, *seeds), settings)
    return catalog.find(storage, name)


def states(storage: Storage, made: Plan) -> list[str]:
    return [trial_state(storage, trial.identity).status for trial in made.trials]


def test_a_trial_that_another_sweep_came_to_share_stays(settings: Settings, storage: Storage) -> None:
    first = finished(settings, storage, "first", 0, 1)
    seen = sweep_actions.deletion(storage, first)
    assert (len(seen.trials), seen.shared) == (2, ())
    second = plan(settings, "second", 1, 2)  # submitted while a person reads what would go
    storage.write(f"trials/{second.trials[1].identity}/experiment.yaml", b"")
    write_attempt(storage, second.trials[1].identity, 4, {}, 0.0, {})
    run(second, settings)
    gone, problem = sweep_actions.delete(settings, first)
    assert (gone.trials, gone.shared, problem) == (seen.trials[:1], seen.trials[1:], "")
    assert states(storage, second) == ["finished", "finished"] and states(storage, plan(settings, "x", 0)) == ["new"]
    assert [sweep.document["name"] for sweep in catalog.sweeps(storage)] == ["second"]


def test_a_submission_during_a_deletion_is_refused_and_leaves_nothing(settings: Settings, storage: Storage) -> None:
    first, second = finished(settings, storage, "first", 0), plan(settings, "second", 0, 1)
    with deleting(storage, first.id, sweep_actions.deletion(storage, first).identities):
        assert claimed(storage) == (set(), set())  # nothing is being run
        with pytest.raises(
            UsageError, match=rf"1 of these trials are being deleted by process .* \(sweep {first.id}\)"
        ):
            run(second, settings)
    assert [sweep.id for sweep in catalog.sweeps(storage)] == [first.id]
    assert states(storage, second) == ["finished", "new"]


def test_what_is_being_run_is_not_deleted(settings: Settings, storage: Storage) -> None:
    first = finished(settings, storage, "first", 0)
    identity = first.document["trials"][0]["identity"]
    other = held(Lease(storage, "other", "second", [identity]))
    with other, pytest.raises(UsageError, match="are being run by process"):
        sweep_actions.delete(settings, first)
    assert trial_state(storage, identity).status == "finished"
    assert storage.list("leases") == []


def test_gc_spares_a_trial_that_a_sweep_took_up_in_between(settings: Settings, storage: Storage) -> None:
    made = plan(settings, "late", 0, 1)
    for trial in made.trials:
        write_attempt(storage, trial.identity, 4, {}, 0.0, {})
    found, _ = garbage(storage, settings.home, older_s=0)
    assert len(found) == 2
    document: dict[str, Any] = {"sweep": "late", "created": 1.0, "name": "late", "file": {"mode": "max"}}
    document["trials"] = [{"identity": made.trials[0].identity}]
    storage.write("sweeps/late/plan.json", json.dumps(document).encode())
    assert [one.key for one in remove(storage, found)] == [f"trials/{made.trials[1].identity}"]
    assert states(storage, made) == ["finished", "new"]
