"""What compiling costs a run. PyTorch compiles in the middle of steps, at the first use of a function in a form."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class CompileCost:
    """What was compiled since it was asked before, and in the whole run."""

    functions: tuple[str, ...]
    graphs: int
    seconds: float
    given_up: int  # functions that PyTorch compiles no further, and runs as they are where no graph fits
    whole: dict[str, float]  # as metrics

    def __str__(self) -> str:
        names = ", ".join(self.functions)
        line = f"compiled {names or 'functions'}: {self.graphs} graphs, {self.seconds:.1f} s, no part of a step's time"
        if self.given_up:
            line += f"; {self.given_up} not compiled any further, too many forms: it runs slower from here on"
        return line


class CompileWatch:
    """Measures while it is entered, if anything is to be compiled at all."""

    def __init__(self, compiles: bool) -> None:
        self.compiles = compiles
        self._seconds, self._ids, self._told, self._first = 0.0, set[str](), (0, 0.0, 0), (0, 0)

    def __enter__(self) -> CompileWatch:
        if self.compiles:
            from torch._dynamo.callback import callback_handler

            callback_handler.register_start_callback(self._begins)
            callback_handler.register_end_callback(self._ends)
            self._first = _counted()
        return self

    def __exit__(self, *fault: object) -> None:
        if self.compiles:
            from torch._dynamo.callback import callback_handler

            callback_handler.remove_start_callback(self._begins)
            callback_handler.remove_end_callback(self._ends)

    def spent(self) -> CompileCost | None:
        """The cost since this was asked before; None where nothing was compiled."""
        if not self.compiles:
            return None
        graphs, given_up = (now - first for now, first in zip(_counted(), self._first, strict=True))
        before, self._told = self._told, (graphs, self._seconds, given_up)
        if before == self._told:
            return None
        names, self._ids = _names(self._ids), set()
        whole = {"compile/graphs": graphs, "compile/seconds": self._seconds, "compile/given_up": given_up}
        return CompileCost(
            names,
            graphs - before[0],
            self._seconds - before[1],
            given_up - before[2],
            {name: float(value) for name, value in whole.items()},
        )

    def _begins(self, what: Any) -> None:
        self._ids.add(str(what.compile_id))
        self._began = time.perf_counter()

    def _ends(self, what: Any) -> None:
        self._seconds += time.perf_counter() - self._began


def _counted() -> tuple[int, int]:
    """Graphs that PyTorch made in this process, and functions that it compiles no further."""
    from torch._dynamo.utils import counters

    frames = counters["frames"]
    return counters["stats"]["unique_graphs"], frames["total"] - frames["ok"]


def _names(ids: set[str]) -> tuple[str, ...]:
    """Functions that were compiled under some of PyTorch's ids."""
    from torch._dynamo.utils import get_compilation_metrics

    found = (metrics.co_name for metrics in get_compilation_metrics() if metrics.compile_id in ids)
    return tuple(sorted({name for name in found if name}))
