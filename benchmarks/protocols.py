"""Images per second of each evaluation protocol: the network's part and the rest, which other processes can do.

    python benchmarks/protocols.py [--backbone deit_tiny_patch16_224] [--images 5] [--processes 2]

On images of 500x375 pixels made of noise, three classes each of 20, crop 448, weights at random.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch
from loader import photos

from mcc_core.data.index import Item
from mcc_core.evaluation.protocols import PROTOCOLS, needs_crf
from mcc_core.evaluation.scoring import Scorer, Setting, Task, score_image
from mcc_core.experiment_files import resolve
from mcc_core.methods.mcc.config import Experiment
from mcc_core.methods.mcc.network import MCCNet
from mcc_core.methods.registry import method_of


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="deit_tiny_patch16_224")
    parser.add_argument("--images", type=int, default=5)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    changes = {"model.backbone": arguments.backbone, "model.weights": "random"}
    experiment = resolve("voc", changes)
    assert isinstance(experiment, Experiment)
    device = torch.device(arguments.device)
    model = MCCNet(experiment.model, 20).eval().to(device)
    config = method_of(experiment).evaluation(experiment, 20)
    with tempfile.TemporaryDirectory() as folder:
        items = [Item(file.stem, file, (2, 7, 14)) for file in photos(Path(folder), arguments.images)]
        base = 0.0
        print(f"{arguments.backbone}, {device}, {torch.get_num_threads()} threads; medians of {len(items)} images")
        print(f"{'protocol':9}{'network s':>11}{'rest s':>8}{'images/s':>10}{'streamed':>9}{'ratio':>7}")
        for protocol in sorted(PROTOCOLS, key=lambda name: name != "single"):
            setting = Setting(protocol, protocol, config)
            with Scorer(model, [setting], {}, device) as scorer:
                scorer.maps(items[0])
                network, rest = [], []
                for item in items:
                    start = time.perf_counter()
                    maps = scorer.maps(item)
                    middle = time.perf_counter()
                    score_image(Task(item, None, (setting,), 20, keep_masks=False, maps=maps))
                    network.append(middle - start)
                    rest.append(time.perf_counter() - middle)
            both = statistics.median(network) + statistics.median(rest)
            apart = _streamed(model, setting, items, device, arguments.processes) if needs_crf(protocol) else None
            base = base or both
            print(
                f"{protocol:9}{statistics.median(network):11.2f}{statistics.median(rest):8.2f}{1 / both:10.2f}"
                f"{'-' if apart is None else f'{apart:.2f}':>9}{both / base:7.1f}",
                flush=True,
            )


def _streamed(model: MCCNet, setting: Setting, items: list[Item], device: torch.device, processes: int) -> float:
    """Images per second with the rest in other processes, which are started before."""
    with Scorer(model, [setting], {}, device, processes) as scorer:
        list(scorer.scores(items[:processes]))
        start = time.perf_counter()
        list(scorer.scores(items))
        return len(items) / (time.perf_counter() - start)


if __name__ == "__main__":
    main()
