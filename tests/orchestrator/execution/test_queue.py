"""Who runs next, by what is in storage: searches, populations, pruning and budgets, without processes."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from tiny import settings_in, tiny_sweep

from mcc_core.validation import flatten
from orchestrator.execution.choose_queue import queue_of
from orchestrator.execution.queue import PopulationQueue, SearchQueue, TrialQueue
from orchestrator.planning.configurations import Trial
from orchestrator.planning.plan import Plan, plan_sweep, recorded
from orchestrator.records.budget import Meter, sweep_state
from orchestrator.records.checkpoints import CheckpointRecord, newest_checkpoint, newest_iteration
from orchestrator.search.pruning import Pruner
from orchestrator.spec.budget import Budget
from orchestrator.spec.schedulers import Asha, Median
from orchestrator.storage.store import Storage
from orchestrator.worker.assignment import Assignment

SEG = "val/seg/single/miou"


def plan(tmp_path: Path, **fields: Any) -> Plan:
    return plan_sweep(tiny_sweep(**fields), "s.yaml", settings=settings_in(tmp_path), estimate=False)


def assign(trial: Trial, **changes: Any) -> Assignment:
    fields: dict[str, Any] = {
        "identity": trial.identity,
        "name": trial.name,
        "experiment": trial.experiment.model_dump(mode="json"),
        "seed": trial.seed,
        "fingerprint": trial.fingerprint,
        "metric": SEG,
        "mode": "max",
        "storage": "",
        "home": None,
        "stop_key": "",
        "launch": "l",
        "cpus_per_worker": 1.0,
        "gpus_per_worker": 0.0,
    }
    return Assignment(**fields | changes)


def directing(made: Plan, storage: Storage, todo: list[Trial] | None = None) -> TrialQueue:
    trials = list(made.trials) if todo is None else todo
    return queue_of(made, trials, storage, assign, Meter(storage, made.sweep, made.file.budget))


def write(storage: Storage, identity: str, attempt: int, events: list[dict[str, Any]]) -> None:
    lines = "".join(json.dumps({"t": 1.0} | event) + "\n" for event in events)
    number = len(storage.list(f"trials/{identity}/events")) + 1
    storage.write(f"trials/{identity}/events/{attempt:04d}-{number:06d}.jsonl", lines.encode())


def scored(iteration: int, value: float) -> dict[str, Any]:
    return {"kind": "metrics", "iteration": iteration, "metrics": {SEG: value}}


def end(storage: Storage, task: Assignment, value: float, status: str = "finished", iteration: int = 4) -> None:
    last = {"kind": "end", "iteration": iteration, "status": status, "message": "", "metrics": {SEG: value}}
    write(storage, task.identity, 1, [scored(iteration, value), last | {"launch": task.launch}])


def checkpoint(storage: Storage, identity: str, iteration: int, content: bytes) -> None:
    file = Path(storage.url) / "made.pt"
    file.write_bytes(content)
    saved = CheckpointRecord.of(file, iteration, None, 0)
    storage.write(saved.key(identity), content)
    storage.write(f"{saved.key(identity)}.json", json.dumps(asdict(saved)).encode())


def weights(storage: Storage, identity: str, iteration: int) -> bytes:
    one, file, _ = newest_checkpoint(storage, identity, Path(storage.url), only=iteration)
    assert one is not None and file is not None
    return file.read_bytes()


SEARCH: dict[str, Any] = {
    "parameters": {"loss.mcc": {"uniform": [0.0, 1.0]}},
    "search": {"kind": "tpe", "points": 6, "startup": 2},
}


def go(guide: TrialQueue, storage: Storage, most: int = 100) -> list[Assignment]:
    """Run what is handed out, one after the other; a trial's score is its weight of the contrast, plus its seed."""
    done: list[Assignment] = []
    while len(done) < most and (task := guide.take()) is not None:
        end(storage, task, task.experiment["loss"]["mcc"] + task.seed)
        guide.ended(task.identity)
        done.append(task)
    return done


def test_a_search_is_told_the_mean_over_seeds_and_goes_on_from_its_record(tmp_path: Path, storage: Storage) -> None:
    made = plan(tmp_path, **SEARCH, seeds=[0, 1])
    guide = directing(made, storage)
    assert isinstance(guide, SearchQueue)
    first = go(guide, storage, most=7)  # 2 seeds each: point 3 is half done
    assert [t.seed for t in first] == [0, 1, 0, 1, 0, 1, 0]
    values = {t.number: t.value for t in guide.open.search._study.get_trials(deepcopy=False)}
    assert values[0] == pytest.approx(first[0].experiment["loss"]["mcc"] + 0.5) and values[3] is None
    whole = recorded(storage, made.sweep)
    assert len(whole) == 4

    again = plan(tmp_path, **SEARCH, seeds=[0, 1])
    left = [t for t in again.trials if t.identity not in again.finished]
    assert [t.seed for t in left] == [1] and left[0].point.startswith("#3")
    rest = go(directing(again, storage, left), storage)
    assert len(rest) == 1 + 2 * 2
    assert recorded(storage, made.sweep)[:4] == whole and len(recorded(storage, made.sweep)) == 6
    done = plan(tmp_path, **SEARCH, seeds=[0, 1])
    assert done.finished == {t.identity for t in done.trials} and len(done.trials) == 12
    # The same search with one seed has its results already; with a third only that is left.
    assert len(plan(tmp_path, **SEARCH).finished) == 6
    more = plan(tmp_path, **SEARCH, seeds=[0, 1, 2])
    assert {t.seed for t in more.trials if t.identity not in more.finished} == {2}


def test_a_point_that_is_proposed_again_is_not_run_again(tmp_path: Path, storage: Storage) -> None:
    coarse = {"parameters": {"mask.scale": {"choice": [1, 2]}}, "search": {"kind": "tpe", "points": 8, "startup": 2}}
    guide = directing(plan(tmp_path, **coarse), storage)
    assert 1 <= len(go(guide, storage)) <= 2
    assert isinstance(guide, SearchQueue) and guide.over() and guide.open.left == 0
    assert all(t.state.name == "COMPLETE" for t in guide.open.search._study.get_trials(deepcopy=False))


def test_a_failed_trial_does_not_stop_a_search(tmp_path: Path, storage: Storage) -> None:
    guide = directing(plan(tmp_path, **SEARCH), storage)
    count = 0
    while (task := guide.take()) is not None:
        end(storage, task, float("nan") if count % 2 else 0.5, status="failed" if count % 2 else "finished")
        guide.ended(task.identity)
        count += 1
    assert count == 6 and guide.over()


POPULATION: dict[str, Any] = {
    "parameters": {"loss.mcc": {"uniform": [0.1, 1.0]}},
    "scheduler": {"kind": "pbt", "population": 4, "interval": 2},
    "set": {"train.iterations": 6},
}


def segment(guide: TrialQueue, storage: Storage, score: dict[str, float]) -> list[Assignment]:
    """One generation: hand out every member, then end each with a checkpoint of its own content."""
    tasks = []
    while (task := guide.take()) is not None:
        tasks.append(task)
    for task in tasks:
        assert task.until is not None
        checkpoint(storage, task.identity, task.until, f"{task.name} at {task.until}".encode())
        end(storage, task, score[task.name], "stopped" if task.until < 6 else "finished", task.until)
    for task in tasks:
        guide.ended(task.identity)
    return tasks


def test_a_population_goes_on_after_any_interruption_as_it_would_have(tmp_path: Path, storage: Storage) -> None:
    made = plan(tmp_path, **POPULATION)
    guide = directing(made, storage)
    score = {f"member-{n}": n / 10 for n in range(4)}
    first = segment(guide, storage, score)
    assert [t.until for t in first] == [2] * 4 and not any(t.clone for t in first)
    worst, best = made.trials[0], made.trials[3]
    assert weights(storage, worst.identity, 2) == b"member-3 at 2"
    assert weights(storage, best.identity, 2) == b"member-3 at 2"

    # Cut off before the clone was copied: another process copies it and hands out the same second generation.
    checkpoint(storage, worst.identity, 2, b"its own")
    again = directing(plan(tmp_path, **POPULATION), storage)
    assert isinstance(again, PopulationQueue)
    assert weights(storage, worst.identity, 2) == b"member-3 at 2"
    second, other = segment(again, storage, score), []
    while (task := guide.take()) is not None:
        other.append(task)
    assert second == other
    clone = next(t for t in second if t.clone)
    assert clone.clone is not None and clone.clone["donor"] == best.identity and clone.clone["iteration"] == 2
    assert clone.experiment["loss"]["mcc"] == clone.clone["fields"]["loss.mcc"]
    assert clone.experiment["loss"]["mcc"] != float(flatten(best.experiment)["loss.mcc"])
    third = segment(again, storage, score)
    assert [t.until for t in third] == [6] * 4 and again.take() is None and again.over()
    assert all(newest_iteration(storage, t.identity) == 6 for t in made.trials)


def test_a_failed_member_is_revived_by_a_clone(tmp_path: Path, storage: Storage) -> None:
    made = plan(tmp_path, **POPULATION)
    guide = directing(made, storage)
    tasks = [guide.take() for _ in range(4)]
    for task in tasks:
        assert task is not None
        if task.name == "member-2":
            end(storage, task, float("nan"), "failed", 1)
        else:
            checkpoint(storage, task.identity, 2, task.name.encode())
            end(storage, task, 0.5 if task.name == "member-1" else 0.1, "stopped", 2)
        guide.ended(task.identity)
    assert weights(storage, made.trials[2].identity, 2) == b"member-1"
    revived = [guide.take() for _ in range(4)]
    assert {t.name for t in revived if t} == {f"member-{n}" for n in range(4)}


def test_asha_prunes_what_is_behind_at_a_rung(storage: Storage) -> None:
    pruner = Pruner(Asha(kind="asha", min_iterations=10, eta=2), SEG, "max", storage)
    for name, value in (("a", 0.5), ("b", 0.4), ("c", 0.6), ("d", 0.3)):
        write(storage, name, 1, [scored(5, 0.1), scored(10, value)])
    assert pruner.look(["a"]) == {}
    assert "asha: val/seg/single/miou 0.4 at iteration 10 is too low" in pruner.look(["b"])["b"]
    assert set(pruner.look(["c", "d"])) == {"d"}
    pruner.ended("b", pruned=True)
    write(storage, "c", 1, [scored(20, 0.2)])  # alone at its rung
    assert pruner.look(["c"]) == {}
    # Another process comes to the same by reading the same logs.
    again = Pruner(Asha(kind="asha", min_iterations=10, eta=2), SEG, "max", storage)
    assert set(again.look(["a", "b", "c", "d"])) == {"b", "d"}


def test_median_stopping_waits_for_finished_trials(storage: Storage) -> None:
    pruner = Pruner(Median(kind="median", min_trials=2), SEG, "max", storage)
    for name, value in (("a", 0.5), ("b", 0.6)):
        write(storage, name, 1, [scored(10, value)])
        assert pruner.look([name]) == {}
    write(storage, "c", 1, [scored(5, 0.1)])
    assert pruner.look(["c"]) == {}
    pruner.ended("a", pruned=False)
    pruner.ended("b", pruned=False)
    write(storage, "c", 1, [scored(10, 0.2)])
    write(storage, "d", 1, [scored(10, 0.58)])
    assert set(pruner.look(["c", "d"])) == {"c"}


def test_the_meter_counts_over_launches_and_says_which_limit_is_reached(storage: Storage) -> None:
    meter = Meter(storage, "s", Budget(worker_hours=0.1 / 3600, trials=2))
    assert meter.reached() is None and sweep_state(storage, "s") == {}
    time.sleep(0.03)
    meter.tick([2, 2])
    assert meter.worker_hours == pytest.approx(4 * meter.hours)
    meter.begun |= {"a", "b"}
    assert meter.may_begin("a") and not meter.may_begin("c")
    meter.save("budget reached", "x")
    time.sleep(0.03)
    meter.tick([])  # nothing runs: nothing counts
    later = Meter(storage, "s", Budget(worker_hours=0.1 / 3600))
    assert (later.hours, later.begun) == (meter.hours, {"a", "b"})
    assert "worker-hours; raise budget.worker_hours to go on" in (later.reached() or "")
    assert Meter(storage, "s", Budget(worker_hours=1)).reached() is None


def test_a_budget_of_trials_leaves_the_rest_for_later(tmp_path: Path, storage: Storage) -> None:
    fields: dict[str, Any] = {"parameters": {"mask.ratio": [0.5, 0.6, 0.7]}}
    guide = directing(plan(tmp_path, **fields, budget={"trials": 2}), storage)
    assert len(go(guide, storage)) == 2 and guide.over()
    assert guide.refused and "2 of 2 trials begun, 1 left" in (guide.meter.out_of_trials(guide.refused) or "")
