"""Time, memory and FLOPs of one training step against the same step written plainly (`plain.py`).

    python benchmarks/step.py                                         DeiT-Tiny, crop 448, batch 1, all cores
    python benchmarks/step.py --backbone deit_base_patch16_224 --flops-only
    python benchmarks/step.py --crop 224 448 --batch 1 2 --views 4 8  scaling

Both steps see the same weights, images and masks, in one process, by turns; their losses are compared first. Times are
medians, ratios are plain over ours. Peak memory is the growth of a fresh process over the step (CPU) or the
allocator's peak (GPU).
"""

from __future__ import annotations

import argparse
import itertools
import resource
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
import torch.multiprocessing as multiprocessing
import torch.nn.functional as F
from plain import PlainObjective, refine_separately
from rich.console import Console
from rich.table import Table
from torch.utils.flop_counter import FlopCounterMode

from mcc_core import cam, losses, objective, pseudo_label
from mcc_core.config import Experiment
from mcc_core.masking import sample_masks
from mcc_core.model import MCCNet
from mcc_core.objective import Batch, Objective

ITERATION = 5000  # all terms of the published schedule are on


class Case:
    """One network and one batch, to be stepped either way."""

    def __init__(self, backbone: str, crop: int, batch: int, views: int, device: str) -> None:
        fields = {
            "model": {"backbone": backbone, "weights": "random"},
            "mask": {"views": views},
            "train": {"crop": crop, "batch_size": batch},
        }
        self.experiment = Experiment.model_validate(fields)
        self.device = torch.device(device)
        generator = torch.Generator().manual_seed(0)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.model = MCCNet(self.experiment.model, 20).to(self.device)
        self.model.encoder.vit.pos_embed.requires_grad_(False)
        self.steps = {
            "ours": Objective(self.model, self.experiment),
            "plain": PlainObjective(self.model, self.experiment),
        }
        coarse = torch.randn(3, batch, 3, crop // 16, crop // 16, generator=generator)
        smooth = F.interpolate(coarse.flatten(0, 1), size=crop, mode="bicubic").unflatten(0, (3, batch))
        images = (smooth + 0.1 * torch.randn(smooth.shape, generator=generator)).to(self.device)
        labels = torch.zeros(batch, 20, device=self.device)
        labels[:, [3, 7]] = 1
        boxes = torch.tensor([[0, crop, 0, crop]] * batch, device=self.device)
        self.batch = Batch(images[0], images[1], images[2], labels, boxes)
        grid = self.model.encoder.grid(crop, crop)
        self.masks = sample_masks(batch, views, grid, 0.95, 4, generator).to(self.device)

    def run(self, name: str) -> float:
        """One step, backward included; its total loss."""
        refine = refine_separately if name == "plain" else pseudo_label.refine
        with mock.patch.object(pseudo_label, "refine", refine):
            loss = self.steps[name](self.batch, self.masks, ITERATION).total
        self.model.zero_grad()
        loss.backward()
        return float(loss)


@contextmanager
def stages(seconds: dict[str, float], device: torch.device) -> Iterator[None]:
    """Collect the time of CAMs, refinement, energy and backward while inside."""

    def timed(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            start = now(device)
            result = function(*args, **kwargs)
            seconds[name] += now(device) - start
            return result

        return call

    import plain

    with (
        mock.patch.object(objective, "multi_scale_cams", timed("cams", cam.multi_scale_cams)),
        mock.patch.object(plain, "multi_scale_cams", timed("cams", cam.multi_scale_cams)),
        mock.patch.object(objective, "refined_label", timed("refinement", pseudo_label.refined_label)),
        mock.patch.object(losses, "dense_energy", timed("energy", losses.dense_energy)),
        mock.patch.object(torch.Tensor, "backward", timed("backward", torch.Tensor.backward)),
    ):
        yield


def now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def measure(case: Case, rounds: int) -> dict[str, dict[str, float]]:
    """Median seconds of each stage and the whole, ours and plain by turns."""
    samples: dict[str, dict[str, list[float]]] = {name: defaultdict(list) for name in case.steps}
    for round_ in range(rounds + 1):
        for name in case.steps:
            seconds: dict[str, float] = defaultdict(float)
            with stages(seconds, case.device):
                start = now(case.device)
                case.run(name)
                seconds["step"] = now(case.device) - start
            seconds["other forward"] = 2 * seconds["step"] - sum(seconds.values())
            if round_:  # the first warms up
                for stage, value in seconds.items():
                    samples[name][stage].append(value)
    return {name: {s: statistics.median(v) for s, v in found.items()} for name, found in samples.items()}


def forward_equivalents(case: Case) -> dict[str, float]:
    """FLOPs of a step per image, in forwards of the encoder over one image."""
    with FlopCounterMode(display=False) as one, torch.no_grad():
        case.model.encoder(case.batch.images[:1])
    found = {}
    for name in case.steps:
        with FlopCounterMode(display=False) as counter:
            case.run(name)
        found[name] = counter.get_total_flops() / one.get_total_flops() / len(case.batch.images)
    return found | {"encoder GFLOP": one.get_total_flops() / 1e9}


def _peak(out: Any, name: str, arguments: tuple[Any, ...], threads: int) -> None:
    torch.set_num_threads(threads)
    case = Case(*arguments)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    case.run(name)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    out.put((before / 2**20, after / 2**20))


def peak_memory(name: str, arguments: tuple[Any, ...]) -> tuple[float, float]:
    """GiB before and at the peak of one step: of a fresh process on the CPU, of the allocator on a GPU."""
    if arguments[-1] != "cpu":
        case = Case(*arguments)
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated() / 2**30
        case.run(name)
        return before, torch.cuda.max_memory_allocated() / 2**30
    context = multiprocessing.get_context("spawn")
    out = context.SimpleQueue()
    process = context.Process(target=_peak, args=(out, name, arguments, torch.get_num_threads()))
    process.start()
    process.join()
    return out.get()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="deit_tiny_patch16_224")
    parser.add_argument("--crop", type=int, nargs="+", default=[448])
    parser.add_argument("--batch", type=int, nargs="+", default=[1])
    parser.add_argument("--views", type=int, nargs="+", default=[8])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--flops-only", action="store_true")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    console = Console(width=110)
    for crop, batch, views in itertools.product(options.crop, options.batch, options.views):
        arguments = (options.backbone, crop, batch, views, options.device)
        case = Case(*arguments)
        console.print(
            f"[bold]{options.backbone}, crop {crop}, batch {batch}, {views} local views[/bold]", highlight=False
        )
        flops = forward_equivalents(case)
        console.print(
            f"forward-equivalents per image: ours {flops['ours']:.1f}, plain {flops['plain']:.1f}, ratio "
            f"{flops['plain'] / flops['ours']:.2f} (one forward: {flops['encoder GFLOP']:.1f} GFLOP)",
            highlight=False,
        )
        if options.flops_only:
            continue
        losses_ = {name: case.run(name) for name in case.steps}
        gap = abs(losses_["ours"] / losses_["plain"] - 1)
        console.print(
            f"loss: ours {losses_['ours']:.6f}, plain {losses_['plain']:.6f}, relative gap {gap:.1e}", highlight=False
        )
        medians = measure(case, options.rounds)
        table = Table(box=None, pad_edge=False)
        for name in ("median seconds", "ours", "plain", "ratio"):
            table.add_column(name, justify="left" if name == "median seconds" else "right")
        for stage in ("cams", "other forward", "refinement", "energy", "backward", "step"):
            ours, plain = medians["ours"][stage], medians["plain"][stage]
            table.add_row(stage, f"{ours:.3f}", f"{plain:.3f}", f"{plain / ours:.2f}")
        peaks = {name: peak_memory(name, arguments) for name in case.steps}
        table.add_row("images per second", *(f"{batch / medians[n]['step']:.2f}" for n in ("ours", "plain")), "")
        table.add_row(
            "peak GiB",
            *(f"{peaks[n][1]:.2f}" for n in ("ours", "plain")),
            f"{peaks['plain'][1] / peaks['ours'][1]:.2f}",
        )
        console.print(table)


if __name__ == "__main__":
    main()
