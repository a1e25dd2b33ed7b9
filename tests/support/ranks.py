"""A function run by several ranks of torch.distributed (gloo), one process each."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from forks import forks


def _run(rank: int, world: int, port: int, work: Callable[..., Any], arguments: tuple[Any, ...], out: Any) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world)
    out.put((rank, work(rank, *arguments)))
    dist.destroy_process_group()


def on_ranks(work: Callable[..., Any], *arguments: Any, world: int = 2) -> list[Any]:
    """What `work(rank, *arguments)` returns on each rank, in their order. Both must be picklable; send arrays."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = forks()
    out = context.SimpleQueue()
    processes = [context.Process(target=_run, args=(r, world, port, work, arguments, out)) for r in range(world)]
    for process in processes:
        process.start()
    found = dict(out.get() for _ in processes)
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    return [found[rank] for rank in range(world)]
