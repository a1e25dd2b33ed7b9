"""Configurations against a reference, seed by seed: the table of an ablation, as Markdown and as LaTeX."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from orchestrator.analysis.leaderboard import ABSENT, columns, lacks, leaderboard, unlike
from orchestrator.analysis.statistics import holm, paired, percent, verdict
from orchestrator.records.results import Result
from orchestrator.records.status import TrialStatus
from orchestrator.spec.design import Design


def reference(file: Mapping[str, Any]) -> str | None:
    """Name of the point that a sweep's others are compared with: its baseline, else that of its design."""
    if file.get("baseline"):
        return str(file["baseline"])
    return Design.model_validate(file["design"]).reference if file.get("design") else None


def by_seed(results: Sequence[Result], point: str, metric: str) -> dict[int, float]:
    """Scores of a configuration's finished trials."""
    return {
        r.seed: r.metrics[metric]
        for r in results
        if r.point == point and r.status == TrialStatus.FINISHED and not math.isnan(r.metrics.get(metric, math.nan))
    }


def comparison(results: Sequence[Result], base: str, metric: str) -> list[list[str]]:
    """Header and lines: each configuration less the reference in percent, with the 95 % interval of the paired t test.

    The p value is of `metric`, adjusted for the number of configurations (Holm). Configurations are in the sweep's
    order, the reference first with its own scores. Unlike methods are named in a column.
    """
    shown = columns(metric)
    compared = [p for p in dict.fromkeys(r.point for r in results) if p != base and by_seed(results, p, metric)]
    tests = {p: paired(by_seed(results, p, metric), by_seed(results, base, metric)) for p in compared}
    adjusted = dict(zip(compared, holm([t.p if t else math.nan for t in tests.values()]), strict=True))
    rows = {row.point: row for row in leaderboard(results, metric)}
    methods = {r.point: r.method for r in results}
    several = unlike(methods[point] for point in (base, *compared) if point in methods)
    named = {point: [point, *([method] if several else [])] for point, method in methods.items()}
    lines = [["configuration", *(["method"] if several else []), *shown, "seeds", "p (Holm)", ""]]
    if base in rows:
        own = [rows[base].text(key) for key in shown.values()]
        lines.append([*named[base], *own, str(len(rows[base].seeds)), "", "reference"])
    for point in compared:
        cells = [_cell(results, point, base, key) for key in shown.values()]
        test, p = tests[point], adjusted[point]
        told = [str(test.n if test else 0), "" if math.isnan(p) else f"{p:.3f}", verdict(test, p)]
        lines.append([*named[point], *cells, *told])
    return lines


def latex(lines: Sequence[Sequence[str]], caption: str) -> str:
    """A table for a paper (needs the package booktabs)."""
    body = [" & ".join(_tex(cell) for cell in line) + r" \\" for line in lines]
    columns_ = "l" + "r" * (len(lines[0]) - 2) + "l"
    parts = [r"\begin{table}", r"\centering", rf"\caption{{{_tex(caption)}}}", rf"\begin{{tabular}}{{{columns_}}}"]
    parts += [r"\toprule", body[0], r"\midrule", *body[1:], r"\bottomrule", r"\end{tabular}", r"\end{table}"]
    return "\n".join(parts) + "\n"


def _cell(results: Sequence[Result], point: str, base: str, key: str) -> str:
    difference = paired(by_seed(results, point, key), by_seed(results, base, key))
    if difference is None:
        return ABSENT if any(lacks(r.method, key) for r in results if r.point in (point, base)) else "-"
    return percent(difference)


def _tex(text: str) -> str:
    escaped = re.sub(r"([&%$#_{}])", r"\\\1", text.replace("\\", r"\textbackslash "))
    escaped = escaped.replace("±", r"$\pm$").replace("~", r"\textasciitilde{}").replace("^", r"\textasciicircum{}")
    return re.sub(r"(?<![\w.])([+-])(?=\d)", r"$\1$", escaped)
