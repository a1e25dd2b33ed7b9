"""What a step asks of its device, counted as it is dispatched, on any device."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode

# Another view of the same memory, or its bookkeeping: no kernel.
_FREE = frozenset({"_reshape_alias", "_unsafe_view", "alias", "detach", "lift_fresh", "unbind"})


class Operations(TorchDispatchMode):
    """Counts while it is entered.

    Attributes:
        kernels: operations by name that compute something.
        constants: tensors made of Python's numbers, each on a GPU a copy that is waited for.
    """

    def __init__(self) -> None:
        super().__init__()
        self.kernels: Counter[str] = Counter()
        self.constants = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        self.constants += name == "lift_fresh"
        if not func.is_view and name not in _FREE:
            self.kernels[name] += 1
        return func(*args, **(kwargs or {}))


def operations_of(call: Callable[[], object]) -> Operations:
    """The operations of a call."""
    with Operations() as counted:
        call()
    return counted
