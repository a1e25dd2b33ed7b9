"""The device that a user names, and what is asked of it beside computing."""

from __future__ import annotations

import gc

import torch

from mcc_core.errors import UsageError


def chosen_device(name: str, option: str = "--device") -> torch.device:
    """`auto` (a GPU where there is one), `cpu`, `cuda` or `cuda:1`. Raises UsageError for what is not here."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind, _, number = name.partition(":")
    if kind not in ("cpu", "cuda") or (number and not number.isdigit()):
        raise UsageError(f"{option} {name}: not one of auto, cpu, cuda")
    if kind == "cuda" and int(number or 0) >= torch.cuda.device_count():
        raise UsageError(f"{option} {name}: no such GPU: {torch.cuda.device_count()} can be used here")
    return torch.device(name)


def synchronise(device: torch.device) -> None:
    """Return when a device has done what it was given; a CPU always has."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def release(device: torch.device) -> None:
    """Give memory that nothing refers to any more back to others on the device."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
