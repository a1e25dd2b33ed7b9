"""Runs in MLflow whose process died say so, by whoever comes by; those of living processes stay open."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import commands
import pytest
from begun import begin, one_trial
from experiments import plan_record
from mlflow import MlflowClient
from mlflow.entities import Run

from orchestrator.records import layout
from orchestrator.records.events import write_attempt, write_end
from orchestrator.records.leases import Lease, feeding, held
from orchestrator.records.status import TrialStatus
from orchestrator.records.sweeps import results
from orchestrator.records.waiting import begin_waiting, end_waiting
from orchestrator.settings import Settings
from orchestrator.storage.store import Storage
from orchestrator.tracking.background import BackgroundSync
from orchestrator.tracking.liveness import Watcher, settle_all
from orchestrator.tracking.sync import Tracker

TRIAL = "a" * 16


def elsewhere(lease: Lease, silent_s: float) -> None:
    """A lease as another host wrote it, some time ago."""
    content = lease.content | {"host": "another-machine", "t": time.time() - silent_s}
    lease.storage.write(lease.key, json.dumps(content).encode())


@pytest.fixture
def shown(settings: Settings, storage: Storage, tmp_path: Path) -> Tracker:
    """A sweep `s-1` of one trial that was begun and shown; nothing of it runs any more."""
    record = one_trial("s-1", TRIAL)
    storage.write(layout.plan("s-1"), json.dumps(record).encode())
    begin(storage, tmp_path, TRIAL)
    tracker = Tracker(settings, record)
    tracker.sync()
    return tracker


def look(tracker: Tracker) -> tuple[Run, Run]:
    """The runs of the trial and of its sweep."""
    return tracker.client.get_run(str(tracker.children[TRIAL].run)), tracker.client.get_run(tracker.parent)


def test_a_lease_of_another_host_is_dead_when_it_is_silent(
    settings: Settings, storage: Storage, shown: Tracker
) -> None:
    leases = [Lease(storage, "other", "s-1", [TRIAL]), feeding(storage, "s-1")]
    for lease in leases:
        elsewhere(lease, 10)
    assert settle_all(settings) == 0
    assert [run.info.status for run in look(shown)] == ["RUNNING", "RUNNING"]
    for lease in leases:
        elsewhere(lease, 100)
    assert settle_all(settings) == 2
    trial, sweep = look(shown)
    assert (trial.info.status, sweep.info.status) == ("KILLED", "KILLED")
    assert trial.data.tags["mcc.state"] == "interrupted" and "cut off" in trial.data.tags["mcc.message"]
    assert trial.data.tags["mcc.settled"] and sweep.data.tags["mcc.settled"]
    assert trial.info.end_time is not None and trial.info.end_time < 1000 * time.time()  # its last sign, not now
    assert settle_all(settings) == 0
    write_attempt(storage, TRIAL, 1, {}, time.time(), {})  # taken up again
    next_driver = Tracker(settings, one_trial("s-1", TRIAL))
    next_driver.sync()
    next_driver.finish()
    again, sweep = look(next_driver)
    assert again.info.run_id == trial.info.run_id and (again.info.status, sweep.info.status) == ("FINISHED",) * 2
    assert again.data.tags["mcc.state"] == "finished" and not again.data.tags["mcc.settled"]


def test_what_ended_before_it_was_shown_ends_as_it_did(settings: Settings, storage: Storage, shown: Tracker) -> None:
    write_end(storage, TRIAL, TrialStatus.FAILED, "no memory")
    assert settle_all(settings) == 2
    trial, sweep = look(shown)
    assert (trial.info.status, sweep.info.status) == ("FAILED", "FAILED")
    assert trial.data.tags["mcc.message"] == "no memory"


def test_a_sweep_that_was_taken_for_dead_runs_again(settings: Settings, storage: Storage, shown: Tracker) -> None:
    """A machine that slept: its leases were dead, its runs were ended, and it wakes up."""
    assert settle_all(settings) == 2
    with BackgroundSync(settings, one_trial("s-1", TRIAL), every_s=0.1):
        lease = Lease(storage, "woke", "s-1", [TRIAL])
        lease.take()
        shown.settle()
        trial, sweep = look(shown)
        assert (trial.info.status, sweep.info.status) == ("RUNNING", "RUNNING")
        assert trial.data.tags["mcc.state"] == "running" and not trial.data.tags["mcc.settled"]
        assert settle_all(settings) == 0
        lease.release()
    assert settle_all(settings) == 2


def test_a_trial_that_waits_for_a_node_says_so_until_it_runs_again(
    settings: Settings, storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def told() -> tuple[str, str]:
        tracker.settle()
        run, _ = look(tracker)
        assert run.info.status == "RUNNING"
        return run.data.tags["mcc.state"], run.data.tags.get("mcc.message", "")

    def status() -> str:
        (result,) = results(storage, tracker.document)
        assert result.status == "running"
        return result.message

    tracker = Tracker(settings, one_trial("s-1", TRIAL))
    with held(Lease(storage, "here", "s-1", [TRIAL])), held(feeding(storage, "s-1")):
        begin(storage, tmp_path, TRIAL)
        tracker.sync()
        assert told() == ("running", "") and status() == ""
        now = time.time()
        monkeypatch.setattr("orchestrator.records.waiting.time.time", lambda: now + 30)
        assert told() == ("running", "")
        assert begin_waiting(storage, TRIAL)
        state, message = told()
        assert state == "waiting" and message.startswith("waits for a node") and status() == message
        again = Tracker(settings, one_trial("s-1", TRIAL))  # MLflow was away: what is known of the run is read again
        again.settle()
        assert look(again)[0].data.tags["mcc.state"] == "waiting"
        end_waiting(storage, TRIAL)
        assert told() == ("running", "")
        monkeypatch.setattr("orchestrator.records.waiting.time.time", lambda: now + 200)
        state, message = told()
        assert state == "running" and message.startswith("no sign of its worker for 3 min") and status() == message
        monkeypatch.undo()
        assert begin_waiting(storage, TRIAL)
        begin(storage, tmp_path, TRIAL, attempt=2)
        tracker.sync()
        assert told() == ("running", "") and status() == ""


def test_another_sweep_that_is_fed_settles_and_so_do_the_pages(
    settings: Settings, storage: Storage, shown: Tracker
) -> None:
    def ended() -> bool:
        return all(run.info.status == "KILLED" for run in look(shown))

    def until() -> None:
        deadline = time.monotonic() + 30
        while not ended():
            assert time.monotonic() < deadline
            time.sleep(0.1)

    other = plan_record("t-2", [], name="t-2")
    storage.write(layout.plan("t-2"), json.dumps(other).encode())
    with BackgroundSync(settings, other, every_s=0.1) as feeder:
        until()
        assert feeder.problem is None
    shown.client.update_run(str(shown.children[TRIAL].run), status="RUNNING")
    with Watcher(settings, every_s=0.1):
        until()


@pytest.mark.slow
def test_of_a_killed_driver_status_and_mlflow_tell_at_once(tmp_path: Path) -> None:
    """Power is cut: SIGKILL to the driver's whole process group, Ray and workers with it, in the middle of a trial."""
    from chaos_lab import Lab

    lab = Lab(tmp_path / "lab")
    lab.fields["set"] |= {"train.iterations": 1500, "train.eval_every": 250}
    process = lab.submit()
    settings = Settings.at(lab.home)
    client = MlflowClient(tracking_uri=settings.tracking_uri)

    def states() -> dict[str, Run]:
        if not (lab.home / "mlflow.db").exists() or (found := client.get_experiment_by_name("mcc")) is None:
            return {}
        return {run.data.tags.get("mcc.kind", ""): run for run in client.search_runs([found.experiment_id])}

    lab.until(lambda: lab.reached(260) and {"trial", "sweep"} <= states().keys(), process)
    assert settle_all(settings) == 0 and {run.info.status for run in states().values()} == {"RUNNING"}
    os.killpg(process.pid, signal.SIGKILL)
    process.wait(30)
    told = commands.run("sweep", "status", cwd=lab.folder, env=lab.environment)
    assert told.returncode == 0 and "interrupted" in told.stdout, told.stdout + told.stderr
    after = states()
    assert {kind: run.info.status for kind, run in after.items()} == {"trial": "KILLED", "sweep": "KILLED"}
    assert after["trial"].data.tags["mcc.state"] == "interrupted" and after["trial"].data.tags["mcc.settled"]
