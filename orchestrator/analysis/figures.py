"""From trial results to what people look at: leaderboard, heat map, learning curves. Pure functions of results."""

from __future__ import annotations

import csv
import html
import io
import itertools
import math
from collections.abc import Collection, Mapping, Sequence
from statistics import mean
from typing import Any

from orchestrator.analysis.ablation import comparison, latex, reference
from orchestrator.analysis.ladder import ladder, level_numbers, step_numbers
from orchestrator.analysis.leaderboard import (
    CAM,
    COLUMNS,
    SEG,
    all_background,
    front,
    leaderboard,
    numbers,
    table,
)
from orchestrator.records.events import Event
from orchestrator.records.plans import PlanRecord
from orchestrator.records.results import Result
from orchestrator.records.status import TrialStatus


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
        if result.status == TrialStatus.FINISHED:
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
        if result.status == TrialStatus.FINISHED and result.identity not in cells:
            outside.setdefault(result.point, []).append(result)
    pairs = {point: (_mean_percent(some, CAM), _mean_percent(some, SEG)) for point, some in outside.items()}
    notes = [f"{point}: {cam:.1f}/{seg:.1f}" for point, (cam, seg) in pairs.items()]
    floor = all_background(results)
    return notes if floor is None else [*notes, f"everything background: {100 * floor:.1f}"]


def curves(
    histories: Mapping[str, Sequence[Event]], keys: Mapping[str, str], groups: Mapping[str, str] | None = None
) -> bytes:
    """Learning curves as PNG: one panel per metric of `keys` (title to key), one line per trial.

    Trials of one group (name of a trial to its configuration; default: each its own) share a colour and a label.
    """
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    groups = groups or {name: name for name in histories}
    names = list(dict.fromkeys(groups[name] for name in histories))
    colours = dict(
        zip(names, (colormaps["tab20" if len(names) > 10 else "tab10"](i % 20) for i in range(len(names))), strict=True)
    )
    across = min(2, len(keys))
    down = -(-len(keys) // across)
    figure = Figure(figsize=(5.4 * across, 3.2 * down + 0.6), layout="constrained")
    panels = figure.subplots(down, across, squeeze=False).flatten()
    handles: dict[str, Any] = {}
    for axes in panels[len(keys) :]:
        axes.axis("off")
    for axes, (title, key) in zip(panels, keys.items(), strict=False):
        for name, events in histories.items():
            points = [(e["iteration"], e["metrics"][key]) for e in events if key in e.get("metrics", {})]
            if points:
                colour = colours[groups[name]]
                (line,) = axes.plot(*zip(*points, strict=True), marker="o", markersize=3, color=colour)
                handles.setdefault(groups[name], line)
        axes.set(title=title, xlabel="iteration")
        axes.grid(alpha=0.3)
    if handles:
        figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=4, fontsize=8)
    return _png(figure)


def _mean_percent(results: Sequence[Result], key: str) -> float:
    values = [100 * r.metrics[key] for r in results if key in r.metrics]
    return mean(values) if values else math.nan


def _png(figure: Any) -> bytes:
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=110)
    return out.getvalue()


def _front(results: Sequence[Result], objectives: Sequence[tuple[str, str]]) -> list[list[str]]:
    lines = [["configuration", *(f"{metric} ({mode})" for metric, mode in objectives)]]
    return lines + [[row.point, *(row.text(metric) for metric, _ in objectives)] for row in front(results, objectives)]


def summary(
    document: PlanRecord, results: Sequence[Result], histories: Mapping[str, Sequence[Event]]
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
    if (climbed := ladder(results)).levels:
        tables = [markdown(lines) for lines in (climbed.levels, climbed.steps) if lines]
        files["ladder.md"] = "\n".join([*tables, *(f"{note}.\n" for note in climbed.notes)]).encode()
        files["ladder.csv"] = csv_text(level_numbers(results)).encode()
        files["ladder_differences.csv"] = csv_text(step_numbers(results)).encode()
    if (base := reference(file)) is not None:
        compared = comparison(results, base, file["metric"])
        files["comparison.md"] = markdown(compared).encode()
        files["comparison.tex"] = latex(compared, f"{document['name']}: differences to {base}").encode()
    objectives = [(o["metric"], o["mode"]) for o in file.get("search", {}).get("objectives", ())]
    if len(objectives) > 1:
        files["front.md"] = markdown(_front(results, objectives)).encode()
    if any(histories.values()):
        files["curves.png"] = curves(histories, COLUMNS | {"total loss": "loss/total"})
    if file.get("heatmap"):
        apart = {point["name"] for point in file.get("points", ())}
        drawn = heat_map(results, file["heatmap"]["x"], file["heatmap"]["y"], document["name"], apart)
        if drawn is not None:
            files["heatmap.png"] = drawn
    return files
