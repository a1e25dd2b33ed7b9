"""The rooms of both packages as their imports stand: `make rooms`.

A room is a sub-package, or a module that lies at the top. Its floor is one above the highest room that it imports, so
an arrow upward can only be part of a circle.
"""

from __future__ import annotations

import ast
from collections import defaultdict
from pathlib import Path

import grimp
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parents[1]
PACKAGES = ("orchestrator", "mcc_core")


def room(module: str) -> str:
    """`orchestrator.records.events` lies in `orchestrator.records`."""
    return ".".join(module.split(".")[:2])


def arrows(graph: grimp.ImportGraph) -> dict[str, set[str]]:
    """Room to the rooms that it imports, at any depth of a function."""
    found: dict[str, set[str]] = {room(module): set() for module in graph.modules if "." in module}
    for module in graph.modules:
        for target in graph.find_modules_directly_imported_by(module):
            if room(module) != room(target) and "." in module and "." in target:
                found[room(module)].add(room(target))
    return found


def circles(imports: dict[str, set[str]]) -> list[set[str]]:
    """Sets of rooms that reach each other."""
    reach = {name: set(targets) for name, targets in imports.items()}
    for middle in reach:
        for name in reach:
            if middle in reach[name]:
                reach[name] |= reach[middle]
    tied = {frozenset(other for other in reach[name] if name in reach[other]) for name in reach if name in reach[name]}
    return [set(group) for group in tied]


def floors(imports: dict[str, set[str]]) -> dict[str, int]:
    """Room to its floor, 1 at the bottom. Rooms of a circle share none."""
    found: dict[str, int] = {}
    left = dict(imports)
    while ready := [name for name, targets in left.items() if targets <= found.keys()]:
        found |= {name: 1 + max((found[t] for t in left[name]), default=0) for name in ready}
        left = {name: targets for name, targets in left.items() if name not in found}
    return found


def first_sentence(name: str) -> str:
    """What a room says of itself."""
    place = ROOT / name.replace(".", "/")
    file = place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
    text = ast.get_docstring(ast.parse(file.read_text("utf-8"))) or ""
    return text.split("\n")[0].split(". ")[0].rstrip(".")


def main() -> None:
    """Print the table, and how many arrows run upward and how many circles there are."""
    graph = grimp.build_graph(*PACKAGES, cache_dir=None)
    imports = arrows(graph)
    level, tied = floors(imports), circles(imports)
    modules: dict[str, int] = defaultdict(int)
    for module in graph.modules:
        modules[room(module)] += "." in module
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("floor", "room", "modules", "what it knows"):
        table.add_column(name, overflow="fold")
    for name in sorted(imports, key=lambda n: (-level.get(n, 0), n)):
        table.add_row(str(level.get(name, "-")), name, str(modules[name]), first_sentence(name))
    console = Console(width=120)
    console.print(table)
    upward = sum(level.get(t, 0) >= level.get(n, 0) for n, targets in imports.items() for t in targets)
    console.print(
        f"{len(imports)} rooms, {max(level.values())} floors, {sum(map(len, imports.values()))} arrows, "
        f"{upward} upward, {len(tied)} circles"
    )


if __name__ == "__main__":
    main()
