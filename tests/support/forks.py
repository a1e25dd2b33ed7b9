"""Processes that have the imports done: forks of one that holds no thread and no tensor."""

from __future__ import annotations

from functools import cache
from multiprocessing.context import ForkServerContext

import torch.multiprocessing as mp


@cache
def forks() -> ForkServerContext:
    """The context of such processes; their server starts with the first of them and ends with this process."""
    context = mp.get_context("forkserver")
    context.set_forkserver_preload(["torch.distributed", "mcc_core.methods.registry", "mcc_core.training.engine"])
    return context
