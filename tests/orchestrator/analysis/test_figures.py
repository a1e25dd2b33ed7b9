"""Leaderboard, tables and pictures from results."""

from __future__ import annotations

import io
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from orchestrator.analysis.figures import curves, heat_map, html_text, markdown
from orchestrator.analysis.leaderboard import ALL_BACKGROUND, CAM, SEG, all_background, leaderboard, table, unscored
from orchestrator.records.results import Result
from orchestrator.records.status import TrialStatus


def result(point: str, seed: int, seg: float, status: str = "finished", varied: dict[str, str] | None = None) -> Result:
    return Result(f"{point}{seed}", point, point, varied or {}, seed, TrialStatus(status), {SEG: seg, CAM: seg / 2})


def test_seeds_are_one_row_with_mean_and_spread() -> None:
    rows = leaderboard([result("a", 0, 0.5), result("a", 1, 0.7), result("b", 0, 0.65)], SEG)
    assert [row.point for row in rows] == ["b", "a"]
    assert rows[1].score == pytest.approx(0.6) and rows[1].spreads[SEG] == pytest.approx(math.sqrt(0.02))
    assert not rows[0].spreads and rows[1].seeds == (0, 1)
    assert table(rows, SEG)[2][1:4] == ["a", "30.0 ± 7.1", "60.0 ± 14.1"]


def test_unfinished_trials_and_unmeasured_metrics_are_not_ranked() -> None:
    results = [
        result("a", 0, 0.9, "failed"),
        result("b", 0, 0.1),
        Result("c", "c", "c", {}, 0, TrialStatus.FINISHED, {}),
    ]
    assert [row.point for row in leaderboard(results, SEG)] == ["b"]
    assert leaderboard(results, SEG)[0].text("val/aux_cam/ms/miou") == "-"


def test_a_score_that_is_no_number_is_told_and_never_shown_as_one() -> None:
    results = [result("a", 0, 0.5), result("b", 0, math.nan), result("c", 0, math.nan)]
    assert [row.point for row in leaderboard(results, SEG)] == ["a"]
    assert unscored(results, SEG) == f"without a score of {SEG}: 2 of 3: b, c"
    assert unscored(results[:1], SEG) is None
    floors = [Result("x", "x", "x", {}, 0, TrialStatus.FINISHED, {ALL_BACKGROUND: v}) for v in (math.nan, 0.1)]
    assert all_background(floors) == 0.1 and all_background(floors[:1]) is None


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=8), st.sampled_from(["max", "min"]))
def test_order_follows_the_mode(scores: list[float], mode: str) -> None:
    ranked = [row.score for row in leaderboard([result(str(i), 0, s) for i, s in enumerate(scores)], SEG, mode)]
    assert ranked == sorted(scores, reverse=mode == "max")


def test_names_cannot_break_the_tables() -> None:
    lines = table(leaderboard([result("<b>|x", 0, 0.5)], SEG), SEG)
    assert "&lt;b&gt;|x" in html_text(lines, "<t>") and "<b>" not in html_text(lines, "<t>")
    assert all(
        line.count(" | ") == markdown(lines).splitlines()[0].count(" | ") for line in markdown(lines).splitlines()[2:]
    )


def test_heat_map_shows_cells_and_waits_for_the_first() -> None:
    cells = [
        result(f"{x}{y}", 0, 0.5 + 0.1 * i, varied={"mask.ratio": x, "mask.scale": y})
        for i, (x, y) in enumerate([("0.5", "1"), ("0.95", "1"), ("0.5", "4")])
    ]
    waiting = [result("w", 0, 0.0, "new", {"mask.ratio": "0.95", "mask.scale": "4"})]
    assert heat_map(waiting, "mask.ratio", "mask.scale", "t") is None
    png = heat_map([*cells, *waiting, result("baseline", 0, 0.4)], "mask.ratio", "mask.scale", "t")
    assert png is not None
    picture = Image.open(io.BytesIO(png)).convert("RGB")
    assert picture.width > 600 and len(set(picture.resize((60, 40)).getdata())) > 20


def test_curves_of_trials_without_a_metric_are_left_out() -> None:
    history = [{"kind": "metrics", "iteration": i, "metrics": {"a": 1 / i}} for i in range(1, 5)]
    full, empty = (Image.open(io.BytesIO(curves({"t": h}, {"A": "a", "B": "b"}))).convert("L") for h in (history, []))
    assert full.size == empty.size and list(full.getdata()) != list(empty.getdata())
