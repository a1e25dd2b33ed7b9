"""Sweeps through real Ray Tune and Ray Train: results, stopping and going on, death of a worker, faults of a trial."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import pytest
import torch
from tiny import tiny_plan

from mcc_core.checkpoint import load
from mcc_core.errors import UsageError
from mcc_core.evaluation.in_training import EvaluationRecord
from mcc_core.training import engine
from orchestrator.cluster.session import driver_resources
from orchestrator.execution.runner import _Watch, run
from orchestrator.execution.supervisor import stop_key
from orchestrator.planning.configurations import Trial
from orchestrator.records.checkpoints import saved_checkpoints
from orchestrator.records.events import EventReader, history, segments, trial_state
from orchestrator.records.leases import Lease
from orchestrator.settings import Settings
from orchestrator.storage.store import Storage

# Wall-clock figures, and what changes with the machine: not compared between runs.
TIMED = {"images_per_second"}

pytestmark = pytest.mark.usefixtures("no_hanging")


@pytest.fixture(scope="module")
def settings(ray_settings: Settings) -> Settings:
    return ray_settings


def curve(storage: Storage, trial: Trial) -> list[tuple[int, dict[str, float]]]:
    """Every metrics event, without wall-clock figures."""
    events = [e for e in history(storage, trial.identity) if e["kind"] == "metrics"]
    return [(e["iteration"], {k: v for k, v in e["metrics"].items() if k not in TIMED}) for e in events]


def logged(storage: Storage, trial: Trial) -> list[int]:
    """Iterations with a loss, in the order of the settled log."""
    return [iteration for iteration, metrics in curve(storage, trial) if "loss/total" in metrics]


class InProcess(engine.Callbacks):
    """Collects the curve of a run without Ray."""

    def __init__(self) -> None:
        self.curve: list[tuple[int, dict[str, float]]] = []

    def on_step(self, record: engine.StepRecord) -> None:
        self.curve.append((record.iteration, {k: v for k, v in record.metrics.items() if k not in TIMED}))

    def on_evaluation(self, record: EvaluationRecord) -> None:
        self.curve.append((record.iteration, {metric.key: metric.value for metric in record.metrics}))


@pytest.mark.slow
def test_a_trial_stops_on_request_and_goes_on_from_its_last_whole_checkpoint(
    settings: Settings, storage: Storage, tmp_path: Path
) -> None:
    made = tiny_plan(settings, set={"train.iterations": 150, "train.eval_every": 25})
    (trial,) = made.trials

    def stop_after_a_checkpoint() -> None:
        if saved_checkpoints(storage, trial.identity):
            storage.write(stop_key(made.sweep), b"")

    (stopped,) = run(made, settings, on_tick=stop_after_a_checkpoint)
    assert stopped.status == "stopped"
    *_, previous, newest = saved_checkpoints(storage, trial.identity)
    assert logged(storage, trial) == list(range(1, newest.iteration + 1))

    # As if the machine had died while the last checkpoint was written.
    file = storage.local(newest.key(trial.identity))
    assert file is not None
    file.write_bytes(file.read_bytes()[:-100])
    (result,) = run(made, settings)
    assert result.status == "finished", result.message
    assert set(result.metrics) >= {"val/seg/single/miou", "val/cam/ms/miou"}
    events = history(storage, trial.identity)
    starts = [e for e in events if e["kind"] == "start"]
    assert [e["iteration"] for e in starts] == [0, previous.iteration]
    assert f"{newest.iteration:07d}-0001.pt has" in starts[1]["info"]["skipped_checkpoints"][0]
    assert starts[0]["info"]["certificate"]["images_in_both"] == 0
    assert logged(storage, trial) == list(range(1, 151))
    assert {e["kind"] for e in events} == {"start", "metrics", "image", "checkpoint", "end", "machine"}
    for event in events:
        if event["kind"] == "image":
            assert storage.read(event["path"]).startswith(b"\x89PNG")
    last = saved_checkpoints(storage, trial.identity)[-1]
    assert load(Path(settings.storage) / last.key(trial.identity)).iteration == 150
    assert len(saved_checkpoints(storage, trial.identity)) <= 3
    assert b"packages" in storage.read(f"trials/{trial.identity}/environment.json")

    # The same trial without Ray and undisturbed: the same curve.
    seen = InProcess()
    torch.set_num_threads(1)
    engine.train(trial.experiment, trial.seed, made.index, device=torch.device("cpu"), workdir=tmp_path, callbacks=seen)
    ours = curve(storage, trial)
    assert [i for i, _ in ours] == [i for i, _ in seen.curve]
    for (iteration, mine), (_, theirs) in zip(ours, seen.curve, strict=True):
        assert mine == pytest.approx(theirs, rel=1e-4, abs=1e-6), iteration

    # Once more: nothing is run.
    before = segments(storage, trial.identity)
    (again,) = run(made, settings)
    assert (again.status, again.metrics) == (result.status, result.metrics)
    assert segments(storage, trial.identity) == before


def test_a_killed_worker_is_replaced_and_a_fault_ends_only_its_own_trial(settings: Settings, storage: Storage) -> None:
    made = tiny_plan(
        settings,
        name="faults",
        set={"train.iterations": 60, "train.eval_every": 20, "train.panels": 0},
        points=[{"name": "pair", "set": {"train.workers": 2}}, {"name": "nan", "set": {"optim.lr": 1e30}}],
        resources={"cpus_per_worker": 0.5},
    )
    pair, nan = made.trials
    killed: list[int] = []

    def kill_after_a_checkpoint() -> None:
        if not killed and saved_checkpoints(storage, pair.identity):
            start = next(e for _, events in EventReader(storage, pair.identity) for e in events)
            assert start["info"]["world_size"] == 2
            killed.append(start["info"]["pid"])
            os.kill(killed[0], signal.SIGKILL)

    results = {r.name: r for r in run(made, settings, on_tick=kill_after_a_checkpoint)}
    assert killed
    assert results["pair"].status == "finished", results["pair"].message
    starts = [e for e in history(storage, pair.identity) if e["kind"] == "start"]
    assert [e["attempt"] for e in starts] == [1, 2]
    assert starts[1]["iteration"] >= 20
    assert logged(storage, pair) == list(range(1, 61))

    assert results["nan"].status == "failed"
    assert "not finite at iteration" in results["nan"].message
    state = trial_state(storage, nan.identity)
    assert (state.attempt, state.cause) == (1, "nan")
    assert results["nan"].log is not None and "not finite" in Path(results["nan"].log).read_text()


@pytest.mark.slow
def test_a_process_runs_trial_after_trial_with_the_numbers_of_a_fresh_one_and_none_after_a_fault(
    settings: Settings, storage: Storage, tmp_path: Path
) -> None:
    points = [{"name": "a", "set": {}}, {"name": "b", "set": {"optim.lr": 2e-4}}]
    points += [{"name": "nan", "set": {"optim.lr": 1e30}}, {"name": "c", "set": {"optim.lr": 3e-4}}]
    made = tiny_plan(settings, name="warm", points=points, resources={"max_concurrent": 1})
    results = run(made, settings)
    assert [r.status for r in results] == ["finished", "finished", "failed", "finished"], results
    pids = [next(e["info"]["pid"] for e in history(storage, t.identity) if e["kind"] == "start") for t in made.trials]
    assert pids[0] == pids[1] == pids[2] != pids[3]
    logs = [storage.read(key).decode() for t in made.trials for key in storage.list(f"trials/{t.identity}/logs")]
    assert len(logs) == 4 and ["not finite" in log for log in logs] == [False, False, True, False]

    seen = InProcess()
    torch.set_num_threads(1)
    second = made.trials[1]
    device = torch.device("cpu")
    engine.train(second.experiment, second.seed, made.index, device=device, workdir=tmp_path, callbacks=seen)
    assert curve(storage, second) == seen.curve


@pytest.mark.slow
def test_after_a_fault_of_the_driver_its_trials_end_with_a_checkpoint_and_the_process_lives(
    settings: Settings, storage: Storage
) -> None:
    made = tiny_plan(settings, name="fault", set={"train.iterations": 400, "train.eval_every": 25, "loss.mcc": 0.45})
    (trial,) = made.trials

    def fault_after_a_checkpoint() -> None:
        if saved_checkpoints(storage, trial.identity):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run(made, settings, on_tick=fault_after_a_checkpoint)
    state = trial_state(storage, trial.identity)
    newest = saved_checkpoints(storage, trial.identity)[-1]
    assert state.status == "stopped" and newest.iteration < 400
    assert logged(storage, trial) == list(range(1, newest.iteration + 1))
    assert [t.name for t in threading.enumerate() if t.name == "tune"] == []
    assert [result.status for result in run(made, settings)] == ["finished"]


@pytest.mark.slow
def test_a_trial_that_waits_for_a_worker_stops_too(settings: Settings, storage: Storage) -> None:
    from ray.util import placement_group, remove_placement_group

    taken = placement_group([{"CPU": 2.5}])
    assert taken.wait(60)
    made = tiny_plan(settings, name="waits", set={"loss.mcc": 0.35})
    storage.delete(stop_key(made.sweep))
    threading.Timer(8, lambda: storage.write(stop_key(made.sweep), b"")).start()
    began = time.monotonic()
    (waited,) = run(made, settings)
    assert (waited.status, waited.message) == ("stopped", "the sweep was stopped while this trial waited for a worker")
    assert 8 <= time.monotonic() - began < 90
    remove_placement_group(taken)
    assert [result.status for result in run(made, settings)] == ["finished"]


def test_processes_that_wait_reserve_on_the_node_of_the_driver(settings: Settings) -> None:
    """Anywhere else a hundredth of a CPU could keep a worker from a node of one CPU: seen with two such nodes."""
    import ray

    (node,) = [key for key in driver_resources() if key != "CPU"]
    here = ray.get_runtime_context().get_node_id()
    assert [n["NodeID"] for n in ray.nodes() if node in n["Resources"]] == [here]


def test_trials_that_another_process_runs_are_refused(settings: Settings, storage: Storage) -> None:
    made = tiny_plan(settings, name="held", set={"train.iterations": 2})
    other = Lease(storage, "another", "their-sweep", [t.identity for t in made.trials])
    other.take()
    try:
        with pytest.raises(UsageError, match=f"1 of these trials are being run by process {os.getpid()}"):
            run(made, settings)
    finally:
        other.release()
    assert not storage.exists(f"sweeps/{made.sweep}/plan.json")


def test_the_watch_tells_silence_from_work(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    watch = _Watch(storage, minutes=0.4 / 60)

    def look_for(seconds: float, running: list[str], *, writing: bool) -> list[str]:
        deadline = time.monotonic() + seconds
        found: list[str] = []
        while time.monotonic() < deadline:
            if writing:
                number = len(segments(storage, "a")) + 1
                storage.write(f"trials/a/events/0001-{number:06d}.jsonl", b"{}\n")
            found = found or watch.stalled(running)
            time.sleep(0.05)
        return found

    assert look_for(0.8, ["a", "b"], writing=True) == []  # one that works is enough
    assert look_for(0.8, [], writing=False) == []
    assert look_for(0.9, ["a", "b"], writing=False) == ["a", "b"]
