"""Differences, their intervals and tests, ties, and the tables made of them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from experiments import plan_record
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from mcc_core.errors import UsageError
from orchestrator.analysis.ablation import comparison, latex
from orchestrator.analysis.figures import markdown, summary
from orchestrator.analysis.leaderboard import SEG, front, leaderboard, table
from orchestrator.analysis.statistics import bootstrap, holm, mean_iou, paired, pareto, seeds_to_decide, verdict
from orchestrator.records.results import Result
from orchestrator.records.status import TrialStatus
from orchestrator.spec.design import Design


def result(point: str, seed: int, **metrics: float) -> Result:
    named = {SEG if key == "seg" else key: value for key, value in metrics.items()}
    return Result(f"{point}{seed}", f"{point} s{seed}", point, {}, seed, TrialStatus.FINISHED, named)


def scores(*values: float) -> dict[int, float]:
    return dict(enumerate(values))


def test_the_paired_test_is_that_of_scipy_over_shared_seeds() -> None:
    a, b = scores(0.50, 0.54, 0.52, 0.55), scores(0.49, 0.50, 0.50, 0.52) | {9: 0.1}
    found = paired(a, b)
    assert found is not None and found.n == 4 and found.mean == pytest.approx(0.025)
    theirs = stats.ttest_rel([a[s] for s in range(4)], [b[s] for s in range(4)])
    assert found.p == pytest.approx(theirs.pvalue)
    assert (found.low, found.high) == pytest.approx(tuple(theirs.confidence_interval()))
    assert found.decided == (theirs.pvalue < 0.05)


def test_without_seeds_to_compare_nothing_is_claimed() -> None:
    assert paired(scores(0.5), {3: 0.4}) is None
    single = paired(scores(0.5), scores(0.4))
    assert single is not None and single.mean == pytest.approx(0.1) and math.isnan(single.p) and not single.decided
    assert verdict(single) == "one seed: undecided" and verdict(None) == "no shared seed"
    same = paired(scores(0.5, 0.4), scores(0.5, 0.4))
    assert same is not None and same.p == 1.0 and verdict(same) == "equal"


def test_the_number_of_seeds_has_the_promised_power() -> None:
    # A paired t test for a difference of one standard deviation needs 10 pairs for a power of 0.8 (Cohen's tables).
    assert seeds_to_decide(1.0, 1.0) == 10
    assert seeds_to_decide(-0.5, 1.0) == 34
    needed = seeds_to_decide(0.02, 0.03)
    assert needed is not None
    drawn = np.random.default_rng(0).normal(0.02, 0.03, size=(4000, needed))
    assert (stats.ttest_1samp(drawn, 0.0, axis=1).pvalue < 0.05).mean() == pytest.approx(0.8, abs=0.04)
    assert seeds_to_decide(1e-6, 1.0) is None and seeds_to_decide(0.0, 1.0) is None
    assert seeds_to_decide(0.1, math.nan) is None


def test_p_values_are_adjusted_for_their_number() -> None:
    assert holm([0.01, math.nan, 0.04, 0.03])[0] == pytest.approx(0.03)
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert math.isnan(holm([math.nan])[0])


def counts(rng: np.random.Generator, images: int, quality: float) -> np.ndarray:
    union = rng.integers(50, 200, size=(images, 3))
    inside = rng.binomial(union, np.clip(quality + rng.normal(0, 0.1, size=(images, 1)), 0, 1))
    return np.stack([inside, union], axis=-1)


def test_the_bootstrap_tells_a_real_difference_from_none() -> None:
    rng = np.random.default_rng(1)
    shared = counts(rng, 120, 0.5)
    better = shared.copy()
    better[..., 0] = np.minimum(better[..., 1], better[..., 0] + 8)
    real = bootstrap(better, shared)
    assert real.decided and 0 < real.low <= real.mean <= real.high and real.n == 120
    assert real.mean == pytest.approx(float(mean_iou(better) - mean_iou(shared)))
    assert not bootstrap(counts(rng, 120, 0.5), counts(rng, 120, 0.5)).decided
    assert bootstrap(better, shared) == real  # seeded
    back = bootstrap(shared, better)
    assert (back.mean, back.low, back.high) == pytest.approx((-real.mean, -real.high, -real.low))


def test_the_bootstrap_has_the_right_size_and_takes_seeds_together() -> None:
    rng = np.random.default_rng(2)
    rejected = sum(bootstrap(counts(rng, 60, 0.5), counts(rng, 60, 0.5), draws=300).decided for _ in range(100))
    assert rejected <= 14
    many = np.stack([counts(rng, 40, 0.6) for _ in range(3)]), np.stack([counts(rng, 40, 0.5) for _ in range(3)])
    each = [float(mean_iou(a) - mean_iou(b)) for a, b in zip(*many, strict=True)]
    assert bootstrap(*many).mean == pytest.approx(np.mean(each))
    with pytest.raises(ValueError, match="not images x classes x 2"):
        bootstrap(many[0], many[1][:2])


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=8))
def test_the_front_is_never_empty_and_nothing_on_it_is_beaten(points: list[tuple[int, int]]) -> None:
    kept = [p for p, keep in zip(points, pareto(points, ["max", "min"]), strict=True) if keep]
    assert kept
    assert not any(o[0] >= p[0] and o[1] <= p[1] and o != p for p in kept for o in points)


def test_the_leaderboard_shows_ties_as_ties_with_the_seeds_that_would_decide() -> None:
    values = {"best": (0.50, 0.56, 0.52), "close": (0.51, 0.53, 0.52), "far": (0.30, 0.36, 0.33)}
    results = [result(p, s, seg=v) for p, three in values.items() for s, v in enumerate(three)]
    header, first, second, third = table(leaderboard(results, SEG), SEG)
    assert header[-1] == "against the best" and first[0] == "1"
    assert second[0] == "=1" and second[-1].startswith("tie; ") and "seeds would decide" in second[-1]
    assert int(second[-1].split()[1]) > 3
    assert third[0] == "3" and third[-1] == "decided"
    alone = table(leaderboard([r for r in results if r.seed == 0], SEG), SEG)
    assert "against the best" not in alone[0] and [line[0] for line in alone[1:]] == ["1", "2", "3"]


def test_the_table_of_an_ablation_is_paired_adjusted_and_printable() -> None:
    values = {"none": (0.40, 0.45, 0.42), "with-contrast": (0.45, 0.50, 0.471), "with-affinity": (0.41, 0.43, 0.44)}
    results = [result(p, s, seg=v) for p, three in values.items() for s, v in enumerate(three)]
    lines = comparison(results, "none", SEG)
    assert lines[1][0] == "none" and lines[1][-1] == "reference" and "42.3 ± 2.5" in lines[1]
    with_contrast = next(line for line in lines if line[0] == "with-contrast")
    assert with_contrast[3].startswith("+5.0 [") and with_contrast[-1] == "decided"
    assert next(line for line in lines if line[0] == "with-affinity")[-1].startswith("tie; ")
    assert markdown(lines).count("\n") == 5
    text = latex(lines, "loss_terms: 95% of it")
    assert r"\toprule" in text and r"loss\_terms: 95\% of it" in text and r"42.3 $\pm$ 2.5" in text
    assert text.count(r"\\") == 4 and "$+$5.0" in text


def test_a_design_makes_its_points() -> None:
    terms = {"affinity": ["loss.aff"], "contrast": ["loss.mcc"]}
    out = Design.model_validate({"kind": "leave-one-out", "terms": terms})
    assert out.points({}) == {"full": {}, "without-affinity": {"loss.aff": 0}, "without-contrast": {"loss.mcc": 0}}
    into = Design.model_validate({"kind": "add-one-in", "terms": terms})
    assert into.points({}) == {
        "none": {"loss.aff": 0, "loss.mcc": 0},
        "with-affinity": {"loss.mcc": 0},
        "with-contrast": {"loss.aff": 0},
        "full": {},
    }
    assert list(into.points({})) == into.names() and list(out.points({})) == out.names()
    with pytest.raises(UsageError, match="makes no difference"):
        into.points({"loss": {"mcc": 0}})
    optional = Design.model_validate({"kind": "leave-one-out", "terms": terms | {"patches": ["loss.fsr_patch"]}})
    assert optional.points({"loss": {"fsr_patch": 0.1}})["without-patches"] == {"loss.fsr_patch": 0}
    with pytest.raises(UsageError, match=r"loss\.fsr_patch is 0 in the base"):
        optional.points({})
    wrong = Design.model_validate({"kind": "add-one-in", "terms": terms | {"contrast": ["loss.x"]}})
    with pytest.raises(UsageError, match=r"contrast: loss\.x: expected some of loss\.cls"):
        wrong.points({})


def test_the_summary_of_a_sweep_has_its_comparison_and_front() -> None:
    file: dict[str, Any] = {"metric": SEG, "mode": "max", "heatmap": None, "baseline": "a", "design": None}
    file["search"] = {"objectives": [{"metric": SEG, "mode": "max"}, {"metric": "cost", "mode": "min"}]}
    results = [
        *(result("a", s, seg=0.4 + s / 100, cost=1.0) for s in range(3)),
        *(result("b", s, seg=0.5 + s / 100, cost=2.0) for s in range(3)),
        *(result("c", s, seg=0.3 + s / 100, cost=3.0) for s in range(3)),
    ]
    files = summary(plan_record("s", file=file), results, {})
    assert files["comparison.md"].decode().count("decided") == 2
    assert b"\\begin{tabular}" in files["comparison.tex"]
    assert [row.point for row in front(results, [(SEG, "max"), ("cost", "min")])] == ["b", "a"]
    assert b"| c |" not in files["front.md"]
