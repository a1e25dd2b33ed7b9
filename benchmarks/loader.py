"""Images per second of the training loader on one core, and where the time goes, on both paths of the colours.

    python benchmarks/loader.py [--crop 448] [--images 64] [--rounds 5]

The images are JPEGs of VOC's usual size (500 x 375), made here from noise of several scales. Ratios are to decoding
alone (Pillow), by turns, in one process on one thread, in its own CPU time, so that other work on the machine counts
less. With `compute.augmentation: device` the loader leaves colours, blur and normalisation to the training device; what
they cost there is the last line, here on one core.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table
from torch.utils.data import default_collate

from mcc_core.config import AugmentConfig
from mcc_core.data.colours import finish_batch
from mcc_core.data.datasets import TrainingSet
from mcc_core.data.index import Item
from mcc_core.data.pixels import read_rgb
from mcc_core.data.transforms import ThreeViews
from mcc_core.device import moved, synchronise

COLOURS = "colours in batches of 4"
HOST = torch.device("cpu")


def photos(folder: Path, count: int) -> list[Path]:
    """JPEGs with detail at every scale, so that they cost what photographs cost."""
    rng, files = np.random.default_rng(0), []
    for number in range(count):
        total = np.zeros((375, 500, 3), np.float32)
        for cells in (4, 16, 64, 250):
            noise = Image.fromarray(rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8)).resize((500, 375))
            total += np.asarray(noise, np.float32) / 4
        files.append(folder / f"{number}.jpg")
        Image.fromarray(total.astype(np.uint8)).save(files[-1], quality=90)
    return files


def rates(crop: int, images: int, rounds: int, device: torch.device = HOST) -> dict[str, float]:
    """Seconds of the CPU per image, medians; for colours on another device than the CPU seconds of the clock."""
    on_host = device.type == "cpu"
    with tempfile.TemporaryDirectory() as folder:
        files = photos(Path(folder), images)
        augment, items = ThreeViews(AugmentConfig(), crop), [Item(f.stem, f, (0,)) for f in files]
        whole, half = (TrainingSet(items, 20, augment, 0, finish=finish) for finish in (True, False))
        decoded = [torch.from_numpy(read_rgb(f)).permute(2, 0, 1) for f in files]
        generator = torch.Generator().manual_seed(0)
        raw = [[half[(0, i)] for i in range(j, j + 4)] for j in range(0, len(files), 4)]
        batches = [{k: v for k, v in default_collate(batch).items() if isinstance(v, torch.Tensor)} for batch in raw]

        def colours() -> None:
            for batch in batches:
                finish_batch(batch, {name: moved(x, device) for name, x in batch.items()})
            synchronise(device)

        work: dict[str, Callable[[], object]] = {
            "decode alone": lambda: [read_rgb(f) for f in files],
            "cutting three views alone": lambda: [augment(d, generator) for d in decoded],
            "the loader, augmentation: loader": lambda: [whole[(0, i)] for i in range(len(files))],
            "the loader, augmentation: device": lambda: [half[(0, i)] for i in range(len(files))],
            COLOURS: colours,
        }
        seconds: dict[str, list[float]] = {name: [] for name in work}
        if not on_host:
            colours()  # what a device does once
        for _ in range(rounds):
            for name, run in work.items():
                now = time.process_time if on_host or name != COLOURS else time.perf_counter
                began = now()
                run()
                seconds[name].append(now() - began)
    return {name: statistics.median(found) / images for name, found in seconds.items()}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--crop", type=int, default=448)
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    seconds = rates(arguments.crop, arguments.images, arguments.rounds)
    table = Table("", "images/s and core", "times decoding", title=f"crop {arguments.crop}", box=None)
    for name, found in seconds.items():
        table.add_row(name, f"{1 / found:.1f}", f"{found / seconds['decode alone']:.2f}")
    Console().print(table)


if __name__ == "__main__":
    main()
