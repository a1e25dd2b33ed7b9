"""The ladder of a sweep of stages, as in Table 2 of the paper: what each stage reaches on training and validation
images. Pure functions of results."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean, stdev

from orchestrator.analysis.leaderboard import ALL_BACKGROUND
from orchestrator.records.results import Result
from orchestrator.records.status import TrialStatus

# What is scored, and under which key after the split; in the order of a pipeline.
CAM, LABELS, SEG = "cam/ms/miou", "pseudo_label/ms/miou", "seg/single/miou"
SCORES = {"CAM": CAM, "labels": LABELS, "segmentation": SEG}


def ladder(results: Sequence[Result]) -> list[list[str]]:
    """Header and lines, in percent: a line per stage, configuration and what is scored; empty without stages.

    Means over finished seeds, with their standard deviation from two on.
    """
    staged = [r for r in results if r.stage]
    if not staged:
        return []
    lines = [["stage", "configuration", "scored", "train mIoU", "val mIoU", "seeds"]]
    points: dict[tuple[str, str], list[Result]] = {}
    for result in staged:
        points.setdefault((result.stage, result.point), []).append(result)
    for (stage, point), trials in points.items():
        done = [r for r in trials if r.status == TrialStatus.FINISHED]
        configuration = point.removeprefix(stage).strip() or "-"
        seeds = ", ".join(str(r.seed) for r in done)
        if not done:
            states = ", ".join(dict.fromkeys("not begun" if r.status == TrialStatus.NEW else r.status for r in trials))
            lines.append([stage, configuration, states, "", "", ""])
        for title, key in SCORES.items():
            if key == CAM and any(r.score(f"val/{LABELS}") or r.score(f"train/{LABELS}") for r in done):
                title = "CAM, thresholded"  # before it is refined
            values = [_text(done, f"{split}/{key}") for split in ("train", "val")]
            if any(values):
                lines.append([stage, configuration, title, *(value or "-" for value in values), seeds])
    floor = [r.score(ALL_BACKGROUND) for r in staged if r.score(ALL_BACKGROUND) is not None]
    if floor:
        lines.append(["", "(all background)", "", "-", f"{100 * (floor[0] or 0.0):.1f}", ""])
    return lines


def _text(results: Sequence[Result], key: str) -> str:
    values = [100 * value for r in results if (value := r.score(key)) is not None]
    if not values:
        return ""
    return f"{mean(values):.1f}" + (f" ± {stdev(values):.1f}" if len(values) > 1 else "")
