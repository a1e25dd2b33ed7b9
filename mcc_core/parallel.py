"""The same work on many items, in other processes: decoding, drawing and converting hold Python's lock."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
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
