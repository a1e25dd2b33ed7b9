"""The device that a user names, and data that comes and goes without the host waiting for it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from mcc_core.errors import UsageError

Numbers = tuple[float, ...] | tuple[tuple[float, ...], ...]


def chosen_device(name: str) -> torch.device:
    """`auto` (a GPU where there is one), `cpu`, `cuda` or `cuda:1`. Raises UsageError for what is not here."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind, _, number = name.partition(":")
    if kind not in ("cpu", "cuda") or (number and not number.isdigit()):
        raise UsageError(f"--device {name}: not one of auto, cpu, cuda")
    if kind == "cuda" and int(number or 0) >= torch.cuda.device_count():
        raise UsageError(f"--device {name}: no such GPU: {torch.cuda.device_count()} can be used here")
    return torch.device(name)


def moved(tensor: Tensor, device: torch.device) -> Tensor:
    """`tensor` on `device`. From the host it goes by pinned memory, as a copy from other memory waits for a GPU."""
    if device.type == "cuda" and tensor.device.type == "cpu" and not tensor.is_pinned():
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def fetched(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The tensors on the host; a GPU is waited for once, not once for each."""
    copies = [tensor.to("cpu", non_blocking=True) for tensor in tensors]
    for device in {tensor.device for tensor in tensors if tensor.device.type == "cuda"}:
        torch.cuda.current_stream(device).synchronize()
    return copies


@lru_cache(maxsize=64)
def constant(values: Numbers, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Numbers as a tensor, copied to a device once for all. Not to be changed."""
    with torch.inference_mode(False):
        return torch.tensor(values, dtype=dtype, device=device)
