"""The same work on many items: in other processes where it holds Python's lock (drawing, converting), or read ahead in
threads where it does not (decoding)."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from typing import TypeVar

_WORTH = 300  # items: fewer are done sooner than processes have started
_CHUNK = 16

Item = TypeVar("Item")
Result = TypeVar("Result")


def each(
    work: Callable[[Item], Result], items: Sequence[Item], *, worth: int = _WORTH, processes: int | None = None
) -> Iterator[Result]:
    """`work` of every item, in order; in this process where there are fewer than `worth`.

    `work` and the items must be picklable. What `work` raises is raised here; what is not begun by then is dropped.
    """
    count = processes or len(os.sched_getaffinity(0))
    if count == 1 or len(items) < worth:
        yield from map(work, items)
        return
    # Spawned, not forked: this process may hold threads.
    with ProcessPoolExecutor(count, mp_context=get_context("spawn")) as pool:
        try:
            yield from pool.map(work, items, chunksize=_CHUNK)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def ahead(
    work: Callable[[Item], Result], items: Iterable[Item], *, threads: int = 2, depth: int = 4
) -> Iterator[Result]:
    """`work` of every item, in order, begun in threads up to `depth` items before it is asked for.

    What `work` raises is raised here, in its place.
    """
    pool, waiting = ThreadPoolExecutor(threads, thread_name_prefix="ahead"), deque[Future[Result]]()
    try:
        for item in items:
            waiting.append(pool.submit(work, item))
            if len(waiting) > depth:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


@contextmanager
def worker_pool(processes: int) -> Iterator[ProcessPoolExecutor | None]:
    """So many other processes of one thread each, for `behind`; None for 0. What is not begun at the end is dropped."""
    if not processes:
        yield None
        return
    # Spawned, not forked: this process may hold threads and a GPU.
    pool = ProcessPoolExecutor(processes, mp_context=get_context("spawn"), initializer=_one_thread)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def behind(
    work: Callable[[Item], Result], items: Iterable[Item], pool: ProcessPoolExecutor | None, depth: int
) -> Iterator[Result]:
    """`work` of every item, in order, while the next items are made: in a pool, at most `depth` of them, or here."""
    waiting = deque[Future[Result]]()
    for item in items:
        if pool is None:
            yield work(item)
            continue
        if len(waiting) == depth:
            yield waiting.popleft().result()
        waiting.append(pool.submit(work, item))
    while waiting:
        yield waiting.popleft().result()


def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)
