"""What rank 0 writes of a trial: in which order, to where, and what it does on a full disk."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from trained import smallest

from mcc_core.evaluation.in_training import EvaluationRecord
from mcc_core.evaluation.metrics import Metric
from mcc_core.training.compile_cost import CompileCost
from mcc_core.training.engine import Outcome, StepRecord
from orchestrator.records.checkpoints import saved_checkpoints
from orchestrator.records.events import history, trial_state
from orchestrator.records.speeds import past_speeds, speed_profile
from orchestrator.storage.outbox import Outbox
from orchestrator.storage.store import Storage
from orchestrator.worker import reporter as reporters
from orchestrator.worker.assignment import Assignment
from orchestrator.worker.reporter import Reporter, Resume

EXPERIMENT = smallest("mcc")
SEG = "val/seg/single/miou"


@pytest.fixture
def outbox(storage: Storage, tmp_path: Path) -> Iterator[Outbox]:
    outbox = Outbox(storage, tmp_path / "outbox")
    yield outbox
    outbox.close(10)


def task(storage: Storage, **fields: Any) -> Assignment:
    values: dict[str, Any] = {"identity": "t", "name": "t", "experiment": EXPERIMENT.model_dump(mode="json")}
    values |= {"seed": 0, "fingerprint": "f", "metric": SEG, "mode": "max", "storage": storage.url, "home": None}
    values |= {"stop_key": "s", "launch": "L", "cpus_per_worker": 1, "gpus_per_worker": 0}
    return Assignment(**values | fields)


def reporting(storage: Storage, outbox: Outbox, resume: Resume | None = None) -> Reporter:
    return Reporter(task(storage), EXPERIMENT, outbox, resume or Resume(1, 0, None, []), [], to_ray=False)


def evaluation(iteration: int, score: float) -> EvaluationRecord:
    picture = Image.new("RGB", (8, 8), (iteration, 0, 0))
    return EvaluationRecord(iteration, (Metric("val", "seg", "single", "miou", score),), (("a b/c", picture),))


def checkpoint(folder: Path, iteration: int) -> Path:
    file = folder / f"{iteration}.pt"
    file.write_bytes(bytes([iteration]) * 50)
    return file


def test_a_run_is_told_in_order_and_its_checkpoint_has_the_score_of_its_iteration(
    storage: Storage, outbox: Outbox, tmp_path: Path
) -> None:
    told = reporting(storage, outbox)
    told.on_start(0, {"gpu": "none"})
    told.on_step(StepRecord(3, {"loss/total": 1.0, "images_per_second": 4.0}))
    told.on_evaluation(evaluation(3, 0.25))
    told.on_step(StepRecord(4, {"loss/total": 0.5}))
    # Written behind the training: two iterations later.
    file = checkpoint(tmp_path, 3)
    told.on_checkpoint(3, file, "not asked again")
    told.end(Outcome("finished", 4, {SEG: 0.25}))
    events = [event for event in history(storage, "t") if event["kind"] != "machine"]
    assert [(e["kind"], e["iteration"]) for e in events] == [
        *(("start", 0), ("metrics", 3), ("metrics", 3), ("image", 3), ("metrics", 4), ("checkpoint", 3), ("end", 4)),
    ]
    assert storage.read(events[3]["path"])[:4] == b"\x89PNG" and "a_b_c" in events[3]["path"]
    (kept,) = saved_checkpoints(storage, "t")
    assert (kept.iteration, kept.score) == (3, 0.25)
    state = trial_state(storage, "t")
    assert (state.status, state.launch, state.metrics) == ("finished", "L", {SEG: 0.25})
    (speed,) = past_speeds(storage, speed_profile(EXPERIMENT, task(storage).threads, 0))
    assert speed.iteration_s == pytest.approx(EXPERIMENT.train.global_batch / 4) and speed.checkpoint_bytes == 50


def test_what_compiling_cost_is_in_the_log_and_in_no_speed(
    storage: Storage, outbox: Outbox, capsys: pytest.CaptureFixture[str]
) -> None:
    told = reporting(storage, outbox)
    told.on_start(0, {})
    whole = {"compile/graphs": 7.0, "compile/seconds": 3600.0, "compile/given_up": 1.0}
    told.on_compile(1, CompileCost(("_after", "_before"), 7, 3600.0, 1, whole))
    told.on_evaluation(evaluation(1, 0.5))
    told.on_step(StepRecord(1, {"loss/total": 1.0, "images_per_second": 4.0}))
    told.end(Outcome("finished", 1, {SEG: 0.5}))
    assert "iteration 1: compiled _after, _before: 7 graphs, 3600.0 s" in (said := capsys.readouterr().out)
    assert "1 not compiled any further" in said
    assert [e["metrics"] for e in history(storage, "t") if "compile/graphs" in e.get("metrics", ())] == [whole]
    (speed,) = past_speeds(storage, speed_profile(EXPERIMENT, task(storage).threads, 0))
    assert speed.evaluation_s is not None and speed.evaluation_s < 0  # an hour less than it took


def test_a_run_that_fails_before_it_began_has_a_beginning(storage: Storage, outbox: Outbox) -> None:
    reporting(storage, outbox, Resume(2, 7, None, ["7.pt is broken"])).fail("no weights", "cause")
    start, *_, end = history(storage, "t")
    assert (start["kind"], start["attempt"], start["info"]["skipped_checkpoints"]) == ("start", 2, ["7.pt is broken"])
    assert (end["status"], end["message"], end["iteration"]) == ("failed", "no weights", 7)


def test_a_full_disk_is_waited_for_and_any_other_fault_is_not(
    storage: Storage, outbox: Outbox, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    told = reporting(storage, outbox)
    monkeypatch.setattr(reporters.time, "sleep", lambda seconds: None)  # type: ignore[attr-defined]
    full = OSError(errno.ENOSPC, "No space left on device")
    for _ in range(3):
        told.on_write_error(full)
    assert capsys.readouterr().out.count("waiting for space") == 1
    with pytest.raises(OSError, match="denied"):
        told.on_write_error(OSError(errno.EACCES, "denied"))
    monkeypatch.setattr(reporters, "PATIENCE_S", -1.0)
    with pytest.raises(OSError, match="No space"):
        told.on_write_error(full)
