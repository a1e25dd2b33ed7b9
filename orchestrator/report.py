"""From trial results to what people look at: leaderboard, heat map, learning curves. Pure functions of results."""

from __future__ import annotations

import csv
import html
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import mean, stdev
from typing import Any

from orchestrator.events import Event

CAM = "val/cam/multi_scale/miou"
AUX = "val/aux_cam/multi_scale/miou"
SEG = "val/seg/single/miou"
ALL_BACKGROUND = "val/all_background/single/miou"
COLUMNS = {"CAM": CAM, "aux CAM": AUX, "seg": SEG}


@dataclass(frozen=True)
class Result:
    """One trial as the reports see it; `metrics` are those of its last evaluation."""

    identity: str
    name: str
    point: str
    varied: Mapping[str, str]
    seed: int
    status: str
    metrics: Mapping[str, float] = field(default_factory=dict)
    message: str = ""


@dataclass(frozen=True)
class Row:
    """One configuration over its finished seeds."""

    point: str
    seeds: tuple[int, ...]
    score: float
    spread: float | None  # sample standard deviation, with two or more seeds
    values: Mapping[str, float]  # mean of each metric

    def text(self, key: str) -> str:
        """A metric as percent text, `-` when it was not measured."""
        value = self.values.get(key, math.nan)
        return "-" if math.isnan(value) else f"{100 * value:.1f}"


def leaderboard(results: Sequence[Result], metric: str, mode: str = "max") -> list[Row]:
    """Configurations by the mean of `metric` over finished seeds, best first."""
    points: dict[str, list[Result]] = {}
    for result in results:
        if result.status == "finished" and metric in result.metrics:
            points.setdefault(result.point, []).append(result)
    rows = []
    for point, trials in points.items():
        scores = [trial.metrics[metric] for trial in trials]
        keys = set.intersection(*(set(trial.metrics) for trial in trials))
        rows.append(
            Row(
                point,
                tuple(trial.seed for trial in trials),
                mean(scores),
                stdev(scores) if len(scores) > 1 else None,
                {key: mean(trial.metrics[key] for trial in trials) for key in keys},
            )
        )
    return sorted(rows, key=lambda row: row.score, reverse=mode == "max")


def all_background(results: Sequence[Result]) -> float | None:
    """mIoU of calling every pixel background, on the same images."""
    return next((r.metrics[ALL_BACKGROUND] for r in results if ALL_BACKGROUND in r.metrics), None)


def table(rows: Sequence[Row], metric: str) -> list[list[str]]:
    """Header and lines of the leaderboard, in percent."""
    lines = [["", "configuration", metric, *(f"{name} mIoU" for name in COLUMNS), "seeds"]]
    for place, row in enumerate(rows, start=1):
        score = f"{100 * row.score:.1f}" + (f" ± {100 * row.spread:.1f}" if row.spread is not None else "")
        cells = [row.text(key) for key in COLUMNS.values()]
        lines.append([str(place), row.point, score, *cells, ", ".join(map(str, row.seeds))])
    return lines


def markdown(lines: Sequence[Sequence[str]]) -> str:
    """A table as Markdown."""
    body = ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines]
    return "\n".join([body[0], "|" + "---|" * len(lines[0]), *body[1:]]) + "\n"


def csv_text(lines: Sequence[Sequence[str]]) -> str:
    """A table as CSV."""
    out = io.StringIO()
    csv.writer(out).writerows(lines)
    return out.getvalue()


def html_text(lines: Sequence[Sequence[str]], title: str) -> str:
    """A table as a small page."""

    def row(cells: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    style = "body{font:15px sans-serif;margin:2em}td,th{padding:.3em .8em;text-align:left;border-bottom:1px solid #ccc}"
    rows = row(lines[0], "th") + "".join(row(line, "td") for line in lines[1:])
    return (
        f"<!doctype html><meta charset=utf-8><title>{html.escape(title)}</title><style>{style}</style>"
        f"<h1>{html.escape(title)}</h1><table>{rows}</table>"
    )


def heat_map(results: Sequence[Result], x: str, y: str, title: str) -> bytes | None:
    """Figure 4 of the paper as PNG: CAM and segmentation mIoU for each pair of values, None without finished cells.

    Each cell is the mean over its finished seeds, in percent; trials that do not vary both axes (the baseline) are
    named below.
    """
    cells: dict[tuple[str, str], list[Result]] = {}
    xs, ys, beside = [], [], []
    for result in results:
        if x in result.varied and y in result.varied:
            xs.append(result.varied[x])
            ys.append(result.varied[y])
            if result.status == "finished":
                cells.setdefault((result.varied[y], result.varied[x]), []).append(result)
        elif result.status == "finished":
            beside.append(result)
    if not cells:
        return None
    columns, rows = list(dict.fromkeys(xs)), list(dict.fromkeys(ys))
    from matplotlib.figure import Figure

    figure = Figure(figsize=(2.6 + 2.4 * max(2.0, len(columns)), 2.2 + 0.75 * len(rows)), layout="constrained")
    for axes, (name, key) in zip(figure.subplots(1, 2), (("CAM", CAM), ("segmentation", SEG)), strict=True):
        grid = [[_mean_percent(cells.get((row, column), []), key) for column in columns] for row in rows]
        known = [v for line in grid for v in line if not math.isnan(v)]
        low, high = min(known), max(known)
        axes.imshow(grid, cmap="viridis", aspect="auto", vmin=low, vmax=high)
        for i, line in enumerate(grid):
            for j, value in enumerate(line):
                dark = not math.isnan(value) and value < (low + high) / 2
                text = "" if math.isnan(value) else f"{value:.1f}"
                axes.text(j, i, text, ha="center", va="center", color="white" if dark else "black", fontsize=13)
        axes.set_xticks(range(len(columns)), columns)
        axes.set_yticks(range(len(rows)), rows)
        axes.set(xlabel=x, ylabel=y, title=f"{name} mIoU on val (%)")
    notes = [f"{r.name}: CAM {_mean_percent([r], CAM):.1f}, seg {_mean_percent([r], SEG):.1f}" for r in beside]
    floor = all_background(results)
    if floor is not None:
        notes.append(f"everything background: {100 * floor:.1f}")
    figure.suptitle(title)
    figure.supxlabel("  ·  ".join(notes), fontsize=10)
    return _png(figure)


def curves(histories: Mapping[str, Sequence[Event]], keys: Mapping[str, str]) -> bytes:
    """Learning curves as PNG: one panel per metric of `keys` (title to key), one line per trial."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.6 * len(keys), 3.6), layout="constrained")
    panels = figure.subplots(1, len(keys), squeeze=False)[0]
    for axes, (title, key) in zip(panels, keys.items(), strict=True):
        for name, events in histories.items():
            points = [(e["iteration"], e["metrics"][key]) for e in events if key in e.get("metrics", {})]
            if points:
                axes.plot(*zip(*points, strict=True), marker="o", markersize=3, label=name)
        axes.set(title=title, xlabel="iteration")
        axes.grid(alpha=0.3)
    if panels[-1].lines:
        panels[-1].legend(fontsize=7)
    return _png(figure)


def _mean_percent(results: Sequence[Result], key: str) -> float:
    values = [100 * r.metrics[key] for r in results if key in r.metrics]
    return mean(values) if values else math.nan


def _png(figure: Any) -> bytes:
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=110)
    return out.getvalue()
