"""How the commands print the plan of a sweep of stages: the tree of its configurations, and what each takes."""

from __future__ import annotations

from collections.abc import Iterator

from rich.table import Table
from rich.text import Text

from orchestrator.planning.configurations import Trial
from orchestrator.planning.plan import Plan
from orchestrator.text import duration


def tree(plan: Plan) -> Table:
    """A line per configuration, below the one that it takes from, with its trials and their time."""
    table = Table(box=None, pad_edge=False)
    table.add_column("stage and configuration", no_wrap=True)
    for name in ("seeds", "to run", "time of each"):
        table.add_column(name, justify="right")
    table.add_column("")
    points: dict[str, list[Trial]] = {}
    names = {trial.identity: trial.point for trial in plan.trials}
    for trial in plan.trials:
        points.setdefault(trial.point, []).append(trial)
    for branch, point in _branches(points, plan):
        trials = points[point]
        left = [t for t in trials if t.identity not in plan.finished]
        known = [plan.seconds[t.identity] for t in left if t.identity in plan.seconds]
        each = duration(sum(known) / len(known)) if known else ""
        kind = "labels" if trials[0].refine is not None else trials[0].experiment.method
        if (brought := trials[0].network) is not None:
            kind += f", with {names[brought]}"
        note = "" if left else "done before"
        seeds = ",".join(str(t.seed) for t in trials)
        table.add_row(Text(branch + point), seeds, str(len(left)), each, note or kind)
    return table


def _branches(points: dict[str, list[Trial]], plan: Plan) -> Iterator[tuple[str, str]]:
    """(lines of the tree, configuration), what follows a configuration right below it."""
    by_identity = {trial.identity: trial for trial in plan.trials}
    below: dict[str | None, list[str]] = {}
    for point, (first, *_) in points.items():
        above = by_identity[first.input].point if first.input is not None else None
        below.setdefault(above, []).append(point)

    def walk(above: str | None, indent: str) -> Iterator[tuple[str, str]]:
        found = below.get(above, [])
        for number, point in enumerate(found):
            last = number + 1 == len(found)
            branch = "" if above is None else indent + ("└ " if last else "├ ")
            yield branch, point
            yield from walk(point, "" if above is None else indent + ("  " if last else "│ "))

    return walk(None, "")
