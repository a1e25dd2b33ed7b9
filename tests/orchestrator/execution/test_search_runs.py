"""Searches, pruning, populations and budgets through real Ray."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import tiny_plan

from mcc_core.checkpoint import load
from mcc_core.experiment_files import merge
from mcc_core.methods.mcc.config import Experiment
from mcc_core.training import engine
from mcc_core.validation import flatten
from orchestrator.execution.queue import population_key
from orchestrator.execution.runner import run
from orchestrator.planning.configurations import Trial
from orchestrator.planning.plan import recorded
from orchestrator.records.budget import sweep_state
from orchestrator.records.checkpoints import newest_checkpoint, saved_checkpoints
from orchestrator.records.events import history, segments, trial_state
from orchestrator.settings import Settings
from orchestrator.storage.store import Storage

pytestmark = pytest.mark.usefixtures("no_hanging")


@pytest.fixture(scope="module")
def settings(ray_settings: Settings) -> Settings:
    return ray_settings


def losses(storage: Storage, identity: str) -> list[tuple[int, float]]:
    """Every logged iteration and its total loss, in the order of the settled log."""
    events = history(storage, identity)
    return [(e["iteration"], e["metrics"]["loss/total"]) for e in events if "loss/total" in e.get("metrics", {})]


@pytest.mark.slow
def test_a_tpe_search_stops_at_its_budget_and_goes_on_as_the_same_search(settings: Settings, storage: Storage) -> None:
    fields: dict[str, Any] = {
        "name": "tpe",
        "set": {"train.iterations": 2},
        "parameters": {"loss.mcc": {"uniform": [0.1, 1.0]}, "mask.views": {"randint": [1, 3]}},
        "search": {"kind": "tpe", "points": 3, "startup": 1},
        "resources": {"max_concurrent": 1},
    }
    first = tiny_plan(settings, **fields, budget={"trials": 1})
    assert [t.point for t in first.trials] and first.trials[0].point.startswith("#0 mcc=")
    results = run(first, settings)
    assert [r.status for r in results] == ["finished"] or [r.status for r in results] == ["finished", "new"]
    state = sweep_state(storage, first.sweep)
    assert state["state"] == "budget reached" and "1 of 1 trials begun" in state["reason"]
    assert 0 < state["hours"] == pytest.approx(state["worker_hours"])
    before, done = recorded(storage, first.sweep), segments(storage, first.trials[0].identity)

    grown: list[Trial] = []
    second = tiny_plan(settings, **fields)
    assert second.sweep == first.sweep
    results = run(second, settings, on_trial=grown.append)
    assert [r.status for r in results] == ["finished"] * 3
    after = recorded(storage, first.sweep)
    assert len(after) == 3 and after[: len(before)] == before
    assert segments(storage, first.trials[0].identity) == done
    document = json.loads(storage.read(f"sweeps/{first.sweep}/plan.json"))
    assert [t["identity"] for t in document["trials"]] == [r.identity for r in results]
    assert sweep_state(storage, first.sweep)["state"] == "ended"
    # Taken up once more there is nothing to do; with one more point only that point runs.
    assert run(tiny_plan(settings, **fields), settings) == results
    assert tiny_plan(settings, **fields | {"search": {"kind": "tpe", "points": 4, "startup": 1}}).sweep == first.sweep


@pytest.mark.slow
def test_a_pruned_trial_keeps_what_it_has_and_can_be_trained_to_its_end(settings: Settings, storage: Storage) -> None:
    long = {"train.iterations": 400, "train.eval_every": 50, "train.panels": 0}
    points = [{"name": "good", "set": {"optim.lr": 3e-3}}, {"name": "bad", "set": {"optim.lr": 1e-9}}]
    fields: dict[str, Any] = {"name": "asha", "set": long, "points": points, "metric": "val/seg/single/miou"}
    pruning = tiny_plan(
        settings,
        **fields,
        scheduler={"kind": "asha", "min_iterations": 100, "eta": 2},
        resources={"max_concurrent": 1},
    )
    good, bad = pruning.trials
    results = {r.name: r for r in run(pruning, settings)}
    assert results["good"].status == "finished"
    assert results["bad"].status == "pruned", results["bad"]
    assert "asha: val/seg/single/miou" in results["bad"].message and "too low" in results["bad"].message
    assert results["bad"].metrics["val/seg/single/miou"] < results["good"].metrics["val/seg/single/miou"]
    reached = saved_checkpoints(storage, bad.identity)[-1].iteration
    assert 100 <= reached < 400
    assert [i for i, _ in losses(storage, bad.identity)] == list(range(1, reached + 1))
    # The same sweep again has nothing to do; one without the scheduler trains it to its end.
    assert tiny_plan(settings, **fields, scheduler={"kind": "asha", "min_iterations": 50}).finished == {
        good.identity,
        bad.identity,
    }
    whole = tiny_plan(settings, **fields)
    assert whole.finished == {good.identity}
    assert [r.status for r in run(whole, settings)] == ["finished", "finished"]
    starts = [e["iteration"] for e in history(storage, bad.identity) if e["kind"] == "start"]
    assert starts == [0, reached]
    assert [i for i, _ in losses(storage, bad.identity)] == list(range(1, 401))


@pytest.mark.slow
def test_a_population_clones_weights_and_changes_parameters(
    settings: Settings, storage: Storage, tmp_path: Path
) -> None:
    made = tiny_plan(
        settings,
        name="pbt",
        set={"train.iterations": 12, "train.eval_every": 6, "train.panels": 0},
        parameters={"loss.mcc": {"uniform": [0.1, 1.0]}, "mask.views": {"choice": [1, 2, 3]}},
        scheduler={"kind": "pbt", "population": 2, "interval": 6, "quantile": 0.5, "resample": 0.0},
        resources={"max_concurrent": 2, "cpus_per_worker": 0.5},
    )
    ordinary = tiny_plan(settings, set={"train.iterations": 12}).trials[0].identity
    assert all(t.identity.startswith("pbt-") and len(t.identity) == len(ordinary) for t in made.trials)
    assert [r.status for r in run(made, settings)] == ["finished", "finished"]

    clones = [(t, e) for t in made.trials for e in history(storage, t.identity) if e["kind"] == "clone"]
    ((clone, event),) = clones
    donor = next(t for t in made.trials if t is not clone)
    assert (event["donor"], event["donor_name"], event["iteration"]) == (donor.identity, donor.name, 6)

    # The weights at the clone's start are the donor's, bit by bit, and not those that it had.
    files = [newest_checkpoint(storage, t.identity, tmp_path, only=6)[1] for t in (donor, clone)]
    theirs, own = (load(file or Path()) for file in files)
    assert theirs.model.keys() == own.model.keys()
    assert all(torch.equal(tensor, own.model[name]) for name, tensor in theirs.model.items())
    assert own.seed == donor.seed and own.experiment == donor.experiment
    # Its parameters moved: the donor's 0.8 or 1.25 times, and the next in the list.
    before, after = flatten(donor.experiment), event["fields"]
    factor = after["loss.mcc"] / float(before["loss.mcc"])
    assert pytest.approx(factor, rel=1e-3) in (0.8, 1.25) or after["loss.mcc"] in (0.1, 1.0)
    assert str(after["mask.views"]) != before["mask.views"]
    # From there it trained as a run without Ray does that begins with the donor's weights and these parameters.
    torch.set_num_threads(1)
    seen: list[tuple[int, float]] = []

    class Collect(engine.Callbacks):
        def on_step(self, record: engine.StepRecord) -> None:
            seen.append((record.iteration, record.metrics["loss/total"]))

    experiment = Experiment.model_validate(merge(clone.experiment.model_dump(), after, "test"))
    engine.train(
        experiment,
        clone.seed,
        made.index,
        device=torch.device("cpu"),
        workdir=tmp_path,
        callbacks=Collect(),
        resume=files[0],
    )
    ours = losses(storage, clone.identity)
    assert [i for i, _ in ours] == list(range(1, 13))
    assert dict(ours[6:]) == pytest.approx(dict(seen), rel=1e-5)
    assert trial_state(storage, clone.identity).status == "finished"
    assert json.loads(storage.read(population_key(made.sweep)))["generation"] == 1
    hyper = [
        e["metrics"]["pbt/loss.mcc"] for e in history(storage, clone.identity) if "pbt/loss.mcc" in e.get("metrics", {})
    ]
    assert hyper[-1] == pytest.approx(after["loss.mcc"], rel=1e-3) and len(hyper) == 2
