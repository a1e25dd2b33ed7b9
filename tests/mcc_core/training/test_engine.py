"""The training loop: repeatable, resumable to the bit, and stopped by faults with everything kept."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from experiments import mcc_experiment
from ranks import on_ranks
from small import SMALL
from torch.optim.optimizer import register_optimizer_step_post_hook

from mcc_core import checkpoint as checkpoints
from mcc_core.data.index import DataIndex, build_index
from mcc_core.errors import DataError, TrainingFault
from mcc_core.evaluation.in_training import EvaluationRecord, evaluate
from mcc_core.methods.mcc.config import Experiment
from mcc_core.training.engine import Callbacks, Outcome, StepRecord, probe, train

CPU = torch.device("cpu")


class Recorder(Callbacks):
    """Keeps everything it hears."""

    def __init__(self, keep: Path | None = None) -> None:
        self.keep = keep
        self.calls: list[Any] = []
        self.losses: dict[int, dict[str, float]] = {}
        self.scores: dict[int, dict[str, float]] = {}

    def on_start(self, iteration: int, info: dict[str, Any]) -> None:
        self.calls.append(f"start {iteration}")
        self.info = info

    def on_step(self, record: StepRecord) -> None:
        self.calls.append(f"step {record.iteration}")
        self.losses[record.iteration] = {k: v for k, v in record.metrics.items() if k != "images_per_second"}

    def on_checkpoint(self, iteration: int, file: Path, sha256: str) -> None:
        self.calls.append(f"checkpoint {iteration}")
        if self.keep:
            shutil.copy(file, self.keep / f"{iteration}.pt")

    def on_evaluation(self, record: EvaluationRecord) -> None:
        self.calls.append(f"evaluation {record.iteration}")
        self.scores[record.iteration] = {m.key: m.value for m in record.metrics}
        self.panels = record.panels


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def index(home: Path) -> DataIndex:
    return build_index(mcc_experiment("tiny", SMALL).data, home)


def run(index: DataIndex, work: Path, experiment: Experiment | None = None, **kwargs: Any) -> tuple[Recorder, Outcome]:
    recorder = kwargs.pop("callbacks", Recorder(work))
    experiment = experiment or mcc_experiment("tiny", SMALL)
    return recorder, train(experiment, 0, index, device=CPU, workdir=work, callbacks=recorder, **kwargs)


def test_order_of_callbacks_and_content(index: DataIndex, tmp_path: Path) -> None:
    recorder, outcome = run(index, tmp_path)
    assert [call for call in recorder.calls if call != "checkpoint 3"] == [
        *("start 0", "step 1", "step 2", "step 3", "evaluation 3"),
        *("step 4", "step 5", "step 6", "evaluation 6", "checkpoint 6"),
    ]
    place = recorder.calls.index
    assert place("evaluation 3") < place("checkpoint 3") < place("evaluation 6")  # written behind, one at a time
    assert outcome == Outcome("finished", 6, recorder.scores[6])
    assert {"loss/cls", "loss/cls_aux", "loss/aff", "loss/mcc", "loss/total", "lr", "mask/ratio"} <= set(
        recorder.losses[1]
    )
    assert "loss/seg" not in recorder.losses[2] and {"loss/seg", "loss/reg"} <= set(recorder.losses[3])
    assert {"val/seg/single/miou", "val/cam/ms/miou", "val/aux_cam/ms/miou"} <= set(outcome.metrics)
    assert any(key.startswith("val/seg/single/iou/") for key in outcome.metrics)
    assert recorder.info["certificate"]["images_in_both"] == 0
    assert len(recorder.panels) == 1 and recorder.panels[0][1].width > 900


def test_resumed_run_is_the_undisturbed_run_to_the_bit(index: DataIndex, tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
    whole, _ = run(index, tmp_path / "a")
    again, _ = run(index, tmp_path / "b")
    assert whole.losses == again.losses and whole.scores == again.scores
    resumed, outcome = run(index, tmp_path / "c", resume=tmp_path / "a" / "3.pt")
    assert resumed.calls[0] == "start 3" and outcome.iteration == 6
    assert resumed.losses == {i: whole.losses[i] for i in (4, 5, 6)}
    assert resumed.scores[6] == whole.scores[6]
    a, c = (checkpoints.load(tmp_path / name / "6.pt") for name in ("a", "c"))
    assert all(torch.equal(tensor, c.model[key]) for key, tensor in a.model.items())


def test_colours_on_the_device_are_those_of_the_loader_and_go_on_to_the_bit(index: DataIndex, tmp_path: Path) -> None:
    fields = {"compute.augmentation": "device", "train.loader_workers": 1}
    on_device, _ = run(index, tmp_path, mcc_experiment("tiny", SMALL | fields))
    in_loader, _ = run(index, tmp_path, callbacks=Recorder())
    assert on_device.losses[1] == pytest.approx(in_loader.losses[1], rel=2e-2)
    assert on_device.losses[1] != in_loader.losses[1]
    resumed, _ = run(
        index, tmp_path, mcc_experiment("tiny", SMALL | fields), resume=tmp_path / "3.pt", callbacks=Recorder()
    )
    assert resumed.losses == {i: on_device.losses[i] for i in (4, 5, 6)}


def test_another_seed_is_another_run(index: DataIndex, tmp_path: Path) -> None:
    first, _ = run(index, tmp_path)
    other = Recorder()
    train(mcc_experiment("tiny", SMALL), 1, index, device=CPU, workdir=tmp_path, callbacks=other)
    assert first.losses[1] != other.losses[1]


def test_stop_keeps_a_checkpoint_to_go_on_from(index: DataIndex, tmp_path: Path) -> None:
    recorder = Recorder(tmp_path)
    _, outcome = run(index, tmp_path, callbacks=recorder, should_stop=lambda: "step 4" in recorder.calls)
    assert outcome.status == "stopped" and outcome.iteration == 4
    _, outcome = run(index, tmp_path, resume=tmp_path / "4.pt")
    assert outcome.status == "finished"


SPARSE = SMALL | {"train.iterations": 8, "train.log_every": 4, "train.eval_every": 8}


def test_stopped_between_two_records_it_goes_on_as_if_it_had_not(index: DataIndex, tmp_path: Path) -> None:
    experiment = mcc_experiment("tiny", SPARSE)
    for name in ("whole", "parts"):
        (tmp_path / name).mkdir()
    whole, _ = run(index, tmp_path / "whole", experiment)
    calls = 0

    def at_the_third() -> bool:
        nonlocal calls
        calls += 1
        return calls == 3

    first, outcome = run(index, tmp_path / "parts", experiment, should_stop=at_the_third)
    assert (outcome.status, outcome.iteration, first.calls) == ("stopped", 3, ["start 0", "checkpoint 3"])
    rest, outcome = run(index, tmp_path / "parts", experiment, resume=tmp_path / "parts" / "3.pt")
    assert outcome.status == "finished"
    assert rest.losses == whole.losses and list(rest.losses) == [4, 8]  # the means over 1 to 4 too
    a, b = (checkpoints.load(tmp_path / name / "8.pt") for name in ("whole", "parts"))
    assert all(torch.equal(tensor, b.model[key]) for key, tensor in a.model.items())
    assert a.window is None


def test_stop_is_heard_at_an_evaluation_too(index: DataIndex, tmp_path: Path) -> None:
    experiment = mcc_experiment("tiny", SMALL | {"train.log_every": 3})
    recorder = Recorder(tmp_path)
    _, outcome = run(
        index, tmp_path, experiment, callbacks=recorder, should_stop=lambda: "evaluation 3" in recorder.calls
    )
    assert (outcome.status, outcome.iteration) == ("stopped", 3)
    assert recorder.calls == ["start 0", "step 3", "evaluation 3", "checkpoint 3"]


def test_a_checkpoint_that_cannot_be_written_is_tried_again(index: DataIndex, tmp_path: Path) -> None:
    blocked = tmp_path / "work"
    blocked.write_text("a file where the folder should be")

    class Patient(Recorder):
        def on_write_error(self, error: OSError) -> None:
            self.calls.append("trouble")
            if self.calls.count("trouble") == 2:
                blocked.unlink()

    recorder, outcome = run(index, blocked, callbacks=Patient())
    assert outcome.status == "finished"
    assert [c for c in recorder.calls if c[0] in "tc"] == ["trouble", "trouble", "checkpoint 3", "checkpoint 6"]
    blocked = tmp_path / "other"
    blocked.write_text("")
    with pytest.raises(OSError, match="other"):
        run(index, blocked, callbacks=Recorder())


def test_weights_that_are_not_finite_never_become_a_checkpoint(index: DataIndex, tmp_path: Path) -> None:
    steps: list[int] = []

    def poison(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        steps.append(1)
        if len(steps) == 5:  # a finite loss whose step leaves a weight that is not
            optimizer.param_groups[0]["params"][0].data.fill_(float("inf"))

    hook = register_optimizer_step_post_hook(poison)
    recorder = Recorder(tmp_path)
    try:
        with pytest.raises(TrainingFault, match=r"weights .* not finite at iteration 5; the last checkpoint is kept"):
            run(index, tmp_path, mcc_experiment("tiny", SMALL | {"train.eval_every": 1}), callbacks=recorder)
    finally:
        hook.remove()
    assert [c for c in recorder.calls if c != "checkpoint 4"][-2:] == ["evaluation 4", "step 5"]
    assert all(v.isfinite().all() for v in checkpoints.load(tmp_path / "4.pt").model.values())


def test_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_checkpoint(index: DataIndex, tmp_path: Path) -> None:
    wild = mcc_experiment("tiny", SMALL | {"optim.lr": 1e18, "optim.warmup": 0, "train.eval_every": 1})
    recorder = Recorder(tmp_path)
    with pytest.raises(TrainingFault, match=r"(loss|weights) ?.* not finite at iteration [2-6]; the last checkpoint"):
        run(index, tmp_path, wild, callbacks=recorder)
    last = max(int(path.stem) for path in tmp_path.glob("?.pt"))
    assert f"evaluation {last}" in recorder.calls and checkpoints.load(tmp_path / f"{last}.pt").iteration == last


def test_image_that_breaks_during_training_is_named(home: Path, tmp_path: Path) -> None:
    root = tmp_path / "data"
    experiment = mcc_experiment("tiny", SMALL | {"data.root": str(root)})
    index = build_index(experiment.data, home)
    broken = index.train[3].image
    broken.write_bytes(broken.read_bytes()[:100])
    with pytest.raises(DataError, match=broken.name):
        run(index, tmp_path, experiment)


def test_evaluation_does_not_depend_on_the_batch(index: DataIndex, tmp_path: Path) -> None:
    recorder, _ = run(index, tmp_path)
    network = checkpoints.load(tmp_path / "6.pt").network()
    scores = []
    for batch in (1, 4):
        experiment = mcc_experiment("tiny", SMALL | {"train.eval_batch": batch})
        record = evaluate(network, index, experiment, CPU, 6)
        scores.append({m.key: m.value for m in record.metrics})
    assert scores[0] == pytest.approx(scores[1], abs=2e-3)
    assert scores[1] == pytest.approx(recorder.scores[6], abs=2e-3)


def test_train_split_is_scored_at_the_end_when_asked(index: DataIndex, tmp_path: Path) -> None:
    recorder, _ = run(index, tmp_path, mcc_experiment("tiny", SMALL | {"train.eval_train_images": 3}))
    assert "train/cam/ms/miou" in recorder.scores[6]
    assert "train/cam/ms/miou" not in recorder.scores[3]


def test_probe_measures_a_step(index: DataIndex) -> None:
    threads = threading.active_count()
    assert 0 < probe(mcc_experiment("tiny", SMALL), index, CPU, steps=1) < 60
    assert threading.active_count() == threads


def _rank(rank: int, index: DataIndex, work: Path) -> tuple[Any, ...]:
    """One rank: an undisturbed run, then one that rank 0 is asked to stop after its third iteration, then its rest."""
    experiment = mcc_experiment("tiny", SPARSE | {"train.workers": 2, "train.batch_size": 1})
    whole, first, rest = Recorder(work), Recorder(work), Recorder()
    train(experiment, 0, index, device=CPU, workdir=work, callbacks=whole)
    asked: list[int] = []

    def stop() -> bool:
        asked.append(1)
        return rank == 0 and len(asked) == 3

    outcome = train(experiment, 0, index, device=CPU, workdir=work, callbacks=first, should_stop=stop)
    assert (outcome.status, outcome.iteration) == ("stopped", 3)
    dist.barrier()
    train(experiment, 0, index, device=CPU, workdir=work, callbacks=rest, resume=work / "3.pt")
    return whole.calls, whole.scores, whole.losses, rest.scores, rest.losses


def test_two_ranks_agree_stop_together_and_only_the_first_writes(index: DataIndex, tmp_path: Path) -> None:
    first, second = on_ranks(_rank, index, tmp_path)
    calls, scores, losses, scores_of_rest, losses_of_rest = first
    assert scores == second[1]
    assert [c for c in second[0] if not c.startswith(("start", "evaluation"))] == []
    assert "checkpoint 8" in calls
    assert (scores_of_rest, losses_of_rest) == (scores, losses)  # stopped between records, and gone on from there

    passes, _ = run(index, tmp_path, mcc_experiment("tiny", SPARSE | {"train.accumulate": 2, "train.batch_size": 1}))
    for iteration, record in losses.items():  # two passes of one process are two ranks
        assert passes.losses[iteration] == pytest.approx(record, rel=1e-4), iteration
    assert len(losses) > 1
