"""A device that computes nothing and counts what a GPU would be waited for: PyTorch's `meta` under a dispatch mode.

Tensors there have shapes and no values, so that whoever needs a value must ask the mode, whose answer is made up. What
it has no answer for, a mask as an index among others, raises NotImplementedError. Some operations take tensors of the
host there, which a GPU would refuse: they are counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

DEVICE = torch.device("meta")
_INDEXING = ("index", "index_put", "index_put_", "_index_put_impl_")


class Waits(TorchDispatchMode):
    """Counts while it is entered.

    Attributes:
        waits: by name, operations that need a value on the host: reading a number, sizes that depend on values, copies
            that are not asynchronous. Not seen: numbers of Python's that become a tensor (`operations.constants`).
        copies: asynchronous copies, either way.
        mixed: by name, operations that get tensors of both, other than single numbers of the host: a GPU refuses them.
    """

    def __init__(self) -> None:
        super().__init__()
        self.waits: Counter[str] = Counter()
        self.mixed: Counter[str] = Counter()
        self.copies = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        there = any(t.device == DEVICE for t in _tensors((args, kwargs)))
        if name == "_to_copy" and (target := kwargs.get("device")) is not None:
            if torch.device(target) == DEVICE and not there:
                self._arrives(kwargs.get("non_blocking", False))
            elif torch.device(target) != DEVICE and there:
                self._arrives(kwargs.get("non_blocking", False), "to the host")
                return torch.zeros(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype)
        elif name == "copy_" and args[0].device == DEVICE and args[1].device != DEVICE and args[1].ndim:
            self._arrives(kwargs.get("non_blocking", len(args) > 2 and args[2]))
        elif there and name in _ANSWERS:
            self.waits[name] += 1
            return _ANSWERS[name](*args)  # type: ignore[operator]
        elif there and name not in _INDEXING and any(t.device != DEVICE and t.ndim for t in _tensors((args, kwargs))):
            self.mixed[name] += 1
        elif there and name in _INDEXING and any(i.device != DEVICE for i in args[1] if i is not None):
            self.waits["index from the host"] += 1
        return func(*args, **kwargs)

    def _arrives(self, asynchronously: bool, where: str = "to the device") -> None:
        if asynchronously:
            self.copies += 1
        else:
            self.waits[where] += 1


def _tensors(tree: Any) -> Iterator[Tensor]:
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, list | tuple):
        for one in tree:
            yield from _tensors(one)
    elif isinstance(tree, dict):
        yield from _tensors(list(tree.values()))


def _number(tensor: Tensor) -> float | int | bool:
    return torch.ones((), dtype=tensor.dtype).item()


def _unique(tensor: Tensor, *options: Any) -> tuple[Tensor, Tensor, Tensor]:
    """As if every value came twice."""
    half = max(1, len(tensor) // 2)
    return (
        tensor[:half],
        torch.empty(len(tensor), dtype=torch.long, device=DEVICE),
        tensor.new_empty(half, dtype=torch.long),
    )


def _places(mask: Tensor) -> Tensor:
    return torch.empty(max(1, mask.numel() // 2), mask.ndim, dtype=torch.long, device=DEVICE)


_ANSWERS = {"_local_scalar_dense": _number, "unique_consecutive": _unique, "nonzero": _places}


@contextmanager
def counted() -> Iterator[Waits]:
    """Counts inside, where autocast, which does not know the device, does nothing."""
    with mock.patch.object(torch, "autocast", lambda *unused, **also: nullcontext()), Waits() as waits:
        yield waits
