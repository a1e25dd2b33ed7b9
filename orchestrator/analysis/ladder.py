"""The ladder of a sweep of stages, as in Table 2 of the paper: what each stage reaches on training and validation
images, and what it adds to the one before, seed by seed. Pure functions of results."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import mean, stdev

from orchestrator.analysis.leaderboard import all_background
from orchestrator.analysis.statistics import Difference, holm, mean_interval, paired, percent, verdict
from orchestrator.records.results import Result
from orchestrator.records.status import TrialStatus

# What is scored, and under which key after the split; in the order of a pipeline.
CAM, AUX, LABELS, SEG = "cam/ms/miou", "aux_cam/ms/miou", "pseudo_label/ms/miou", "seg/single/miou"
SPLITS: tuple[str, ...] = ("train", "val")
_THRESHOLDED = {CAM: "CAM, thresholded", AUX: "auxiliary CAM, thresholded"}  # before they are refined
_OF_LABELS = _THRESHOLDED | {LABELS: "labels"}
_OF_NETWORK = {CAM: "CAM", SEG: "segmentation"}
_COMPARED = _OF_LABELS | {SEG: "segmentation"}


@dataclass(frozen=True)
class Rung:
    """What one configuration of a stage reached by one score."""

    stage: str
    configuration: str  # without the stage's name; `-` where it is the only one
    scored: str
    scores: Mapping[str, Mapping[int, float]]  # by split, then seed
    seeds: tuple[int, ...]  # that finished


@dataclass(frozen=True)
class Step:
    """One rung less another, on a split, seed by seed."""

    stage: str
    configuration: str
    scored: str
    against: str
    split: str
    difference: Difference
    p: float = math.nan  # adjusted for the number of steps of the sweep (Holm)


@dataclass(frozen=True)
class Ladder:
    """Tables of a sweep of stages, in percent."""

    levels: list[list[str]] = field(default_factory=list)  # header and lines; empty without stages
    steps: list[list[str]] = field(default_factory=list)  # likewise; empty where nothing has one before it
    notes: list[str] = field(default_factory=list)


def ladder(results: Sequence[Result]) -> Ladder:
    """Both tables as text: levels with standard deviation and 95 % interval over seeds, differences with theirs."""
    staged = [r for r in results if r.stage]
    if not staged:
        return Ladder()
    found = rungs(staged)
    lines = [["stage", "configuration", "scored", *(f"{split} mIoU" for split in SPLITS), "seeds"]]
    for (stage, configuration), trials in _configurations(staged).items():
        own = [rung for rung in found if (rung.stage, rung.configuration) == (stage, configuration)]
        for rung in own:
            cells = (_level([*rung.scores[split].values()]) for split in SPLITS)
            lines.append([stage, configuration, rung.scored, *cells, ", ".join(map(str, rung.seeds))])
        if not any(r.status == TrialStatus.FINISHED for r in trials):
            states = dict.fromkeys("not begun" if r.status == TrialStatus.NEW else str(r.status) for r in trials)
            lines.append([stage, configuration, ", ".join(states), "", "", ""])
    if (floor := all_background(staged)) is not None:
        lines.append(["", "(all background)", "", "-", f"{100 * floor:.1f}", ""])
    return Ladder(lines, _lines(steps(staged)), _notes(found))


def rungs(results: Sequence[Result]) -> list[Rung]:
    """What configurations with a finished seed reached, in the sweep's order."""
    made = []
    for (stage, configuration), trials in _configurations(results).items():
        done = [r for r in trials if r.status == TrialStatus.FINISHED]
        for key, title in (_OF_LABELS if any(_has(r, LABELS) for r in done) else _OF_NETWORK).items():
            scores = {split: _measured({r.seed: r.score(f"{split}/{key}") for r in done}) for split in SPLITS}
            if any(scores.values()):
                made.append(Rung(stage, configuration, title, scores, tuple(r.seed for r in done)))
    return made


def steps(results: Sequence[Result]) -> list[Step]:
    """What each stage adds to the one that it takes from; of networks at the end of a pipeline also what they are
    beside the first network's own segmentation and beside networks trained on masks.

    Labels are compared with the maps that they are made of, thresholded alike, on the same images. P values are
    adjusted for the number of steps.
    """
    known = {r.identity: r for r in results if r.status == TrialStatus.FINISHED}
    bounds = [r for r in known.values() if r.full and r.input is None and _has(r, SEG)]
    made: list[Step] = []
    for (stage, configuration), trials in _configurations([*known.values()]).items():
        pairs: dict[tuple[str, str, str], list[tuple[Result, Result]]] = {}
        for result in trials:
            for name, other in _compared(result, known, bounds):
                pairs.setdefault(name, []).append((result, other))
        for (key, whose, other_key), both in pairs.items():
            against = f"{whose}: {_COMPARED[other_key]}" if whose else _COMPARED[other_key]
            for split in SPLITS:
                first = _measured({r.seed: r.score(f"{split}/{key}") for r, _ in both})
                second = _measured({r.seed: other.score(f"{split}/{other_key}") for r, other in both})
                if (difference := paired(first, second)) is not None:
                    made.append(Step(stage, configuration, _COMPARED[key], against, split, difference))
    adjusted = holm([step.difference.p for step in made])
    return [replace(step, p=p) for step, p in zip(made, adjusted, strict=True)]


def _compared(
    result: Result, known: Mapping[str, Result], bounds: Sequence[Result]
) -> Iterator[tuple[tuple[str, str, str], Result]]:
    """What of a trial is compared: its score's key, whose the other is (empty: its own) and that one's key."""
    before = known.get(result.input or "")
    if _has(result, LABELS):
        if own := [key for key in _THRESHOLDED if _has(result, key)]:
            yield (LABELS, "", own[0]), result
        elif before is not None and _has(before, LABELS):
            yield (LABELS, before.stage, LABELS), before
    elif result.compared and _has(result, SEG) and before is not None:  # what others take from is no end
        yield (SEG, before.stage, LABELS), before
        first = before
        while first.input in known:
            first = known[str(first.input)]
        if first is not before:
            yield (SEG, first.stage, SEG), first
        for bound in bounds if not result.full else ():
            if bound.seed == result.seed:
                yield (SEG, bound.point, SEG), bound


def _configurations(results: Sequence[Result]) -> dict[tuple[str, str], list[Result]]:
    """Trials by stage and configuration, in the sweep's order."""
    found: dict[tuple[str, str], list[Result]] = {}
    for result in results:
        configuration = result.point.removeprefix(result.stage).strip() or "-"
        found.setdefault((result.stage, configuration), []).append(result)
    return found


def _has(result: Result, key: str) -> bool:
    return any(result.score(f"{split}/{key}") is not None for split in SPLITS)


def _measured(scores: Mapping[int, float | None]) -> dict[int, float]:
    return {seed: value for seed, value in scores.items() if value is not None}


def _level(scores: Collection[float]) -> str:
    """Mean, and with two seeds or more standard deviation and interval, in percent."""
    values = [100 * score for score in scores]
    if len(values) < 2:
        return f"{values[0]:.1f}" if values else "-"
    low, high = mean_interval(values)
    return f"{mean(values):.1f} ± {stdev(values):.1f} [{low:.1f}, {high:.1f}]"


def _lines(tested: Sequence[Step]) -> list[list[str]]:
    """The differences as text; where no seed is repeated, without tests."""
    if not tested:
        return []
    repeated = any(step.difference.n > 1 for step in tested)
    head = ["stage", "configuration", "scored", "less", "on", "difference", "seeds"]
    lines = [[*head, *(["p (Holm)", ""] if repeated else [])]]
    for step in tested:
        p = "" if math.isnan(step.p) else f"{step.p:.3f}"
        told = [percent(step.difference), str(step.difference.n)]
        told += [p, verdict(step.difference, step.p)] if repeated else []
        lines.append([step.stage, step.configuration, step.scored, step.against, step.split, *told])
    return lines


def _notes(found: Sequence[Rung]) -> list[str]:
    """What is missing for an interval."""
    counts = {len(scores) for rung in found for scores in rung.scores.values() if scores}
    if 1 not in counts:
        return []
    which = "One seed" if counts == {1} else "Where one seed is done"
    return [f"{which}: no interval can be given and no difference is decided; run it with more, such as --seeds 0,1,2"]


def level_numbers(results: Sequence[Result]) -> list[list[str]]:
    """The levels for programs: full precision, a line for each split."""
    lines = [["stage", "configuration", "scored", "split", "seeds", "miou", "std", "low", "high"]]
    for rung in rungs([r for r in results if r.stage]):
        for split, scores in rung.scores.items():
            if scores:
                values = [*scores.values()]
                spread = ["", "", ""] if len(values) < 2 else [stdev(values), *mean_interval(values)]
                seeds = " ".join(map(str, scores))
                lines.append(
                    [rung.stage, rung.configuration, rung.scored, split, seeds, *map(str, [mean(values), *spread])]
                )
    return lines


def step_numbers(results: Sequence[Result]) -> list[list[str]]:
    """The differences for programs: full precision, empty where one seed gives none."""
    lines = [
        ["stage", "configuration", "scored", "less", "split", "seeds", "miou", "std", "low", "high", "p", "p_holm"]
    ]
    for step in steps([r for r in results if r.stage]):
        found = step.difference
        values = [found.mean, found.spread, found.low, found.high, found.p, step.p]
        told = ["" if math.isnan(value) else str(value) for value in values]
        lines.append([step.stage, step.configuration, step.scored, step.against, step.split, str(found.n), *told])
    return lines
