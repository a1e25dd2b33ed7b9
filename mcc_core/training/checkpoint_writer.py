"""Checkpoints written behind the training: a step waits for the copy alone."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mcc_core import checkpoint as checkpoints
from mcc_core.checkpoint import Checkpoint
from mcc_core.files import file_digest


class CheckpointWriter:
    """Writes one checkpoint at a time in a thread; what is said of it is said in the thread that asks.

    `written` hears of each whole file: iteration, file, SHA-256. `failed` hears of an error; when it returns, the
    write is tried again, and the asking thread waits for it; what it raises is raised to the asking thread.
    """

    def __init__(self, written: Callable[[int, Path, str], None], failed: Callable[[OSError], None]) -> None:
        self._written, self._failed = written, failed
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._now: tuple[Checkpoint, Path, Future[str]] | None = None

    def begin(self, checkpoint: Checkpoint, file: Path) -> None:
        """Copy a checkpoint and begin to write it, after the one before. Its tensors may change from here on."""
        self.finish()
        copied = replace(checkpoint, model=_copied(checkpoint.model), optimizer=_copied(checkpoint.optimizer))
        # GPUs: the copies are on their way, and what the step does next comes after them on the same stream, which is
        # that of the tensors' GPU: the process's current one may be another.
        there = next((t.device for t in checkpoint.model.values() if t.is_cuda), None)
        event = None if there is None else torch.cuda.current_stream(there).record_event()
        self._now = copied, file, self._pool.submit(_write, copied, file, event)

    def look(self) -> None:
        """Say of what has been written by now; waits for nothing."""
        if self._now is not None and self._now[2].done():
            self.finish()

    def finish(self) -> None:
        """Wait for the write that is under way, if any, and say of it."""
        if self._now is None:
            return
        checkpoint, file, future = self._now
        self._now = None
        while True:
            try:
                digest = future.result()
                break
            except OSError as error:
                self._failed(error)
                future = self._pool.submit(_write, checkpoint, file, None)
        self._written(checkpoint.iteration, file, digest)

    def close(self) -> None:
        """Finish, and end the thread."""
        try:
            self.finish()
        finally:
            self._pool.shutdown()


def _write(checkpoint: Checkpoint, file: Path, copied: torch.cuda.Event | None) -> str:
    """Returns the file's SHA-256."""
    if copied is not None:
        copied.synchronize()
    checkpoints.save(checkpoint, file)
    return file_digest(file)


def _copied(value: Any) -> Any:
    """Nested dictionaries and lists with every tensor copied to the host; from a GPU into pinned memory, behind."""
    if isinstance(value, Tensor):
        if not value.is_cuda:
            return value.detach().cpu().clone()
        return torch.empty_like(value, device="cpu", pin_memory=True).copy_(value.detach(), non_blocking=True)
    if isinstance(value, dict):
        return {key: _copied(part) for key, part in value.items()}
    return [_copied(part) for part in value] if isinstance(value, list) else value
