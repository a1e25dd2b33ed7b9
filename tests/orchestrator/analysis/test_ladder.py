"""The tables with a row per stage, and with what each stage adds."""

from __future__ import annotations

import csv
import io
from dataclasses import replace

import pytest

from orchestrator.analysis.figures import summary
from orchestrator.analysis.ladder import ladder, step_numbers, steps
from orchestrator.analysis.leaderboard import leaderboard
from orchestrator.analysis.statistics import mean_interval, paired
from orchestrator.records.results import Result
from orchestrator.records.status import TrialStatus

SEG = "val/seg/single/miou"


def result(point: str, seed: int, of: str = "", status: TrialStatus = TrialStatus.FINISHED, **metrics: float) -> Result:
    scores = {key.replace("__", "/"): value for key, value in metrics.items()}
    stage = point.split()[0]
    made = Result(f"{point}{seed}", f"{point} s{seed}", point, {}, seed, status, scores, stage=stage)
    return replace(
        made, compared=stage in ("segment", "full"), input=f"{of}{seed}" if of else None, full=stage == "full"
    )


def pipeline(seed: int, cam: float, decoder: float, labels: float, network: float, full: float) -> list[Result]:
    """A pipeline of one seed, scored on training images (labels) and validation images."""
    plain = {
        "train__cam__ms__miou": cam,
        "train__pseudo_label__ms__miou": labels,
        "val__pseudo_label__ms__miou": labels,
    }
    return [
        result("seeds", seed, train__cam__ms__miou=cam + 0.1, val__cam__ms__miou=cam, val__seg__single__miou=decoder),
        result("refine t=1", seed, "seeds", TrialStatus.FINISHED, **plain),
        result("segment t=1", seed, "refine t=1", val__seg__single__miou=network),
        result("full (full supervision)", seed, val__seg__single__miou=full, val__all_background__single__miou=0.1),
    ]


def test_levels_have_intervals_over_seeds() -> None:
    results = [*pipeline(0, 0.4, 0.3, 0.5, 0.6, 0.8), *pipeline(1, 0.5, 0.3, 0.7, 0.6, 0.8)]
    results += [
        result("segment t=2", 0, "refine t=1", TrialStatus.NEW),
        result("segment t=3", 0, "", TrialStatus.FAILED),
    ]
    climbed = ladder(results)
    assert climbed.levels == [
        ["stage", "configuration", "scored", "train mIoU", "val mIoU", "seeds"],
        ["seeds", "-", "CAM", "55.0 ± 7.1 [-8.5, 118.5]", "45.0 ± 7.1 [-18.5, 108.5]", "0, 1"],
        ["seeds", "-", "segmentation", "-", "30.0 ± 0.0 [30.0, 30.0]", "0, 1"],
        ["refine", "t=1", "CAM, thresholded", "45.0 ± 7.1 [-18.5, 108.5]", "-", "0, 1"],
        ["refine", "t=1", "labels", "60.0 ± 14.1 [-67.1, 187.1]", "60.0 ± 14.1 [-67.1, 187.1]", "0, 1"],
        ["segment", "t=1", "segmentation", "-", "60.0 ± 0.0 [60.0, 60.0]", "0, 1"],
        ["full", "(full supervision)", "segmentation", "-", "80.0 ± 0.0 [80.0, 80.0]", "0, 1"],
        ["segment", "t=2", "not begun", "", "", ""],
        ["segment", "t=3", "failed", "", "", ""],
        ["", "(all background)", "", "-", "10.0", ""],
    ]
    assert climbed.notes == []
    assert [row.point for row in leaderboard(results, SEG)] == ["full (full supervision)", "segment t=1"]
    low, high = mean_interval([1.0, 2.0, 6.0])  # 3 ± 4.302653 * 2.645751 / sqrt(3)
    assert (low, high) == pytest.approx((-3.572412, 9.572412), abs=1e-5)


def test_a_stage_is_compared_with_the_one_before_its_own_decoder_and_full_supervision() -> None:
    rows = [(0.40, 0.30, 0.50, 0.60, 0.80), (0.42, 0.33, 0.53, 0.61, 0.82), (0.38, 0.35, 0.47, 0.62, 0.83)]
    results = [trial for seed, row in enumerate(rows) for trial in pipeline(seed, *row)]
    found = {(s.stage, s.scored, s.against, s.split): s for s in steps(results)}
    expected = {
        ("refine", "labels", "CAM, thresholded", "train"): (2, 0),
        ("segment", "segmentation", "refine: labels", "val"): (3, 2),
        ("segment", "segmentation", "seeds: segmentation", "val"): (3, 1),
        ("segment", "segmentation", "full (full supervision): segmentation", "val"): (3, 4),
    }
    assert found.keys() == expected.keys()
    for name, columns in expected.items():
        by_seed = ({seed: row[column] for seed, row in enumerate(rows)} for column in columns)
        assert found[name].difference == paired(*by_seed)
        assert found[name].p >= found[name].difference.p
    header, first, *_ = ladder(results).steps
    assert header == ["stage", "configuration", "scored", "less", "on", "difference", "seeds", "p (Holm)", ""]
    assert first[:5] == ["refine", "t=1", "labels", "CAM, thresholded", "train"]
    assert first[5:7] == ["+10.0 [+7.5, +12.5]", "3"] and first[8] == "decided"


def test_a_network_that_only_helps_to_refine_is_not_compared() -> None:
    """Such as that of IRN: it learns from labels too, and what it says of classes is not what it is for."""
    results = pipeline(0, 0.4, 0.3, 0.5, 0.6, 0.8)
    helper = replace(results[2], identity="boundaries0", stage="boundaries", point="boundaries", compared=False)
    assert [s.stage for s in steps([*results, helper])] == [s.stage for s in steps(results)]


def test_seeds_that_are_not_shared_are_not_compared() -> None:
    results = [*pipeline(0, 0.4, 0.3, 0.5, 0.6, 0.8), *pipeline(1, 0.5, 0.4, 0.7, 0.6, 0.8)[:2]]
    by_name = {(s.scored, s.against): s.difference for s in steps(results)}
    assert by_name["labels", "CAM, thresholded"].n == 2 and by_name["segmentation", "refine: labels"].n == 1


def test_labels_of_labels_are_compared_with_those() -> None:
    refine = [
        result("refine", 0, "seeds", val__pseudo_label__ms__miou=0.5),
        result("again", 0, "refine", val__pseudo_label__ms__miou=0.6),
    ]
    (step,) = steps(refine)
    assert (step.stage, step.against, round(step.difference.mean, 6)) == ("again", "refine: labels", 0.1)


def test_one_seed_has_no_interval_and_says_so() -> None:
    climbed = ladder(pipeline(0, 0.4, 0.3, 0.5, 0.6, 0.8))
    assert climbed.levels[1][3:5] == ["50.0", "40.0"]
    assert climbed.steps[0][5:] == ["difference", "seeds"] and {line[6] for line in climbed.steps[1:]} == {"1"}
    assert climbed.notes[0].startswith("One seed: no interval can be given")
    files = summary({"name": "x", "file": {"metric": SEG, "mode": "max"}}, pipeline(0, 0.4, 0.3, 0.5, 0.6, 0.8), {})  # type: ignore[typeddict-item]
    text = files["ladder.md"].decode()
    assert "| segment | t=1 | segmentation | refine: labels | val | +10.0 | 1 |" in text
    assert "One seed: no interval can be given" in text
    line = next(csv.DictReader(io.StringIO(files["ladder_differences.csv"].decode())))
    assert float(line["miou"]) == pytest.approx(0.1) and line["low"] == line["p"] == ""


def test_a_sweep_without_stages_has_no_ladder() -> None:
    plain = [Result("a", "a", "a", {}, 0, TrialStatus.FINISHED, {SEG: 0.5})]
    climbed = ladder(plain)
    assert (climbed.levels, climbed.steps, climbed.notes) == ([], [], []) and len(step_numbers(plain)) == 1
