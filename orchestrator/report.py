"""From trial results to what people look at: leaderboard, heat map, learning curves. Pure functions of results."""

from __future__ import annotations

import csv
import html
import io
import itertools
import math
from collections.abc import Collection, Mapping, Sequence
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
    log: str | None = None  # where the last output of a trial that did not finish is
    cause: str = ""  # of a failure that has a name, such as nan


@dataclass(frozen=True)
class Row:
    """One configuration over its finished seeds."""

    point: str
    seeds: tuple[int, ...]
    score: float
    values: Mapping[str, float]  # mean of each metric that every seed has
    spreads: Mapping[str, float]  # their sample standard deviations, with two or more seeds

    def text(self, key: str) -> str:
        """A metric as percent text, `-` when it was not measured."""
        value = self.values.get(key, math.nan)
        spread = f" ± {100 * self.spreads[key]:.1f}" if key in self.spreads else ""
        return "-" if math.isnan(value) else f"{100 * value:.1f}{spread}"


def leaderboard(results: Sequence[Result], metric: str, mode: str = "max") -> list[Row]:
    """Configurations by the mean of `metric` over finished seeds, best first."""
    points: dict[str, list[Result]] = {}
    for result in results:
        if result.status == "finished" and not math.isnan(result.metrics.get(metric, math.nan)):
            points.setdefault(result.point, []).append(result)
    rows = []
    for point, trials in points.items():
        keys = set.intersection(*(set(trial.metrics) for trial in trials))
        measured = {key: [trial.metrics[key] for trial in trials] for key in keys}
        values = {key: mean(numbers) for key, numbers in measured.items()}
        spreads = {key: stdev(numbers) for key, numbers in measured.items() if len(numbers) > 1}
        rows.append(Row(point, tuple(trial.seed for trial in trials), values[metric], values, spreads))
    return sorted(rows, key=lambda row: row.score, reverse=mode == "max")


def all_background(results: Sequence[Result]) -> float | None:
    """mIoU of calling every pixel background, on the same images."""
    return next((r.metrics[ALL_BACKGROUND] for r in results if ALL_BACKGROUND in r.metrics), None)


def columns(metric: str) -> dict[str, str]:
    """Title and key of the leaderboard's scores: the stages' mIoU, after the metric when it is another."""
    stages = {f"{name} mIoU": key for name, key in COLUMNS.items()}
    return stages if metric in stages.values() else {metric: metric} | stages


def table(rows: Sequence[Row], metric: str, floor: float | None = None) -> list[list[str]]:
    """Header and lines of the leaderboard, in percent. `floor` is the mIoU of calling everything background."""
    shown = columns(metric)
    lines = [["", "configuration", *shown, "seeds"]]
    for place, row in enumerate(rows, start=1):
        lines.append([str(place), row.point, *map(row.text, shown.values()), ", ".join(map(str, row.seeds))])
    if floor is not None and rows:
        text = f"{100 * floor:.1f}"
        lines.append(
            ["", "(all background)", *("-" if k not in COLUMNS.values() else text for k in shown.values()), ""]
        )
    return lines


def numbers(rows: Sequence[Row], metric: str, floor: float | None = None) -> list[list[str]]:
    """The leaderboard for programs: full precision, standard deviations in columns of their own."""
    keys = list(columns(metric).values())
    lines = [["place", "configuration", "seeds", *(name for key in keys for name in (key, f"{key} std"))]]
    for place, row in enumerate(rows, start=1):
        cells = [str(source.get(key, "")) for key in keys for source in (row.values, row.spreads)]
        lines.append([str(place), row.point, " ".join(map(str, row.seeds)), *cells])
    if floor is not None and rows:
        cells = [str(floor) if key in COLUMNS.values() and not std else "" for key in keys for std in (False, True)]
        lines.append(["", "all background", "", *cells])
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


def heat_map(results: Sequence[Result], x: str, y: str, title: str, apart: Collection[str] = ()) -> bytes | None:
    """Figure 4 of the paper as PNG: `CAM/Seg` mIoU for each pair of values; None without finished cells.

    The same cells twice, coloured by CAM and by segmentation mIoU. A cell is the mean over its finished trials, in
    percent. Trials that do not vary both axes and configurations `apart` (the baseline) are named below, not averaged
    into a cell.
    """
    inside = [r for r in results if x in r.varied and y in r.varied and r.point not in apart]
    cells: dict[tuple[str, str], list[Result]] = {}
    for result in inside:
        if result.status == "finished":
            cells.setdefault((result.varied[y], result.varied[x]), []).append(result)
    if not cells:
        return None
    across, down = list(dict.fromkeys(r.varied[x] for r in inside)), list(dict.fromkeys(r.varied[y] for r in inside))
    from matplotlib.figure import Figure

    figure = Figure(figsize=(2.6 + 2.8 * max(2.0, len(across)), 2.2 + 0.75 * len(down)), layout="constrained")
    scores = {
        key: [[_mean_percent(cells.get((row, column), []), key) for column in across] for row in down]
        for key in (CAM, SEG)
    }
    for axes, (name, key) in zip(figure.subplots(1, 2), (("CAM", CAM), ("segmentation", SEG)), strict=True):
        grid = scores[key]
        known = [v for line in grid for v in line if not math.isnan(v)] or [0.0]
        low, high = min(known), max(known)
        axes.imshow(grid, cmap="viridis", aspect="auto", vmin=low, vmax=high)
        for i, j in itertools.product(range(len(down)), range(len(across))):
            pair = [scores[CAM][i][j], scores[SEG][i][j]]
            dark = not math.isnan(grid[i][j]) and grid[i][j] < (low + high) / 2
            text = "" if all(map(math.isnan, pair)) else "/".join("-" if math.isnan(v) else f"{v:.1f}" for v in pair)
            axes.text(j, i, text, ha="center", va="center", color="white" if dark else "black", fontsize=13)
        axes.set_xticks(range(len(across)), across)
        axes.set_yticks(range(len(down)), down)
        axes.set(xlabel=x, ylabel=y, title=f"CAM/Seg mIoU on val (%), coloured by {name}")
    figure.suptitle(title)
    figure.supxlabel("  ·  ".join(_beside(results, inside)), fontsize=10)
    return _png(figure)


def _beside(results: Sequence[Result], inside: Sequence[Result]) -> list[str]:
    """Notes below a heat map: configurations that are no cell of it, and the score of an empty prediction."""
    cells, outside = {r.identity for r in inside}, dict[str, list[Result]]()
    for result in results:
        if result.status == "finished" and result.identity not in cells:
            outside.setdefault(result.point, []).append(result)
    pairs = {point: (_mean_percent(some, CAM), _mean_percent(some, SEG)) for point, some in outside.items()}
    notes = [f"{point}: {cam:.1f}/{seg:.1f}" for point, (cam, seg) in pairs.items()]
    floor = all_background(results)
    return notes if floor is None else [*notes, f"everything background: {100 * floor:.1f}"]


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


def summary(
    document: Mapping[str, Any], results: Sequence[Result], histories: Mapping[str, Sequence[Event]]
) -> dict[str, bytes]:
    """The files that tell of a whole sweep: leaderboard in three forms, heat map, and curves where there are any."""
    file, floor = document["file"], all_background(results)
    rows = leaderboard(results, file["metric"], file["mode"])
    lines = table(rows, file["metric"], floor)
    files = {
        "leaderboard.md": markdown(lines).encode(),
        "leaderboard.csv": csv_text(numbers(rows, file["metric"], floor)).encode(),
        "leaderboard.html": html_text(lines, f"{document['name']}, by {file['metric']}").encode(),
    }
    if any(histories.values()):
        files["curves.png"] = curves(histories, COLUMNS | {"total loss": "loss/total"})
    if file["heatmap"]:
        apart = {point["name"] for point in file.get("points", ())}
        drawn = heat_map(results, file["heatmap"]["x"], file["heatmap"]["y"], document["name"], apart)
        if drawn is not None:
            files["heatmap.png"] = drawn
    return files
