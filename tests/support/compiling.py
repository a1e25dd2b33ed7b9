"""torch.compile as tests have it: graphs are made as for any backend, and computed as PyTorch does without one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch._dynamo.utils import counters


@contextmanager
def compiling_anew() -> Iterator[None]:
    """Nothing is compiled before, and nothing stays compiled."""
    torch._dynamo.reset()
    counters.clear()
    before = torch.compiler.get_default_backend()
    torch.compiler.set_default_backend("eager")
    try:
        yield
    finally:
        torch.compiler.set_default_backend(before)
        torch._dynamo.reset()
