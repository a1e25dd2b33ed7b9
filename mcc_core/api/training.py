"""One trial as a plain loop in this process: no cluster, no tracking, a folder of files."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from mcc_core.api.experiments import index as build
from mcc_core.api.model import Model, load
from mcc_core.config import Experiment
from mcc_core.data.index import DataIndex
from mcc_core.device import chosen_device
from mcc_core.errors import UsageError
from mcc_core.evaluation.in_training import EvaluationRecord
from mcc_core.files import made_folder, whole
from mcc_core.journal import Journal, OtherJournal
from mcc_core.training import engine
from mcc_core.training.compile_cost import CompileCost

METRIC = "val/seg/single/miou"
Report = Callable[[int, Mapping[str, float]], None]


@dataclass(frozen=True)
class Training:
    """A training run as its folder has it."""

    folder: Path
    finished: bool  # False: stopped before its last iteration; the same call goes on
    iteration: int  # finished iterations
    metrics: dict[str, float]  # of the last evaluation
    history: dict[int, dict[str, float]]  # iteration to losses, rates and scores

    def __repr__(self) -> str:
        scores = ", ".join(
            f"{key.removeprefix('val/').removesuffix('/miou')} {100 * value:.1f}"
            for key, value in self.metrics.items()
            if key.endswith("/miou") and "all_background" not in key
        )
        how = "finished" if self.finished else "stopped"
        return f"<Training in {self.folder}, {how} at iteration {self.iteration}; mIoU in percent: {scores or 'none'}>"

    @property
    def last(self) -> Path:
        """The newest checkpoint."""
        return self.folder / "last.pt"

    @property
    def best(self) -> Path:
        """The checkpoint of the highest score; the newest where nothing could be scored."""
        file = self.folder / "best.pt"
        return file if file.exists() else self.last

    @cached_property
    def model(self) -> Model:
        """The best network."""
        return load(self.best)


def train(
    experiment: Experiment,
    index: DataIndex | None = None,
    out: str | Path = "run",
    *,
    seed: int = 0,
    device: str = "auto",
    metric: str = METRIC,
    report: Report = lambda iteration, metrics: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Training:
    """Train one trial in this process.

    Writes `out/last.pt`, `out/best.pt` and `out/log.jsonl`. The same call goes on where an interrupted one stopped,
    with the numbers that an undisturbed run has; a finished one is not run again.

    Args:
        index: the dataset; default: the experiment's.
        metric: what `best.pt` is the best of, such as `val/cam/ms/miou`; higher is better.
        report: called with the finished iterations and what was measured, at each log record and evaluation.
        should_stop: asked about once a second; on True the run saves a checkpoint and returns.

    Raises UsageError where `out` holds another experiment, seed or dataset, or the experiment wants several workers;
    DataError for an image that cannot be read; TrainingFault when a loss or a weight is not finite.
    """
    if experiment.train.workers > 1:
        workers = experiment.train.workers
        raise UsageError(
            f"train.workers: {workers}: mcc.train runs one process; train.workers=1 with train.accumulate="
            f"{workers * experiment.train.accumulate} trains the same, and mcc train runs several workers"
        )
    index = build(experiment) if index is None else index
    chosen = chosen_device(device, "device")
    folder = made_folder(Path(out), "out")
    log = _opened(folder, experiment, seed, index)
    last = folder / "last.pt"
    recorder = _Recorder(folder, log, metric, report)
    outcome = engine.train(
        experiment,
        seed,
        index,
        device=chosen,
        workdir=folder,
        callbacks=recorder,
        resume=last if last.exists() else None,
        should_stop=should_stop,
    )
    return Training(
        folder, outcome.status == "finished", outcome.iteration, dict(outcome.metrics), _history(log.entries)
    )


def _opened(folder: Path, experiment: Experiment, seed: int, index: DataIndex) -> Journal:
    header = {"experiment": experiment.model_dump(mode="json"), "seed": seed, "data": index.fingerprint}
    file = folder / "log.jsonl"
    if not file.exists() and (strange := next(folder.glob("*.pt"), None)) is not None:
        raise UsageError(f"{strange}: a checkpoint, and no {file.name} says of what run; give another folder as out")
    try:
        return Journal(file, header)
    except OtherJournal as error:
        raise UsageError(
            f"{file}: a run with another {', '.join(error.differing)}; give another folder as out"
        ) from None


class _Recorder(engine.Callbacks):
    """Writes the log and the two checkpoints."""

    def __init__(self, folder: Path, log: Journal, metric: str, report: Report) -> None:
        self.folder, self.log, self.metric, self.report = folder, log, metric, report
        self.scores: dict[int, float] = {}  # of evaluations whose checkpoints are not written yet

    def on_start(self, iteration: int, info: dict[str, Any]) -> None:
        known = [m[self.metric] for i, m in _history(self.log.entries).items() if i <= iteration and self.metric in m]
        self.best = max(known, default=float("-inf"))

    def on_step(self, record: engine.StepRecord) -> None:
        self._add(record.iteration, record.metrics)

    def on_compile(self, iteration: int, cost: CompileCost) -> None:
        self._add(iteration, cost.whole)

    def on_checkpoint(self, iteration: int, file: Path, sha256: str) -> None:
        # After the scores are in the log: a run that goes on from it does not score again.
        if (score := self.scores.pop(iteration, float("nan"))) > self.best:
            self.best = score
            with whole(self.folder / "best.pt") as partial:
                shutil.copyfile(file, partial)
        file.replace(self.folder / "last.pt")

    def on_evaluation(self, record: EvaluationRecord) -> None:
        metrics = {metric.key: metric.value for metric in record.metrics}
        self._add(record.iteration, metrics)
        if self.metric in metrics:
            self.scores[record.iteration] = metrics[self.metric]

    def _add(self, iteration: int, metrics: Mapping[str, float]) -> None:
        self.log.add({"iteration": iteration, "metrics": dict(metrics)})
        self.report(iteration, metrics)


def _history(entries: list[Any]) -> dict[int, dict[str, float]]:
    """What was measured at each iteration; a repeated one counts as it was measured last."""
    history: dict[int, dict[str, float]] = {}
    for entry in entries:
        history.setdefault(entry["iteration"], {}).update(entry["metrics"])
    return dict(sorted(history.items()))
