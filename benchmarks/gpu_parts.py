"""The parts of `gpu.py`'s page. Each yields its rows as it measures them: one cut short has shown something."""

from __future__ import annotations

import itertools
import os
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import golden
import loader
import step
import torch
import waits
from operations import operations_of
from torch.profiler import ProfilerActivity, profile

from mcc_core.config import Experiment, Precision
from mcc_core.data.index import DataIndex, build_index
from mcc_core.device import release, synchronise
from mcc_core.evaluation.in_training import EvaluationRecord, evaluate
from mcc_core.experiment_files import resolve
from mcc_core.methods.registry import network_of
from mcc_core.precision import arithmetic
from mcc_core.training import engine
from mcc_core.training.compile_cost import CompileWatch

Row = dict[str, Any]
RECORDINGS = Path(__file__).parents[1] / "tests" / "data" / "golden"


@dataclass(frozen=True)
class Setting:
    """How a part is to run."""

    device: str
    small: bool
    seconds: float  # after which it is ended

    @property
    def where(self) -> torch.device:
        return torch.device(self.device)

    @property
    def precisions(self) -> tuple[Precision, ...]:
        """TF32 is of GPUs alone."""
        return ("float32", "tf32", "bfloat16") if self.where.type == "cuda" else ("float32", "bfloat16")

    @property
    def size(self) -> step.Size:
        """The published step; on a CPU in a test the least that has every stage."""
        if self.small:
            return step.Size("mcc", "deit_tiny_patch16_224", 32, 1, 2, self.device)
        return step.Size("mcc", "deit_base_patch16_224", 448, 4, 8, self.device)


@dataclass(frozen=True)
class Part:
    """Its seconds on a GPU at most, what it is in a sentence, and its rows."""

    seconds: float
    about: str
    rows: Callable[[Setting], Iterator[Row]]


def processors() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0))


def kernels(setting: Setting) -> Iterator[Row]:
    """The flags, the number of launches, and the kernels that take longest, by their names."""
    on_gpu = setting.where.type == "cuda"
    for precision in setting.precisions:
        case = step.Case(setting.size, {"precision": precision})
        with arithmetic(precision):
            case.run()
            yield {
                "precision": precision,
                "TF32 products": torch.backends.cuda.matmul.allow_tf32,
                "TF32 convolutions": torch.backends.cudnn.allow_tf32,
                "flash attention": torch.backends.cuda.flash_sdp_enabled(),
                "cuDNN attention": torch.backends.cuda.cudnn_sdp_enabled(),
            }
            with profile(activities=[ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU]) as profiled:
                case.bare(lambda name: mock.MagicMock())
                synchronise(setting.where)
        found = profiled.key_averages()
        cost = [(e, e.self_device_time_total if on_gpu else e.self_cpu_time_total) for e in found]
        total = sum(us for _, us in cost) or 1
        launches = sum(e.count for e in found if "LaunchKernel" in e.key)
        yield {"precision": precision, "launches of a step": launches, "ms of kernels": total / 1000}
        for event, us in sorted(cost, key=lambda pair: -pair[1])[: 4 if setting.small else 10]:
            name = event.key[:90]
            yield {"precision": precision, "kernel": name, "calls": event.count, "ms": us / 1000, "share": us / total}
        del case
        release(setting.where)


def golden_steps(setting: Setting) -> Iterator[Row]:
    """The recorded steps against this device's: the largest error of each kind of figure, and how many are too large.

    Tolerances are those of float32. Other precisions are not held to them: their errors are what they change.
    """
    recordings = sorted(RECORDINGS.glob("*.npz"))
    for precision, recording in itertools.product(setting.precisions, recordings):
        row: Row = {"precision": precision, "method": golden.method_of(recording)}
        if setting.small and precision != "float32" and row["method"] != "mcc":
            continue
        try:
            with arithmetic(precision):
                rows = golden.compare(recording, {"compute.precision": precision}, setting.where)
        except Exception as error:  # of one method; the others are compared all the same
            yield row | {"failed": f"{type(error).__name__}: {error}".strip().splitlines()[0]}
            continue
        kinds: dict[str, list[golden.Row]] = {}
        for one in rows:
            words = one.name.split()
            kinds.setdefault(words[0] if words[0] in ("loss", "gradient") else one.name, []).append(one)
        for kind, found in kinds.items():
            yield row | {
                "figure": kind,
                "compared": len(found),
                "largest error": max(one.error for one in found),
                "out of float32's tolerance": sum(not one.passed for one in found),
            }


def steps(setting: Setting) -> Iterator[Row]:
    """Seconds of each stage, ours in each precision and the plain form in each, and the allocator's peak."""
    rounds = 1 if setting.small else 5
    shape = setting.size
    for precision in setting.precisions:
        for name, plainly in (("ours", False), ("plain", True)):
            if plainly and precision != setting.precisions[0] and setting.small:
                continue
            try:
                yield {"form": name, **_times(setting, precision, plainly, rounds)}
            except torch.OutOfMemoryError:
                yield {"form": name, "precision": precision, "not measured": f"memory ran out at batch {shape.batch}"}
            release(setting.where)


def _times(
    setting: Setting, precision: Precision, plainly: bool, rounds: int, compute: Mapping[str, Any] | None = None
) -> Row:
    case = step.Case(setting.size, {"precision": precision, **(compute or {})}, plainly)
    on_gpu = setting.where.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(setting.where)
    with arithmetic(precision):
        found = step.median_seconds({"it": case}, rounds)["it"]
    row: Row = {"precision": precision}
    row |= {f"{stage} ms": 1000 * seconds for stage, seconds in found.items()}
    row["images/s"] = setting.size.batch / found["step"]
    row["peak GiB"] = torch.cuda.max_memory_allocated(setting.where) / 2**30 if on_gpu else None
    return row


def counts(setting: Setting) -> Iterator[Row]:
    """Operations, tensors of numbers, and waits: those counted without a GPU, and those that CUDA itself reports."""
    shape = setting.size
    on_gpu = setting.where.type == "cuda"
    nothing = mock.MagicMock()
    for precision in ("float32", "bfloat16"):
        case = step.Case(shape, {"precision": precision})
        with step.as_on_a_gpu():
            case.bare(nothing)  # constants are made once
            found = operations_of(lambda case=case: case.bare(nothing))  # type: ignore[misc]
        row: Row = {"precision": precision, "operations": found.kernels.total(), "casts": found.kernels["_to_copy"]}
        row |= {"constants": found.constants, "waits reported by CUDA": None}
        if on_gpu:
            row["waits reported by CUDA"] = _reported(lambda case=case: case.bare(nothing))  # type: ignore[misc]
        yield row
        del case
        release(setting.where)
    with mock.patch.object(step, "build_optimizer"):  # the fused one does not know the device that counts
        there = step.Case(replace(shape, device=waits.DEVICE.type))
    with waits.counted() as counted:
        there.bare(nothing)
    yield {"waits of a step, counted without a GPU": counted.waits.total(), "copies": counted.copies}


def _reported(call: Callable[[], object]) -> int:
    """Synchronising calls, as CUDA's own debugging mode warns of them."""
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            call()
        finally:
            torch.cuda.set_sync_debug_mode(before)
    return sum("synchroniz" in str(warning.message) for warning in found)


def loading(setting: Setting) -> Iterator[Row]:
    """Images a second of one core, and of as many loader processes as there are processors."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        crop, images, rounds = (64, 4, 1) if setting.small else (448, 32, 3)
        for name, seconds in loader.rates(crop, images, rounds, setting.where).items():
            yield {"of one core": name, "images/s": 1 / seconds}
    finally:
        torch.set_num_threads(threads)


def training(setting: Setting) -> Iterator[Row]:
    """Iterations of the `voc` preset on generated images, every loss on in the second half, against the CPU's first."""
    half = 2 if setting.small else 100
    end = time.monotonic() + 0.9 * setting.seconds
    with tempfile.TemporaryDirectory() as folder:
        experiment, index = _on_shapes(setting, Path(folder), {"loss.seg_start": half})
        ours = _curve(experiment, index, setting.where, Path(folder), 2 * half, end - 0.3 * setting.seconds)
        losses, seconds = [row["loss/total"] for row in ours], [row["perf/seconds"] for row in ours]
        steady = sorted(seconds[len(seconds) // 2 :])[: max(1, len(seconds) // 4)]
        yield {
            "iterations": len(ours),
            "median ms with every loss on": 1000 * steady[-1],
            "images/s": experiment.train.batch_size / steady[-1],
        }
        theirs = _curve(experiment, index, torch.device("cpu"), Path(folder), 2 if setting.small else 10, end)
        for number, loss in enumerate(losses):
            here = theirs[number]["loss/total"] if number < len(theirs) else None
            if here is not None or number % 10 == 9:
                gap = None if here is None else abs(loss - here) / max(abs(here), 1e-8)
                yield {"iteration": number + 1, "loss": loss, "on the CPU": here, "relative gap": gap}


def _on_shapes(setting: Setting, home: Path, fields: Row) -> tuple[Experiment, DataIndex]:
    """The preset on generated images, with random weights."""
    fields |= {
        "data": {"name": "shapes", "shapes_train": 64, "shapes_val": 32, "shapes_size": 384},
        "model.weights": "random",
        "train.log_every": 1,
        "train.panels": 0,
        "train.loader_workers": max(1, min(8, processors() - 2)),
    }
    if setting.small:
        fields |= {
            "data": {"name": "shapes", "shapes_train": 8, "shapes_val": 4, "shapes_size": 64},
            "model.backbone": "deit_tiny_patch16_224",
            "train.crop": 32,
            "train.batch_size": 1,
            "train.loader_workers": 0,
        }
    experiment = resolve("voc", fields)
    return experiment, build_index(experiment.data, home)


class _Recorder(engine.Callbacks):
    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []
        self.began = time.perf_counter()

    def on_step(self, record: engine.StepRecord) -> None:
        now = time.perf_counter()
        self.rows.append(record.metrics | {"perf/seconds": now - self.began})
        self.began = now

    def on_evaluation(self, record: EvaluationRecord) -> None:
        """Nothing is evaluated: it stops before."""


def _curve(
    experiment: Experiment, index: DataIndex, device: torch.device, folder: Path, iterations: int, end: float
) -> list[dict[str, float]]:
    """What was logged at each iteration, until so many are done or a monotonic time has come."""
    recorder = _Recorder()

    def enough() -> bool:
        return len(recorder.rows) >= iterations or time.monotonic() > end

    engine.train(experiment, 0, index, device=device, workdir=folder, callbacks=recorder, should_stop=enough)
    release(device)
    return recorder.rows


def evaluation(setting: Setting) -> Iterator[Row]:
    """Images a second of the evaluation during training, CAMs of three scales among it."""
    with tempfile.TemporaryDirectory() as folder:
        for precision in setting.precisions:
            experiment, index = _on_shapes(setting, Path(folder), {"compute.precision": precision})
            network = network_of(experiment, len(index.classes)).to(setting.where)
            seconds = []
            for _ in range(1 if setting.small else 3):
                began = time.perf_counter()
                evaluate(network, index, experiment, setting.where, 0)
                synchronise(setting.where)
                seconds.append(time.perf_counter() - began)
            yield {"precision": precision, "images": len(index.val), "images/s": len(index.val) / min(seconds)}
            del network
            release(setting.where)


def compiling(setting: Setting) -> Iterator[Row]:
    """A pass without gradients at one size, as it is, compiled and as a CUDA graph; then steps, plain and compiled.

    Graphs are no option of an experiment: this is to tell whether they would gain anything.
    """
    precision, rounds = setting.precisions[-1], 2 if setting.small else 20
    before = torch.compiler.get_default_backend()
    if setting.small:  # compiling for a CPU takes minutes
        torch.compiler.set_default_backend("eager")
    try:
        case = step.Case(setting.size, {"precision": precision})
        modes: dict[str, str | None] = {"compiled": "default", "CUDA graph": "reduce-overhead", "as it is": None}
        for name, mode in modes.items():
            encoder: Any = case.model.encoder
            called = encoder if mode is None else torch.compile(encoder, mode=mode)
            row: Row = {"pass": name, "precision": precision}
            try:
                with torch.no_grad(), arithmetic(precision):
                    first, *seconds = [_seconds(setting, called, case.batch["view1"]) for _ in range(rounds + 1)]
                yield row | {"first s": first, "median ms": 1000 * sorted(seconds)[len(seconds) // 2]}
            except Exception as error:  # of one form; the others are measured all the same
                yield row | {"failed": f"{type(error).__name__}: {error}".strip().splitlines()[0]}
            torch.compiler.reset()
        del case
        release(setting.where)
        for compiles in (False, True):
            with CompileWatch(compiles) as watch:
                times = _times(setting, precision, False, 1 if setting.small else 5, {"compile": compiles})
                cost = watch.spent()
            row = {"steps": "compiled" if compiles else "as they are", "step ms": times["step ms"]}
            row |= {"peak GiB": times["peak GiB"], "graphs": 0 if cost is None else cost.graphs}
            yield row | {"compile s": 0.0 if cost is None else cost.seconds, "given up": cost.given_up if cost else 0}
            release(setting.where)
    finally:
        torch.compiler.set_default_backend(before)


def _seconds(setting: Setting, call: Callable[..., object], images: torch.Tensor) -> float:
    synchronise(setting.where)
    began = time.perf_counter()
    call(images)
    synchronise(setting.where)
    return time.perf_counter() - began


PARTS = {
    "kernels": Part(45, "What the libraries chose, and the kernels of a step that take longest.", kernels),
    "golden": Part(75, "Steps of the published code of every recorded method against this device's.", golden_steps),
    "steps": Part(120, "A step, by stages; each stage waits for the device, so that a step alone is faster.", steps),
    "counts": Part(45, "What a step asks of the device.", counts),
    "loader": Part(40, "Training images, JPEGs of 500 x 375, on one core and on the device.", loading),
    "training": Part(120, "The `voc` preset on generated images, the loader's time among it.", training),
    "evaluation": Part(40, "The evaluation during training.", evaluation),
    "compiling": Part(90, "What torch.compile and CUDA graphs gain, and what compiling costs.", compiling),
}
