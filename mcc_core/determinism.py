"""Computation that gives the same bits when it is repeated on the same machine."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

_WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"
_FIXED = (":4096:8", ":16:8")  # with which cuBLAS always adds in the same order


@contextmanager
def repeatable() -> Iterator[None]:
    """Inside, operations are deterministic; one that has no such form raises RuntimeError on a GPU.

    cuBLAS reads its variable at a process's first product on a GPU, so that should come inside. All of it is set again
    as it was afterwards.
    """
    memory: Any = torch.utils.deterministic
    cudnn = torch.backends.cudnn
    enabled, warn = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    before = memory.fill_uninitialized_memory, cudnn.deterministic, cudnn.benchmark
    workspace = os.environ.get(_WORKSPACE)
    if workspace not in _FIXED:
        os.environ[_WORKSPACE] = _FIXED[0]
    memory.fill_uninitialized_memory = False  # all of it is written before it is read
    cudnn.deterministic, cudnn.benchmark = True, False
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(enabled, warn_only=warn)
        memory.fill_uninitialized_memory, cudnn.deterministic, cudnn.benchmark = before
        if workspace is None:
            del os.environ[_WORKSPACE]
        else:
            os.environ[_WORKSPACE] = workspace


def bicubic(x: Tensor, size: tuple[int, int]) -> Tensor:
    """B,C,H,W resized without antialiasing.

    The gradient has no deterministic form on GPUs: where one is asked for, it is two matrix products, the same but for
    rounding.
    """
    if not (x.requires_grad and torch.are_deterministic_algorithms_enabled()):
        return F.interpolate(x, size=size, mode="bicubic", align_corners=False)
    rows, columns = (_weights(old, new, x) for old, new in zip(x.shape[-2:], size, strict=True))
    return rows @ x @ columns.T


def _weights(old: int, new: int, like: Tensor) -> Tensor:
    """new,old: what each of `old` values in a line adds to each of `new`."""
    lines = torch.eye(old, dtype=like.dtype, device=like.device)[None, :, :, None]
    return F.interpolate(lines, size=(new, 1), mode="bicubic", align_corners=False)[0, :, :, 0].T
