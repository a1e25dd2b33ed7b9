"""How matrix products are computed, precision and repeatability, as one decision for all that a network does."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch

from mcc_core.config import Precision
from mcc_core.determinism import repeatable

AMPERE = 8  # major compute capability of the first GPUs with TF32 and bfloat16


@contextmanager
def arithmetic(precision: Precision, deterministic: bool = False) -> Iterator[None]:
    """Inside, float32 products and convolutions on a GPU are TF32 if `precision` is, and float32 otherwise.

    PyTorch's own defaults differ for products and convolutions. What they were before is set again afterwards.
    bfloat16 is the networks' own (`autocast`): what they leave in float32 stays exact. `deterministic` is `repeatable`.
    """
    products, convolutions = torch.backends.cuda.matmul, torch.backends.cudnn
    before = products.allow_tf32, convolutions.allow_tf32
    products.allow_tf32 = convolutions.allow_tf32 = precision == "tf32"
    try:
        with repeatable() if deterministic else nullcontext():
            yield
    finally:
        products.allow_tf32, convolutions.allow_tf32 = before


def cast_once(precision: Precision, device: torch.device) -> AbstractContextManager[object]:
    """Inside, a weight is cast to bfloat16 at its first use and not in every pass. Nothing may change the weights.

    Autocast keeps its casts until the outermost of its contexts ends; those of the networks lie within this one.
    """
    return torch.autocast(device.type, enabled=False) if precision == "bfloat16" else nullcontext()


def suggested(major: int) -> tuple[Precision, ...]:
    """The fastest precisions first, of a GPU of a major compute capability."""
    return ("bfloat16", "tf32", "float32") if major >= AMPERE else ("float32",)


def named_precision(precision: Precision) -> dict[str, str]:
    """The precision for a record that says what decided its numbers; empty for float32, as older records are."""
    return {} if precision == "float32" else {"precision": precision}


def advice(chosen: Precision, gpu: str, major: int) -> str | None:
    """A line on a precision that does not suit a GPU of a name and major compute capability; None where it does."""
    there = suggested(major)
    if chosen not in there:
        return f"compute.precision: {chosen}: {gpu} does not compute in it; float32 is as fast there and exact"
    if chosen == there[0]:
        return None
    faster = " and ".join(there[: there.index(chosen)])
    return f"compute.precision: {chosen}: {gpu} is faster in {faster} (other rounding, so another trial)"
