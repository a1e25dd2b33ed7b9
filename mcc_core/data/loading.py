"""The processes that load training batches."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from mcc_core.data.datasets import Draw, TrainingSet
from mcc_core.errors import UsageError

_AHEAD = 2  # batches that each process makes before they are asked for
_SHARED_MEMORY = Path("/dev/shm")


def start_early(processes: int) -> None:
    """Begin to start the process that loader processes are forked from, which takes seconds, and return at once.

    It is a fresh one: a fork of this process would have the locks of its threads (Ray's, CUDA's) without the threads.
    """
    if processes:
        multiprocessing.get_context("forkserver").set_forkserver_preload(["__main__", __name__])
        forkserver.ensure_running()


def training_loader(
    dataset: TrainingSet, batches: Sampler[list[Draw]], processes: int, *, pin: bool
) -> DataLoader[Any]:
    """Collated batches, in order, made in so many processes; 0: in this one, when they are asked for.

    Raises UsageError where shared memory, through which the processes hand over their batches, has no room for them.
    """
    if not processes:
        return DataLoader(dataset, batch_sampler=batches, pin_memory=pin)
    start_early(processes)
    _check_shared_memory(dataset, batches, processes)
    return DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=processes,
        prefetch_factor=_AHEAD,
        pin_memory=pin,
        multiprocessing_context="forkserver",
        worker_init_fn=partial(_write_as, os.getpid()),
    )


def _write_as(process: int, _worker: int) -> None:
    """Let a loader process write where a process writes now: the one it is forked from writes where that one once did,
    which for the process of several trials is the log of the first."""
    for number in (1, 2):
        with suppress(OSError):  # a socket cannot be opened so; nor is there a /proc everywhere
            own = os.open(f"/proc/{process}/fd/{number}", os.O_WRONLY | os.O_APPEND)
            os.dup2(own, number)
            os.close(own)


def _check_shared_memory(dataset: TrainingSet, batches: Sampler[list[Draw]], processes: int) -> None:
    """A full one kills the processes with a bus error, so that it is told before."""
    first: Iterator[list[Draw]] = iter(batches)
    if (draws := next(first, None)) is None or not _SHARED_MEMORY.is_dir():
        return
    sample = dataset[draws[0]]
    batch_bytes = len(draws) * sum(t.numel() * t.element_size() for t in sample.values() if isinstance(t, Tensor))
    need = batch_bytes * (_AHEAD * processes + 1)
    stat = os.statvfs(_SHARED_MEMORY)
    free = stat.f_bavail * stat.f_frsize
    if need > free:
        raise UsageError(
            f"train.loader_workers: {processes} processes hold up to {need / 2**20:.0f} MiB of batches in shared "
            f"memory, and {_SHARED_MEMORY} has {free / 2**20:.0f} MiB free: give the container more (docker run "
            "--shm-size, SHM_SIZE of the stack) or lower it"
        )
