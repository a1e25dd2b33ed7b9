"""Time, memory and FLOPs of one training step, against the same step written plainly (`plain.py`, `plain_<method>.py`).

    python benchmarks/step.py                                         MCC, DeiT-Tiny, crop 448, batch 1, all cores
    python benchmarks/step.py --method toco                           or another: at its published crop
    python benchmarks/step.py --backbone deit_base_patch16_224 --flops-only
    python benchmarks/step.py --crop 224 448 --batch 1 2 --views 4 8  scaling
    python benchmarks/step.py --method fsr --memory                   peak memory alone
    python benchmarks/step.py --options                               what each field of `compute` gains and changes
    python benchmarks/step.py --operations --batch 4                  what a step asks of a GPU, counted on a CPU

Everything is measured in one process, by turns, with the same weights, images and draws; losses are compared first.
Times are medians, ratios are plain over ours. Peak memory is that of a fresh process which makes two steps (CPU) or the
allocator's peak (GPU). A method without a plain form saves nothing: its step is as one would write it.
"""

from __future__ import annotations

import argparse
import importlib
import itertools
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
import torch.multiprocessing as multiprocessing
import torch.nn.functional as F
from operations import operations_of
from plain import explicit_attention, refine_separately
from rich.console import Console
from rich.table import Table
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from mcc_core.config import ComputeConfig
from mcc_core.data.voc import VOC_CLASSES
from mcc_core.experiment_files import merge
from mcc_core.losses import terms as losses
from mcc_core.methods.registry import experiment_of, method_named, network_of
from mcc_core.networks import encoder
from mcc_core.precision import arithmetic, cast_once
from mcc_core.pseudo_labels import labels as pseudo_label
from mcc_core.pseudo_labels import par
from mcc_core.training.optim import build_optimizer


@dataclass(frozen=True)
class Form:
    """What is measured of a method."""

    plain: str | None = None  # module of its plain form; None: ours is plain
    backbone: str = "deit_tiny_patch16_224"
    views: str | None = None  # field with the number of local views
    fields: Mapping[str, Any] = field(default_factory=dict)  # nothing random, so that both forms are equal


METHODS = {
    "mcc": Form("plain", views="mask.views"),
    "toco": Form("plain_toco", views="crops.views"),
    "afa": Form("plain_afa", "mit_b1", fields={"model.dropout": 0.0, "model.drop_path": 0.0}),
    "fsr": Form("plain_fsr", fields={"model.stochastic_depth": 0.0}),
    "slrnet": Form("plain_slrnet", "wide_resnet38"),  # its dropout draws the same in both
    "mctformer": Form(),
    "recam": Form(backbone="resnet50"),
    "irn": Form(backbone="resnet50"),
    "amn": Form(backbone="resnet50"),
    "psa": Form(backbone="resnet50"),
    "clims": Form(backbone="resnet50", fields={"clip.weights": "random", "clip.prompts": "clims"}),
    "segmentation": Form(backbone="resnet50"),
}
ITERATION = 7000  # all terms of the published schedules are on; the last of those that are shorter
TIMED = {
    **{"multi_scale_maps": "cams", "raw_maps": "cams", "refined_label": "refinement", "mask_label": "refinement"},
    "dense_energy": "energy",
}
STAGES = ("cams", "other forward", "refinement", "energy", "backward", "optimizer", "step")
OPTIONS: dict[str, dict[str, Any]] = {
    "precision: bfloat16": {"precision": "bfloat16"},
    "deterministic": {"deterministic": True},
    "compile": {"compile": True},
    "recompute: nothing": {"recompute": "nothing"},
    "recompute: blocks": {"recompute": "blocks"},
    "channels_last": {"channels_last": True},
}


@dataclass(frozen=True)
class Size:
    """What a step's cost depends on."""

    method: str
    backbone: str
    crop: int
    batch: int
    views: int
    device: str


class Case:
    """One network and one batch, to be stepped either way."""

    def __init__(self, size: Size, compute: Mapping[str, Any] | None = None, plainly: bool = False) -> None:
        crop, batch = size.crop, size.batch
        form = METHODS[size.method]
        fields = {
            **form.fields,
            "method": size.method,
            "model.backbone": size.backbone,
            "model.weights": "random",
            **({form.views: size.views} if form.views else {}),
            "train.crop": crop,
            "train.batch_size": batch,
            "compute": {**(compute or {}), **({"recompute": "nothing"} if plainly else {})},
        }
        experiment = experiment_of(merge({}, fields, "benchmark"), "benchmark")
        method = method_named(size.method)
        self.module = importlib.import_module(f"mcc_core.methods.{size.method}.objective")
        self.plain_module = importlib.import_module(form.plain) if form.plain else None
        self.iteration = min(ITERATION, experiment.train.iterations - 1)
        self.plainly = plainly
        self.device = torch.device(size.device)
        generator = torch.Generator().manual_seed(0)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.model = network_of(experiment, 20).to(self.device).train()
        self.optimizer = build_optimizer(self.model, experiment.optim)
        build = self.plain_module.PlainObjective if plainly and self.plain_module else method.objective
        self.objective = build(self.model, experiment)
        self.objective.begin(VOC_CLASSES)
        coarse = torch.randn(3, batch, 3, crop // 16, crop // 16, generator=generator)
        smooth = F.interpolate(coarse.flatten(0, 1), size=crop, mode="bicubic").unflatten(0, (3, batch))
        images = (smooth + 0.1 * torch.randn(smooth.shape, generator=generator)).to(self.device)
        labels = torch.zeros(batch, 20)
        labels[:, [3, 7]] = 1
        boxes = torch.tensor([[0, crop, 0, crop]] * batch)
        views = dict(view=images[0], view1=images[0], view2=images[1], local=images[2])
        places = smooth[0].argmax(1)  # in pieces, as objects are
        label = torch.tensor([0, 4, 8], dtype=torch.uint8)[places].to(self.device)
        self.batch = views | dict(labels=labels, box=boxes, label=label)
        self.draws = method.draws(experiment, self.model, batch, (crop, crop), self.iteration, generator)

    def step(self, stage: Callable[[str], Any]) -> dict[str, float]:
        """One optimiser step at a learning rate of 0, so that every step is the same; its losses."""
        step = self.bare(stage)
        return {name: float(term.detach()) for name, term in {**step.terms, "total": step.total}.items()}

    def bare(self, stage: Callable[[str], Any]) -> Any:
        """The step without reading its losses."""
        for group in self.optimizer.param_groups:
            group.update(lr=0.0)
        torch.manual_seed(0)
        with ExitStack() as plainly:
            plainly.enter_context(arithmetic(self.model.precision, self.model.deterministic))
            plainly.enter_context(cast_once(self.model.precision, self.device))
            if self.plainly:
                plainly.enter_context(explicit_attention())
                plainly.enter_context(mock.patch.object(pseudo_label, "refine", refine_separately))
                plainly.enter_context(mock.patch.object(self.module, "settled", lambda function, x: function(x)))
                for place, name, other in getattr(self.plain_module, "REPLACED", ()):
                    plainly.enter_context(mock.patch.object(place, name, other))
            self.optimizer.zero_grad(set_to_none=True)
            step = self.objective(self.batch, self.draws, self.iteration)
            with stage("backward"):
                step.total.backward()
        with stage("optimizer"):
            self.optimizer.step()
        return step

    def run(self) -> dict[str, float]:
        """One step, not timed."""
        return self.step(lambda name: mock.MagicMock())


class Stopwatch:
    """Seconds spent in named stages of one step."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: dict[str, float] = defaultdict(float)

    def now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        start = self.now()
        yield
        self.seconds[name] += self.now() - start

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            with self.stage(name):
                return function(*args, **kwargs)

        return call

    def time(self, case: Case) -> dict[str, float]:
        with ExitStack() as timed:
            for name, stage in TIMED.items():
                for module in (case.module, case.plain_module, losses):
                    if (function := getattr(module, name, None)) is not None:
                        timed.enter_context(mock.patch.object(module, name, self.timed(stage, function)))
            with self.stage("step"):
                case.step(self.stage)
        self.seconds["other forward"] = 2 * self.seconds["step"] - sum(self.seconds.values())
        return self.seconds


def median_seconds(cases: Mapping[str, Case], rounds: int) -> dict[str, dict[str, float]]:
    """Median seconds of each stage, the cases taken by turns; the first round warms up."""
    samples: dict[str, list[dict[str, float]]] = {name: [] for name in cases}
    for _ in range(rounds + 1):
        for name, case in cases.items():
            samples[name].append(Stopwatch(case.device).time(case))
    return {
        name: {stage: statistics.median(one[stage] for one in found[1:]) for stage in STAGES}
        for name, found in samples.items()
    }


def gflop(call: Callable[[], object]) -> float:
    """Billions of floating-point operations of matrix products, attention and convolutions."""
    # The counter does not know the CPU's fused attention; its plain form has the same products.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        call()
    return counter.get_total_flops() / 1e9


def forward_gflop(case: Case) -> float:
    """Of one image: of the encoder, or of what the plain form names."""
    one = getattr(case.plain_module, "one_forward", _through_encoder)
    case.model.eval()
    with torch.no_grad():
        found = gflop(lambda: one(case.model, case.batch["view1"][:1]))
    case.model.train()
    return found


def _through_encoder(model: Any, images: torch.Tensor) -> object:
    return (model.backbone if hasattr(model, "backbone") else model.encoder)(images)


def _peak(out: Any, size: Size, compute: Mapping[str, Any], plainly: bool, threads: int) -> None:
    torch.set_num_threads(threads)
    imported = _status_gib("VmRSS")
    case = Case(size, compute, plainly)
    case.run()
    case.run()
    out.put(Peak(_status_gib("VmHWM"), imported))


def _status_gib(name: str) -> float:
    return int(Path("/proc/self/status").read_text().split(f"{name}:")[1].split()[0]) / 2**20


class Peak(NamedTuple):
    """Most memory of two steps, GiB: resident size of a fresh process on the CPU, the allocator's on a GPU."""

    whole: float
    imported: float = 0.0  # held before the first tensor: code, most of it libraries, which differs by machine

    @property
    def own(self) -> float:
        return self.whole - self.imported


def peak_gib(size: Size, compute: Mapping[str, Any] | None = None, plainly: bool = False) -> Peak:
    """Most memory of two steps."""
    if size.device != "cpu":
        case = Case(size, compute, plainly)
        torch.cuda.reset_peak_memory_stats()
        case.run()
        case.run()
        return Peak(torch.cuda.max_memory_allocated() / 2**30)
    context = multiprocessing.get_context("spawn")
    out = context.SimpleQueue()
    process = context.Process(target=_peak, args=(out, size, compute, plainly, torch.get_num_threads()))
    process.start()
    process.join()
    return Peak(*out.get())


def against_plain(size: Size, rounds: int, flops_only: bool, console: Console) -> None:
    cases = {"ours": Case(size)}
    if METHODS[size.method].plain:
        cases["plain"] = Case(size, plainly=True)
    one = forward_gflop(cases["ours"])
    forwards = {name: gflop(case.run) / size.batch / one for name, case in cases.items()}
    views = f", {size.views} local views" if METHODS[size.method].views else ""
    console.print(
        f"{method_named(size.method).title}, {size.backbone}, crop {size.crop}, batch {size.batch}{views}\n"
        f"forward-equivalents per image ({one:.1f} GFLOP each): "
        + ", ".join(f"{name} {count:.2f}" for name, count in forwards.items())
        + (f", ratio {forwards['plain'] / forwards['ours']:.2f}" if "plain" in forwards else "; no plain form")
    )
    if flops_only:
        return
    found = {name: case.run() for name, case in cases.items()}
    if "plain" in found:
        gap = max(abs(found["ours"][k] - v) / max(abs(v), 1e-8) for k, v in found["plain"].items())
        console.print(f"total loss {found['ours']['total']:.6f}; largest relative gap of a loss {gap:.1e}")
    medians = median_seconds(cases, rounds)
    table = Table("median seconds", box=None, pad_edge=False)
    for name in (*cases, *(["ratio"] if "plain" in cases else [])):
        table.add_column(name, justify="right")

    def add(name: str, values: Sequence[float], digits: int = 2, *, rate: bool = False) -> None:
        """What is taken by each, and how many times as much, or of a rate as little, by the plain one."""
        ratio = [f"{values[0] / values[1] if rate else values[1] / values[0]:.2f}"] if len(values) > 1 else []
        table.add_row(name, *(f"{value:.{digits}f}" for value in values), *ratio)

    for stage in STAGES:
        if any(seconds := [medians[name][stage] for name in cases]):  # not every method has every stage
            add(stage, seconds, 3)
    add("images per second", [size.batch / medians[name]["step"] for name in cases], rate=True)
    peaks = [peak_gib(size, plainly=case.plainly) for case in cases.values()]
    add("peak GiB", [peak.whole for peak in peaks])
    if any(peak.imported for peak in peaks):
        add("  of it not imports", [peak.own for peak in peaks])
    console.print(table)


@contextmanager
def as_on_a_gpu() -> Iterator[None]:
    """Inside, a CPU computes together what it would do piece by piece."""
    with ExitStack() as patched:
        for module in (par, pseudo_label, encoder):
            patched.enter_context(mock.patch.object(module, "PIECEWISE", set()))
        yield


def operations(size: Size, console: Console) -> None:
    """What one step asks of a GPU, in each precision: kernels, of them casts, tensors made of numbers."""
    table = Table("precision", box=None, pad_edge=False)
    for name in ("operations", "casts", "constants"):
        table.add_column(name, justify="right")
    console.print(f"{method_named(size.method).title}, {size.backbone}, crop {size.crop}, batch {size.batch}")
    with as_on_a_gpu():
        for precision in ("float32", "bfloat16"):
            case = Case(size, {"precision": precision})
            stage = mock.MagicMock()
            case.bare(stage)  # constants are made once
            found = operations_of(lambda case=case, stage=stage: case.bare(stage))  # type: ignore[misc]
            counts = (found.kernels.total(), found.kernels["_to_copy"], found.constants)
            table.add_row(precision, *map(str, counts))
    console.print(table)
    console.print("operations that stay on the host are among them; tests/mcc_core/test_waits.py counts waits")


def options(size: Size, rounds: int, console: Console) -> None:
    """Each option alone, against the default."""
    defaults = ComputeConfig().model_dump()
    settings: dict[str, dict[str, Any]] = {"default": {}, **OPTIONS}
    cases = {name: Case(size, defaults | setting) for name, setting in settings.items()}
    losses_ = {name: case.run() for name, case in cases.items()}
    medians = median_seconds(cases, rounds)
    table = Table("option", box=None, pad_edge=False)
    for name in ("step s", "gain", "peak GiB", "largest relative change of a loss"):
        table.add_column(name, justify="right")
    for name, setting in settings.items():
        seconds = medians[name]["step"]
        change = max(abs(losses_[name][k] - v) / max(abs(v), 1e-8) for k, v in losses_["default"].items())
        gain = medians["default"]["step"] / seconds
        table.add_row(
            name, f"{seconds:.3f}", f"{gain:.2f}", f"{peak_gib(size, defaults | setting).whole:.2f}", f"{change:.1e}"
        )
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", choices=METHODS, default="mcc")
    parser.add_argument("--backbone", help="default: DeiT-Tiny, or the method's own kind")
    parser.add_argument("--crop", type=int, nargs="+", help="default: the published one")
    parser.add_argument("--batch", type=int, nargs="+", default=[1])
    parser.add_argument("--views", type=int, nargs="+", default=[8])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--flops-only", action="store_true")
    parser.add_argument("--memory", action="store_true", help="peak memory alone")
    parser.add_argument("--options", action="store_true")
    parser.add_argument("--operations", action="store_true")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    given = parser.parse_args()
    console = Console(width=110, highlight=False)
    console.print(
        f"torch {torch.__version__}, {torch.get_num_threads()} threads, {given.device}, python {sys.version.split()[0]}"
    )
    form = METHODS[given.method]
    crops = given.crop or [experiment_of({"method": given.method}, "benchmark").train.crop]
    for crop, batch, views in itertools.product(crops, given.batch, given.views if form.views else [0]):
        size = Size(given.method, given.backbone or form.backbone, crop, batch, views, given.device)
        if given.memory:
            peaks = {"ours": peak_gib(size)}
            if form.plain:
                peaks["plain"] = peak_gib(size, plainly=True)
            console.print(size)
            for name, peak in peaks.items():
                console.print(f"{name}: peak {peak.whole:.2f} GiB, of it {peak.own:.2f} not imports")
        elif given.operations:
            operations(size, console)
        elif given.options:
            options(size, given.rounds, console)
        else:
            against_plain(size, given.rounds, given.flops_only, console)


if __name__ == "__main__":
    main()
