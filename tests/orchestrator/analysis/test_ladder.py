"""The table with a row per stage."""

from __future__ import annotations

from orchestrator.analysis.ladder import ladder
from orchestrator.analysis.leaderboard import leaderboard
from orchestrator.records.results import Result
from orchestrator.records.status import TrialStatus

SEG = "val/seg/single/miou"


def result(stage: str, point: str, seed: int, status: TrialStatus = TrialStatus.FINISHED, **metrics: float) -> Result:
    scores = {key.replace("__", "/"): value for key, value in metrics.items()}
    last = stage == "segment"
    return Result(f"{point}{seed}", f"{point} s{seed}", point, {}, seed, status, scores, stage=stage, compared=last)


def test_each_stage_has_its_scores_on_train_and_val_over_seeds() -> None:
    results = [
        result("seeds", "seeds", 0, train__cam__ms__miou=0.5, val__cam__ms__miou=0.4, val__seg__single__miou=0.45),
        result("seeds", "seeds", 1, train__cam__ms__miou=0.6, val__cam__ms__miou=0.4, val__seg__single__miou=0.47),
        result("refine", "refine t=1", 0, train__pseudo_label__ms__miou=0.62, val__cam__ms__miou=0.41),
        result("segment", "segment t=1", 0, val__seg__single__miou=0.66, val__all_background__single__miou=0.1),
        result("segment", "segment t=2", 0, TrialStatus.NEW),
        result("segment", "segment t=3", 0, TrialStatus.FAILED),
    ]
    assert ladder(results) == [
        ["stage", "configuration", "scored", "train mIoU", "val mIoU", "seeds"],
        ["seeds", "-", "CAM", "55.0 ± 7.1", "40.0 ± 0.0", "0, 1"],
        ["seeds", "-", "segmentation", "-", "46.0 ± 1.4", "0, 1"],
        ["refine", "t=1", "CAM, thresholded", "-", "41.0", "0"],
        ["refine", "t=1", "labels", "62.0", "-", "0"],
        ["segment", "t=1", "segmentation", "-", "66.0", "0"],
        ["segment", "t=2", "not begun", "", "", ""],
        ["segment", "t=3", "failed", "", "", ""],
        ["", "(all background)", "", "-", "10.0", ""],
    ]
    assert [row.point for row in leaderboard(results, SEG)] == ["segment t=1"]  # the seeds' decoder is not compared


def test_a_sweep_without_stages_has_no_ladder() -> None:
    assert ladder([Result("a", "a", "a", {}, 0, TrialStatus.FINISHED, {SEG: 0.5})]) == []
