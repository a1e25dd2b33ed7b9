"""Times of the two image filters on one core, with peak memory: `python benchmarks/filters.py` (half a minute).

The lattice filter by parts, on images of growing noise (more noise, more vertices); refinement against the same
written plainly, with every neighbour in memory.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from plain import plain_refine
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from mcc_core.config import ParConfig
from mcc_core.losses.permutohedral import PermutohedralLattice, bilateral_filter
from mcc_core.pseudo_labels.par import refine

SIGMA_RGB, SIGMA_XY, CHANNELS = 15.0, 100.0, 21


def natural(size: int, noise: float) -> Tensor:
    """Image 1,3,S,S in 0..255: structure at several scales, and noise of so many grey levels."""
    generator = torch.Generator().manual_seed(0)
    image = torch.full((1, 3, size, size), 128.0)
    for cells in (4, 9, 20, 60):
        coarse = torch.randn(1, 3, cells, cells, generator=generator)
        image += F.interpolate(coarse, size=(size, size), mode="bicubic") * 80 / cells**0.5
    return (image + noise * torch.randn(image.shape, generator=generator)).clamp(0, 255).round()


def median_ms(call: Callable[[], object], repeats: int) -> float:
    call()
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        call()
        times.append(time.perf_counter() - begin)
    return 1000 * statistics.median(times)


def peak_mib(call: Callable[[], object]) -> float:
    """Most tensor memory held at one time during a call, beside what was there before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as run:
        call()
    assert run.profiler is not None and run.profiler.kineto_results is not None
    events = [event for event in run.profiler.kineto_results.events() if event.name() == "[memory]"]
    changes = (event.nbytes() for event in sorted(events, key=lambda event: event.start_ns()))
    return max(itertools.accumulate(changes)) / 2**20


def lattice(size: int, repeats: int) -> None:
    print(f"bilateral filter, {size}x{size}, {CHANNELS} channels, sigma {SIGMA_RGB:g} grey levels, {SIGMA_XY:g} pixels")
    print(f"{'noise':>5} {'vertices':>9} {'all ms':>7} {'MiB':>5}   parts in ms (share)")
    values = torch.rand(1, CHANNELS, size, size, generator=torch.Generator().manual_seed(1))
    points = values[0].flatten(1).T.contiguous()
    axis = torch.arange(size) / SIGMA_XY
    place = torch.stack(torch.meshgrid(axis, axis, indexing="xy"))[None]
    high = [size / SIGMA_XY] * 2 + [255 / SIGMA_RGB] * 3
    for noise in (0.0, 6.0, 20.0):
        image = natural(size, noise)
        features = torch.cat([place, image / SIGMA_RGB], 1).flatten(2).transpose(1, 2)
        whole = partial(bilateral_filter, image, values, SIGMA_RGB, SIGMA_XY)
        build = partial(PermutohedralLattice, features, [0.0] * 5, high)
        made = build()
        table = made.splat(points)
        steps: dict[str, Callable[[], object]] = {
            "build": build,
            "splat": partial(made.splat, points),
            "blur": partial(made.blur, table),
            "slice": partial(made.slice, table),
        }
        total, memory = median_ms(whole, repeats), peak_mib(whole)
        parts = {name: median_ms(step, repeats) for name, step in steps.items()}
        shares = "  ".join(f"{name} {ms:.1f} ({ms / total:.0%})" for name, ms in parts.items())
        print(f"{noise:5.0f} {made.vertices:9,} {total:7.1f} {memory:5.0f}   {shares}")


def refinement(size: int, repeats: int) -> None:
    config, image = ParConfig(), natural(size, 6.0)
    print(f"\nrefinement, {size}x{size}, {8 * len(config.dilations)} neighbours, {config.iterations} iterations")
    print(f"{'maps':>5} {'plain ms':>9} {'ms':>7} {'ratio':>6}   {'plain MiB':>9} {'MiB':>5} {'ratio':>6}")
    for maps in (4, CHANNELS):
        scores = torch.rand(1, maps, size, size, generator=torch.Generator().manual_seed(1))
        plain, lean = (partial(run, image, scores, config) for run in (plain_refine, refine))
        memory = peak_mib(plain), peak_mib(lean)
        ms = median_ms(plain, max(1, repeats // 20)), median_ms(lean, repeats)
        print(
            f"{maps:5} {ms[0]:9.0f} {ms[1]:7.1f} {ms[0] / ms[1]:6.1f}   "
            f"{memory[0]:9.0f} {memory[1]:5.0f} {memory[0] / memory[1]:6.1f}"
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--repeats", type=int, default=21)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with torch.no_grad():
        lattice(arguments.size, arguments.repeats)
        refinement(arguments.size, arguments.repeats)
