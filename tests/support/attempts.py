"""Attempts of trials one after the other in one process, as a kept worker runs them."""

from __future__ import annotations

import gc
import json
import os
import threading
from pathlib import Path
from typing import Any

import torch


def attempts(tasks: list[dict[str, Any]], told: Path) -> None:
    """Run them; a line of JSON each: whether the process is fit for another, its open files, threads and tensors."""
    from orchestrator.worker.warm import WarmWorker

    worker = WarmWorker()
    with told.open("w", encoding="utf-8") as stream:
        for task in tasks:
            fit = worker.run(task)
            gc.collect()
            held = {
                "fit": fit,
                "files": len(os.listdir("/proc/self/fd")),
                "threads": threading.active_count(),
                "tensors": sum(isinstance(one, torch.Tensor) for one in gc.get_objects()),
            }
            print(json.dumps(held), file=stream, flush=True)
