"""Configurations over their seeds, best first, with ties shown as ties. Pure functions of results."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import mean, stdev

from mcc_core.errors import UsageError
from mcc_core.methods.registry import DEFAULT, method_named
from orchestrator.analysis.statistics import holm, paired, pareto, verdict
from orchestrator.records.results import Result
from orchestrator.records.status import TrialStatus

CAM = "val/cam/ms/miou"
AUX = "val/aux_cam/ms/miou"
SEG = "val/seg/single/miou"
ALL_BACKGROUND = "val/all_background/single/miou"
ABSENT = "absent"  # a score of a class map that a method does not have
COLUMNS = {"CAM": CAM, "aux CAM": AUX, "seg": SEG}
_MAPS = ("cam", "aux_cam")


@dataclass(frozen=True)
class Row:
    """One configuration over its finished seeds."""

    point: str
    seeds: tuple[int, ...]
    score: float
    values: Mapping[str, float]  # mean of each metric that every seed has
    spreads: Mapping[str, float]  # their sample standard deviations, with two or more seeds
    scores: Mapping[int, float] = field(default_factory=dict)  # of the metric that orders the rows, by seed
    method: str = DEFAULT

    def text(self, key: str) -> str:
        """A metric as percent text, `-` when it was not measured, `absent` when the method has no such map."""
        if key not in self.values and lacks(self.method, key):
            return ABSENT
        value = self.values.get(key, math.nan)
        spread = f" ± {100 * self.spreads[key]:.1f}" if key in self.spreads else ""
        return "-" if math.isnan(value) else f"{100 * value:.1f}{spread}"


def leaderboard(results: Sequence[Result], metric: str, mode: str = "max") -> list[Row]:
    """Configurations by the mean of `metric` over finished seeds, best first."""
    points: dict[str, list[Result]] = {}
    for result in results:
        if result.compared and result.status == TrialStatus.FINISHED and result.score(metric) is not None:
            points.setdefault(result.point, []).append(result)
    rows = []
    for point, trials in points.items():
        keys = set.intersection(*(set(trial.metrics) for trial in trials))
        measured = {key: [trial.metrics[key] for trial in trials] for key in keys}
        values = {key: mean(numbers) for key, numbers in measured.items()}
        spreads = {key: stdev(numbers) for key, numbers in measured.items() if len(numbers) > 1}
        scores = {trial.seed: trial.metrics[metric] for trial in trials}
        rows.append(Row(point, tuple(scores), values[metric], values, spreads, scores, trials[0].method))
    return sorted(rows, key=lambda row: row.score, reverse=mode == "max")


def lacks(method: str, metric: str) -> bool:
    """Whether a metric is of a class map that the network of a method, where it is installed, does not have."""
    stage = metric.split("/")[1] if metric.count("/") > 1 else ""
    if stage not in _MAPS:
        return False
    try:
        return stage not in method_named(method).map_stages
    except UsageError:
        return False


def unlike(methods: Iterable[str]) -> bool:
    """Whether there is more than one method."""
    return len(set(methods)) > 1


def all_background(results: Sequence[Result]) -> float | None:
    """mIoU of calling every pixel background, on the same images."""
    return next((score for r in results if (score := r.score(ALL_BACKGROUND)) is not None), None)


def unscored(results: Sequence[Result], metric: str) -> str | None:
    """A line about finished configurations that no trial gave a score of `metric`; None where there are none."""
    finished = [r for r in results if r.compared and r.status == TrialStatus.FINISHED]
    scored = {r.point for r in finished if r.score(metric) is not None}
    lacking = list(dict.fromkeys(r.point for r in finished if r.point not in scored))
    if not lacking:
        return None
    more = ", ..." if len(lacking) > 5 else ""
    return (
        f"without a score of {metric}: {len(lacking)} of {len(lacking) + len(scored)}: {', '.join(lacking[:5])}{more}"
    )


def columns(metric: str) -> dict[str, str]:
    """Title and key of the leaderboard's scores: the stages' mIoU, after the metric when it is another."""
    stages = {f"{name} mIoU": key for name, key in COLUMNS.items()}
    return stages if metric in stages.values() else {metric: metric} | stages


def table(rows: Sequence[Row], metric: str, floor: float | None = None) -> list[list[str]]:
    """Header and lines of the leaderboard, in percent. `floor` is the mIoU of calling everything background.

    Where seeds were repeated a configuration that the paired test does not tell from the best shares its place, with
    the number of seeds that would decide. Unlike methods are named in a column.
    """
    shown = {
        title: key for title, key in columns(metric).items() if key == metric or any(key in r.values for r in rows)
    }
    repeated = any(len(row.seeds) > 1 for row in rows[1:]) and len(rows[0].seeds) > 1
    several = unlike(row.method for row in rows)
    head = ["", "configuration", *(["method"] if several else []), *shown, "seeds"]
    lines = [[*head, *(["against the best"] if repeated else [])]]
    tests = [paired(row.scores, rows[0].scores) for row in rows[1:]] if repeated else []
    adjusted = holm([test.p if test else math.nan for test in tests])
    told = ["", *map(verdict, tests, adjusted)] if repeated else [""] * len(rows)
    for place, (row, against) in enumerate(zip(rows, told, strict=True), start=1):
        tied = against.startswith(("tie", "equal"))
        cells = [*map(row.text, shown.values()), ", ".join(map(str, row.seeds)), *([against] if repeated else [])]
        named = [row.point, *([row.method] if several else [])]
        lines.append(["=1" if tied else str(place), *named, *cells])
    if floor is not None and rows:
        text = f"{100 * floor:.1f}"
        cells = ["-" if k not in COLUMNS.values() else text for k in shown.values()]
        lines.append(["", "(all background)", *([""] if several else []), *cells, "", *([""] if repeated else [])])
    return lines


def front(results: Sequence[Result], objectives: Sequence[tuple[str, str]]) -> list[Row]:
    """Configurations that no other beats in every objective (metric, mode): the Pareto front, by the first of them."""
    metric, mode = objectives[0]
    rows = [r for r in leaderboard(results, metric, mode) if all(key in r.values for key, _ in objectives)]
    kept = pareto([[row.values[key] for key, _ in objectives] for row in rows], [mode for _, mode in objectives])
    return [row for row, keep in zip(rows, kept, strict=True) if keep]


def numbers(rows: Sequence[Row], metric: str, floor: float | None = None) -> list[list[str]]:
    """The leaderboard for programs: full precision, standard deviations in columns of their own."""
    keys = list(columns(metric).values())
    lines = [["place", "configuration", "method", "seeds", *(name for key in keys for name in (key, f"{key} std"))]]
    for place, row in enumerate(rows, start=1):
        cells = [str(source.get(key, "")) for key in keys for source in (row.values, row.spreads)]
        lines.append([str(place), row.point, row.method, " ".join(map(str, row.seeds)), *cells])
    if floor is not None and rows:
        cells = [str(floor) if key in COLUMNS.values() and not std else "" for key in keys for std in (False, True)]
        lines.append(["", "all background", "", "", *cells])
    return lines
