"""Running means between two log records."""

from __future__ import annotations

import time
from collections import defaultdict
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from mcc_core.device import moved
from mcc_core.methods.base import Step


class RunningMeans:
    """Sums of one rank since the last log record, kept as tensors so that a GPU is not waited for at each step."""

    def __init__(self) -> None:
        self.lasted = 1.0  # seconds of the last window, the mean over ranks
        self.restart()

    def restart(self) -> None:
        """Begin anew."""
        self.sums: dict[str, Any] = defaultdict(float)
        self.counts: dict[str, int] = defaultdict(int)
        self.images = 0
        self.seconds = 0.0  # before `began`
        self.began = time.perf_counter()

    def state(self) -> dict[str, Any]:
        """What `restore` takes, exact to the bit, for a checkpoint between two records."""
        sums = {n: v.cpu() if isinstance(v, Tensor) else v for n, v in self.sums.items()}
        return {"sums": sums, "counts": dict(self.counts), "images": self.images, "seconds": self._elapsed()}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on with what `state` gave."""
        self.sums.update(state["sums"])
        self.counts.update(state["counts"])
        self.images, self.seconds = state["images"], state["seconds"]

    def resume(self) -> None:
        """The run begins now: what came before it is not its time."""
        self.began = time.perf_counter()

    def leave_out(self, seconds: float) -> None:
        """So many seconds of the window were not for steps."""
        self.began += seconds

    def add(self, step: Step, state: dict[str, float | Tensor]) -> None:
        """Add the losses of a step and what stands beside them."""
        losses = {f"loss/{name}": term.detach() for name, term in step.terms.items()}
        for name, value in (losses | {"loss/total": step.total.detach()} | state).items():
            self.sums[name] = self.sums[name] + value
            self.counts[name] += 1
        self.images += step.images

    def close(self, device: torch.device, world: int) -> dict[str, float]:
        """Means over steps and ranks, the same on every rank, and images per second of all ranks."""
        names = sorted(self.sums)
        values = [self.sums[n] / self.counts[n] for n in names] + [self._elapsed()]
        there = {i: value for i, value in enumerate(values) if isinstance(value, Tensor)}
        means = torch.tensor([0.0 if i in there else value for i, value in enumerate(values)], dtype=torch.float64)
        if there:  # the one time that a GPU is waited for
            stacked = torch.stack([value.to(device).double() for value in there.values()])
            means[list(there)] = stacked.cpu()
        if world > 1:
            means = moved(means, device)
            dist.all_reduce(means)
            means /= world
        *averages, self.lasted = means.tolist()
        return dict(zip(names, averages, strict=True)) | {"images_per_second": self.images * world / self.lasted}

    def _elapsed(self) -> float:
        return self.seconds + time.perf_counter() - self.began
