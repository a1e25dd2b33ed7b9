"""What version 0 of every file holds is still read: tests/data/v0 is the storage of a sweep of two trials on generated
shapes, one finished and one cut off after two of its four iterations, written before a trial's method had a name."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from mcc_core.checkpoint import load
from mcc_core.data.index import build_index
from mcc_core.evaluation.in_training import evaluate
from orchestrator.planning.plan import plan_sweep
from orchestrator.records import layout
from orchestrator.records.checkpoints import best_saved, saved_checkpoints
from orchestrator.records.events import history
from orchestrator.records.lookup import find_checkpoint
from orchestrator.records.sweeps import find, results
from orchestrator.reports.sweep import report_files
from orchestrator.settings import Settings
from orchestrator.spec.sweep_file import load_sweep
from orchestrator.storage.store import Storage

FINISHED, CUT_OFF = "0fc7aeed0919c2dc", "256d8426932efc57"


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    shutil.copytree(Path(__file__).parents[1] / "data/v0", tmp_path / "home")
    return Settings.at(tmp_path / "home")


def test_a_sweep_and_its_trials_stand_as_they_did(storage: Storage) -> None:
    sweep = find(storage, "before")
    assert (sweep.id, sweep.metric, sweep.mode) == ("before-3f238c7e", "val/seg/single/miou", "max")
    done, cut = results(storage, sweep.document)
    assert [(r.identity, r.status) for r in (done, cut)] == [(FINISHED, "finished"), (CUT_OFF, "interrupted")]
    assert done.varied == {"mask.ratio": "0.3"} and done.metrics[sweep.metric] == pytest.approx(0.02725626, abs=1e-7)
    assert cut.metrics[sweep.metric] == pytest.approx(0.02872234, abs=1e-7)  # from its log: nothing remembers it
    page = report_files(storage, sweep)["report.html"].decode()
    assert "ratio=0.3" in page and "interrupted" in page


def test_an_event_log_and_what_it_says_of_the_metrics(storage: Storage) -> None:
    events = history(storage, FINISHED)
    kinds = [event["kind"] for event in events]
    assert kinds[0] == "start" and kinds[-1] == "end" and {"metrics", "image", "checkpoint"} < set(kinds)
    losses = [e["iteration"] for e in events if "loss/total" in e.get("metrics", {})]
    assert losses == [1, 2, 3, 4]
    assert results(storage, find(storage, None).document)[0].metrics == events[-1]["metrics"]


def test_a_checkpoint_scores_what_was_recorded(storage: Storage, settings: Settings) -> None:
    saved = saved_checkpoints(storage, FINISHED)
    best = best_saved(saved, "max")
    assert best is not None and (best.iteration, best.attempt) == (4, 1)
    checkpoint = load(find_checkpoint("before/ratio=0.3", settings))
    assert (checkpoint.experiment.method, checkpoint.iteration) == ("mcc", 4) and checkpoint.optimizer
    index = build_index(checkpoint.experiment.data, settings.home)
    record = evaluate(checkpoint.network(), index, checkpoint.experiment, torch.device("cpu"), checkpoint.iteration)
    recorded = history(storage, FINISHED)[-1]["metrics"]
    # One pixel of the few is up to 0.01 of a class's IoU, and may fall otherwise on another processor.
    assert {m.key: m.value for m in record.metrics} == pytest.approx(recorded, abs=0.01)


def test_its_sweep_file_plans_the_same_trials_and_says_that_they_start_anew(
    storage: Storage, settings: Settings
) -> None:
    file = settings.home / "before.yaml"
    plan = plan_sweep(load_sweep(file), str(file), settings=settings, estimate=False)
    before = find(storage, "before").document["trials"]
    assert [(t.name, t.seed, t.fingerprint) for t in plan.trials] == [
        (t["name"], t["seed"], t["fingerprint"]) for t in before
    ]
    assert not {t.identity for t in plan.trials} & {FINISHED, CUT_OFF} and not plan.finished
    (note,) = [note for note in plan.notes if "before-3f238c7e" in note]
    assert "ratio=0.3, ratio=0.5" in note and "start anew" in note
    first, second = plan.trials
    log = f"{layout.trial(first.identity)}/events/0001-000001.jsonl"  # in another sweep since
    storage.write(log, b'{"t": 1, "kind": "end", "iteration": 4, "status": "finished", "message": "", "metrics": {}}\n')
    plan = plan_sweep(load_sweep(file), str(file), settings=settings, estimate=False)
    (note,) = [note for note in plan.notes if "before-3f238c7e" in note]
    assert plan.finished == {first.identity} and first.name not in note and second.name in note
