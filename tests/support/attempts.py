"""Attempts of trials one after the other in this process, as a kept worker runs them: `attempts.py ASSIGNMENTS.json`.

Prints a JSON object a trial: whether the process is fit for another, its open files, threads and Python's tensors.
"""

import gc
import json
import os
import sys
import threading
from pathlib import Path

import torch

from orchestrator.worker.warm import WarmWorker

worker = WarmWorker()
for task in json.loads(Path(sys.argv[1]).read_text()):
    fit = worker.run(task)
    gc.collect()
    tensors = sum(isinstance(one, torch.Tensor) for one in gc.get_objects())
    print(
        json.dumps(
            {
                "fit": fit,
                "files": len(os.listdir("/proc/self/fd")),
                "threads": threading.active_count(),
                "tensors": tensors,
            }
        ),
        flush=True,
    )
