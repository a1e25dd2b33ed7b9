"""The training loop of one trial, on one process or as one of several data-parallel ranks.

Everything random is a function of (seed, rank, iteration), so a run resumed from a checkpoint sees the batches, masks
and augmentations that an undisturbed run would have seen.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from mcc_core import checkpoint as checkpoints
from mcc_core.checkpoint import Checkpoint
from mcc_core.config import Experiment
from mcc_core.data.colours import finish_batch
from mcc_core.data.datasets import TrainingBatches, TrainingSet, Turns
from mcc_core.data.index import DataIndex, supervision_certificate
from mcc_core.data.label_maps import LabelSet
from mcc_core.data.loading import start_early, training_loader
from mcc_core.device import moved, release, synchronise
from mcc_core.errors import TrainingFault, UsageError
from mcc_core.evaluation.in_training import EvaluationRecord, evaluate
from mcc_core.methods.base import Step
from mcc_core.methods.registry import method_of, network_of
from mcc_core.precision import arithmetic, cast_once
from mcc_core.training.checkpoint_writer import CheckpointWriter
from mcc_core.training.compile_cost import CompileCost, CompileWatch
from mcc_core.training.optim import build_optimizer, set_learning_rate
from mcc_core.training.running_means import RunningMeans

ON_HOST = ("labels", "box")  # of a batch: small, and what is decided by them need not wait for a GPU


@dataclass(frozen=True)
class StepRecord:
    """Means over the iterations since the last record, after `iteration` finished iterations."""

    iteration: int
    metrics: dict[str, float]


@dataclass(frozen=True)
class Outcome:
    """How a run ended, with its last evaluation."""

    status: Literal["finished", "stopped"]
    iteration: int
    metrics: dict[str, float]


class Callbacks:
    """What a caller may hear of a run; every method may be left as it is.

    After the iterations that evaluate come, in this order: on_step, on_evaluation and, once it is written, which may be
    some iterations later, on_checkpoint. Only rank 0 hears on_step and on_checkpoint; every rank hears on_evaluation,
    with equal metrics. All are called in the thread that trains.
    """

    def on_start(self, iteration: int, info: dict[str, Any]) -> None:
        """Before the first step; `iteration` iterations were finished before."""

    def on_step(self, record: StepRecord) -> None:
        """Every `train.log_every` iterations and at each evaluation."""

    def on_compile(self, iteration: int, cost: CompileCost) -> None:
        """Something was compiled on rank 0, before `on_step` and `on_evaluation` of an iteration."""

    def on_checkpoint(self, iteration: int, file: Path, sha256: str) -> None:
        """A complete checkpoint file, which the callee may move away, and the digest of its content."""

    def on_evaluation(self, record: EvaluationRecord) -> None:
        """Metrics and pictures of an evaluation."""

    def on_write_error(self, error: OSError) -> None:
        """A checkpoint could not be written, on a full disk perhaps. Returning tries again; this raises."""
        raise error


def train(
    experiment: Experiment,
    seed: int,
    index: DataIndex,
    *,
    device: torch.device,
    workdir: Path,
    callbacks: Callbacks | None = None,
    resume: Path | None = None,
    should_stop: Callable[[], bool] = lambda: False,
    until: int | None = None,
) -> Outcome:
    """Train one trial to its last iteration, or until `should_stop` says so, which is asked about once a second.

    With `until` it stops after so many finished iterations, evaluated and saved, with every schedule still made for
    the whole length.

    Uses torch.distributed when it is initialised. Raises TrainingFault when a loss or a weight is not finite,
    DataError when an image cannot be read.
    """
    run = _Run(experiment, seed, index, device, workdir, callbacks or Callbacks())
    if resume is not None:
        run.restore(checkpoints.load(resume))
    with arithmetic(experiment.compute.precision, experiment.compute.deterministic):
        return run.go(should_stop, until)


def probe(experiment: Experiment, index: DataIndex, device: torch.device, steps: int = 3) -> float:
    """Seconds per iteration at the end of training, where every loss is on, over at least `steps` steps.

    The batches are those of the real loader. Steps on an accelerator are short: there those that use up what the loader
    has made ahead are not counted, and as many more are. What the device was given is done, and given back, at the end.
    """
    run = _Run(experiment, 0, index, device, Path("."), Callbacks())
    last = experiment.train.iterations - 1
    ready = 0 if device.type == "cpu" else 2 * max(1, experiment.train.loader_workers)
    counted = max(steps, ready)
    start = 0.0
    with arithmetic(experiment.compute.precision, experiment.compute.deterministic):
        for number, batch in enumerate(run.batches(0, 1 + ready + counted)):
            if number == 1 + ready:
                synchronise(device)
                start = time.perf_counter()
            run.step(last, batch)
        synchronise(device)
    seconds = (time.perf_counter() - start) / counted
    run.writer.close()
    del run
    release(device)
    return seconds


class _Run:
    """State of a run in progress."""

    def __init__(
        self,
        experiment: Experiment,
        seed: int,
        index: DataIndex,
        device: torch.device,
        workdir: Path,
        callbacks: Callbacks,
    ) -> None:
        self.experiment, self.seed, self.index = experiment, seed, index
        self.device, self.workdir, self.callbacks = device, workdir, callbacks
        start_early(experiment.train.loader_workers)
        self.method = method_of(experiment)
        self.rank = dist.get_rank() if dist.is_initialized() else 0
        self.world = dist.get_world_size() if dist.is_initialized() else 1
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.model = network_of(experiment, len(index.classes)).to(device)
        self.optimizer = build_optimizer(self.model, experiment.optim)
        self.objective = self.method.objective(self.model, experiment)
        self.objective.begin(index.classes)
        self.parallel: torch.nn.Module = self.objective
        if self.world > 1:
            # Buffers are equal on all ranks: each method that has running statistics sees to it itself.
            self.parallel = DistributedDataParallel(
                self.objective, gradient_as_bucket_view=True, broadcast_buffers=False
            )
        self.compiling = CompileWatch(experiment.compute.compile)
        self.done = 0
        self.metrics: dict[str, float] = {}
        self.window = RunningMeans()
        self.writer = CheckpointWriter(self.callbacks.on_checkpoint, self.callbacks.on_write_error)
        self.ask_every = 1  # iterations between questions whether to stop, the same on all ranks

    def restore(self, saved: Checkpoint) -> None:
        """Take up where a checkpoint of the same trial stopped."""
        self.model.load_state_dict(saved.model)
        if saved.optimizer is not None:
            self.optimizer.load_state_dict(saved.optimizer)
        self.done, self.metrics = saved.iteration, saved.metrics
        if saved.window is not None:
            self.window.restore(saved.window[self.rank])

    def go(self, should_stop: Callable[[], bool], until: int | None = None) -> Outcome:
        """Train, and leave with every checkpoint written that was begun, after a fault too."""
        try:
            with self.compiling:
                outcome = self._go(should_stop, until)
        except BaseException:
            with suppress(OSError):  # the fault says more
                self.writer.close()
            raise
        self.writer.close()
        return outcome

    def _go(self, should_stop: Callable[[], bool], until: int | None) -> Outcome:
        total = self.experiment.train.iterations
        end = min(total, until or total)
        self.callbacks.on_start(self.done, self._info())
        self.window.resume()
        batches = self.batches(self.done, end)
        for iteration, batch in zip(range(self.done, end), batches, strict=True):
            self.writer.look()
            for step in self.step(iteration, batch):
                self.window.add(step, self._state(iteration, step))
            self.done = iteration + 1
            self._tell_compiled()
            evaluating = self.done % self.experiment.train.eval_every == 0 or self.done == end
            logging = self.done % self.experiment.train.log_every == 0
            if evaluating or logging:
                self._log()
            if evaluating:
                self._evaluate()
            if self.done < end and self._agreed(should_stop, evaluating or logging):
                if not evaluating:
                    self._check_weights()
                    self._save()
                return Outcome("stopped", self.done, self.metrics)
        return Outcome("finished" if self.done >= total else "stopped", self.done, self.metrics)

    def batches(self, start: int, end: int) -> Iterator[tuple[dict[str, Any], ...]]:
        """For each iteration `start` to `end`, this rank's collated batches: one for each pass."""
        config = self.experiment.train
        passes = config.accumulate
        augment = self.method.augment(self.experiment)
        finish = self.experiment.compute.augmentation == "loader"
        dataset = TrainingSet(
            self.index.train, len(self.index.classes), augment, self.seed, labels=self._labels(), finish=finish
        )
        turns = [
            TrainingBatches(
                len(dataset),
                config.batch_size,
                self.seed,
                start=start,
                end=end,
                rank=self.rank * passes + turn,
                world_size=self.world * passes,
            )
            for turn in range(passes)
        ]
        loader = training_loader(dataset, Turns(turns), config.loader_workers, pin=self.device.type == "cuda")
        return zip(*[iter(loader)] * passes, strict=True)

    def _labels(self) -> LabelSet | None:
        if self.method.labels(self.experiment) is None:
            return None
        if self.index.labels is None:
            raise UsageError("labels: the dataset was read without them; mcc_core.index(experiment) reads both")
        return self.index.labels

    def step(self, iteration: int, batches: Sequence[dict[str, Any]]) -> list[Step]:
        """One optimiser step at a 0-based iteration: a pass for each batch, gradients averaged over passes and ranks.

        A pass takes the place of a rank: its losses are normalised over its own batch, its masks are its own.
        """
        self.model.train()
        self.rate = set_learning_rate(
            self.optimizer, self.experiment.optim, iteration, self.experiment.train.iterations
        )
        self.optimizer.zero_grad(set_to_none=True)
        with cast_once(self.model.precision, self.device):
            steps = [self._pass(iteration, turn, len(batches), collated) for turn, collated in enumerate(batches)]
        self.optimizer.step()
        self.objective.after_step(iteration)
        return steps

    def _pass(self, iteration: int, turn: int, passes: int, collated: dict[str, Any]) -> Step:
        """Losses and gradients of one pass. Ranks sum their gradients in the last."""
        parallel = self.parallel
        more = turn + 1 < passes and isinstance(parallel, DistributedDataParallel)
        batch, draws = self._inputs(iteration, turn, collated)
        with parallel.no_sync() if more else nullcontext():  # type: ignore[operator]
            step: Step = parallel(batch, draws, iteration, first=turn == 0)
            (step.total / passes).backward()
        return step

    def _inputs(
        self, iteration: int, turn: int, collated: dict[str, Any]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The batch, its views on the device, and the method's random draws on the host.

        Dropout draws from torch's generator, seeded here.
        """
        on_host = {name: value for name, value in collated.items() if isinstance(value, Tensor)}
        batch = finish_batch(
            on_host, {name: x if name in ON_HOST else moved(x, self.device) for name, x in on_host.items()}
        )
        place = 0 if self.experiment.train.same_masks else self.rank * self.experiment.train.accumulate + turn
        seed = _mix(self.seed, place, iteration)
        torch.manual_seed(seed)
        crop = self.experiment.train.crop
        generator = torch.Generator().manual_seed(seed)
        draws = self.method.draws(self.experiment, self.model, len(batch["labels"]), (crop, crop), iteration, generator)
        return batch, draws

    def _state(self, iteration: int, step: Step) -> dict[str, float | Tensor]:
        """What is worth a curve beside the losses: the learning rate, weights, and what the method adds."""
        weights = {f"weight/{name}": weight for name, weight in self.objective.weights(iteration).items()}
        return {"lr": self.rate} | step.state | weights

    def _log(self) -> None:
        """Close the window of iterations. The mean is over ranks too, so that every rank sees the same fault."""
        metrics = self.window.close(self.device, self.world)
        every = self.experiment.train.log_every
        self.ask_every = max(1, min(every, round(every / self.window.lasted)))  # about once a second
        bad = [name for name, value in metrics.items() if not math.isfinite(value)]
        if bad:
            raise TrainingFault(f"{', '.join(bad)} not finite at iteration {self.done}; the last checkpoint is kept")
        if self.rank == 0:
            self.callbacks.on_step(StepRecord(self.done, metrics))
        self.window.restart()

    def _tell_compiled(self) -> None:
        if (cost := self.compiling.spent()) is not None:
            self.window.leave_out(cost.seconds)
            if self.rank == 0:
                self.callbacks.on_compile(self.done, cost)

    def _check_weights(self) -> None:
        """A step of finite loss can leave weights that are not, which must not become the last checkpoint."""
        names, values = zip(*self.model.named_parameters(), strict=True)
        finite = torch.stack([value.isfinite().all() for value in values]).tolist()  # a GPU is waited for once
        bad = [name for name, fine in zip(names, finite, strict=True) if not fine]
        if bad:
            raise TrainingFault(f"weights {bad[0]} not finite at iteration {self.done}; the last checkpoint is kept")

    def _evaluate(self) -> None:
        config = self.experiment.train
        self._check_weights()
        record = evaluate(self.model, self.index, self.experiment, self.device, self.done, panels=config.panels)
        if config.eval_train_images and self.done == config.iterations:
            more = evaluate(
                self.model,
                self.index,
                self.experiment,
                self.device,
                self.done,
                split="train",
                images=config.eval_train_images,
            )
            record = replace(record, metrics=(*record.metrics, *more.metrics))
        self._tell_compiled()
        self.metrics = {metric.key: metric.value for metric in record.metrics}
        self._save()
        self.callbacks.on_evaluation(record)
        self.window.restart()

    def _save(self) -> None:
        windows = self._windows() if self.window.images else None
        if self.rank:
            return
        saved = Checkpoint(
            self.experiment,
            self.index.classes,
            self.done,
            self.seed,
            self.model.state_dict(),
            self.optimizer.state_dict(),
            self.metrics,
            windows,
        )
        self.writer.begin(saved, self.workdir / f"{self.done:07d}.pt")

    def _windows(self) -> list[dict[str, Any]]:
        """The open window of every rank."""
        if self.world == 1:
            return [self.window.state()]
        windows: list[Any] = [None] * self.world
        dist.all_gather_object(windows, self.window.state())
        return windows

    def _agreed(self, should_stop: Callable[[], bool], record: bool) -> bool:
        """Whether any rank is asked to stop. Several ranks ask each other at records and every `ask_every` iterations:
        each question makes them wait for one another."""
        if self.world == 1:
            return should_stop()
        if not record and self.done % self.ask_every:
            return False
        wish = torch.tensor(float(should_stop()), device=self.device)
        dist.all_reduce(wish, op=dist.ReduceOp.MAX)
        return bool(wish)

    def _info(self) -> dict[str, Any]:
        trained = sum(p.numel() for p in self.model.parameters() if p.requires_grad)
        return {
            "device": str(self.device),
            "world_size": self.world,
            "parameters": trained,
            "certificate": supervision_certificate(self.index),
        }


def _mix(seed: int, rank: int, iteration: int) -> int:
    """One 63-bit generator seed of three numbers; every rank has its own draws."""
    mixed = (seed * 1_000_003 + rank) * 1_000_003 + iteration
    return (mixed * 0x9E3779B97F4A7C15) % (1 << 63)
