"""The sections of a sweep's report. Each is a function of what storage has, and says so where something is missing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import yaml

from mcc_core.methods.registry import DEFAULT, experiment_of
from mcc_core.validation import flatten
from orchestrator.analysis.ablation import by_seed, comparison, reference
from orchestrator.analysis.figures import curves, heat_map
from orchestrator.analysis.importance import Configuration, importances, means_by_value, needed
from orchestrator.analysis.ladder import ladder
from orchestrator.analysis.leaderboard import ABSENT, COLUMNS, all_background, front, lacks, table
from orchestrator.analysis.statistics import paired
from orchestrator.records.results import Result
from orchestrator.records.status import DONE, TrialStatus
from orchestrator.reports.document import Code, Grid, Part, Picture, Section, Text
from orchestrator.reports.evidence import Evidence, jpeg, panels
from orchestrator.reports.provenance import cost, environment, numbers, repeat, trials

MOST_ROWS = 30  # of the leaderboard
MOST_COMPARED = 6  # configurations in a table that has them as columns
MOST_IMAGES = 6  # of each trial's gallery
MOST_CURVES = 12  # configurations


def sections(evidence: Evidence) -> list[Section]:
    """The whole report, in order."""
    made = (
        outcome,
        steps,
        board,
        heat,
        importance,
        learning,
        gallery,
        classes,
        configurations,
        trials,
        cost,
        environment,
        repeat,
    )
    return [section for make in made if (section := make(evidence)) is not None]


def outcome(evidence: Evidence) -> Section:
    """What was swept and how it stands, in sentences."""
    file, rows = evidence.file, evidence.rows
    counts = Counter(r.status for r in evidence.results)
    states = ", ".join(f"{n} {'not begun' if status == 'new' else status}" for status, n in counts.items())
    parts: list[Part] = [Text(file["description"])] if file.get("description") else []
    parts.append(Text(f"{len(evidence.results)} trials: {states}. Compared by {file['metric']} ({file['mode']})."))
    if evidence.posthoc:
        parts.append(
            Text(
                f"Nothing was trained: evaluation settings of {file['of']} were varied, each scored by "
                f"{file['protocol']} on {file['split']}. There are no learning curves and no panels."
            )
        )
    if set(counts) - DONE:
        parts.append(Text("The sweep is not complete: this is what storage had when the report was made."))
    if not rows:
        parts.append(Text("No trial has finished, so nothing is ranked yet."))
    if not evidence.posthoc and file["metric"].startswith("val/cls/"):
        parts.append(Text("The validation images have no masks: only the classes are scored, and no IoU is known."))
    return Section("Outcome", parts)


def steps(evidence: Evidence) -> Section | None:
    """What each stage reached, where the sweep has stages."""
    reached = stages(evidence.results)
    told = Text("The leaderboard below compares the last stages alone.")
    return None if reached is None else Section(reached.title, [*reached.parts, told])


def stages(results: Sequence[Result]) -> Section | None:
    """What each stage of a sweep reached; None where it has none."""
    climbed = ladder(results)
    if not climbed.levels:
        return None
    told = (
        "Percent, mean ± standard deviation over seeds with the 95 % interval of the mean. CAM: the network's class "
        "maps with the images' classes. "
        "labels: what the refinement makes of them, on the pixels that it decides. segmentation: what the network "
        "predicts itself. Scores on train are of the images that have masks, up to train.eval_train_images of a "
        "network."
    )
    parts: list[Part] = [Grid(climbed.levels), Text(told)]
    if climbed.steps:
        explained = (
            "What each stage adds to the one that it takes from, and what the last one is beside the first network's "
            "own segmentation and beside networks trained on masks: differences seed by seed, with 95 % intervals and "
            "p values of the paired t test, adjusted for their number (Holm). Labels are compared with the maps that "
            "they are made of on the same images; networks are scored on the first images of a split alone where "
            "train.eval_images or train.eval_train_images says so."
        )
        parts += [Text(explained), Grid(climbed.steps, signed=True)]
    return Section("What each stage reached", [*parts, *(Text(f"{note}.") for note in climbed.notes)])


def board(evidence: Evidence) -> Section | None:
    """Leaderboard with ties, differences to the baseline, Pareto front; what unlike methods do not have."""
    rows, file = evidence.rows, evidence.file
    if not rows:
        return None
    lines = table(rows[:MOST_ROWS], file["metric"], all_background(evidence.results))
    parts: list[Part] = [Grid(lines)]
    parts += [Text("What each number is:"), Code("\n".join(numbers(evidence, MOST_ROWS)))]
    if len(rows) > MOST_ROWS:
        parts.append(Text(f"The best {MOST_ROWS} of {len(rows)} configurations."))
    seeds = max(len(row.seeds) for row in rows)
    if len(rows) > 1 and not any("against the best" in cell for cell in lines[0]):
        parts.append(
            Text(
                "One seed for each configuration: the order may be chance, and no number of seeds that would decide "
                "can be told. Repeat the sweep with --seeds 0,1,2 at least."
            )
        )
    elif len(rows) > 1:
        parts.append(
            Text(
                f"Percent, mean ± standard deviation over up to {seeds} seeds. =1: the paired t test over shared seeds "
                "(5 %, adjusted by Holm) does not tell it from the best; the number is that of seeds with which such a "
                "difference would be found with probability 0.8."
            )
        )
    if (base := reference(file)) is not None and base in {row.point for row in rows} and len(rows) > 1:
        parts += [Text(f"Differences to {base}, seed by seed, with 95 % intervals:")]
        parts += [Grid(comparison(evidence.results, base, file["metric"]), signed=True)]
    if any(lacks(row.method, key) for row in rows for key in COLUMNS.values()):
        parts.append(Text(f"{ABSENT}: the method has no such class map."))
    objectives = [(o["metric"], o["mode"]) for o in (file.get("search") or {}).get("objectives", ())]
    if len(objectives) > 1:
        best = front(evidence.results, objectives)
        head = ["configuration", *(f"{metric} ({mode})" for metric, mode in objectives)]
        parts += [Text("Configurations that no other beats in every objective:")]
        parts += [Grid([head, *([row.point, *(row.text(metric) for metric, _ in objectives)] for row in best)])]
    return Section("Leaderboard", parts)


def heat(evidence: Evidence) -> Section | None:
    """The heat map, where the sweep has one."""
    axes = evidence.file.get("heatmap")
    if not axes:
        return None
    apart = {point["name"] for point in evidence.file.get("points", ())}
    drawn = heat_map(evidence.results, axes["x"], axes["y"], evidence.document["name"], apart)
    if drawn is None:
        return Section("Heat map", [Text("No trial of the grid has finished yet.")])
    return Section("Heat map", [Picture("heatmap.png", drawn, f"{axes['y']} over {axes['x']}, mean over seeds")])


def importance(evidence: Evidence) -> Section | None:
    """Which parameters mattered."""
    keys = list(evidence.file.get("parameters") or ())
    if not keys:
        return None
    if (evidence.file.get("scheduler") or {}).get("kind") == "pbt":
        told = "A population changes its parameters while it trains, so no score belongs to one value of them."
        return Section("Parameter importance", [Text(told)])
    configurations, own = [], {row.point: row.score for row in evidence.rows}
    apart = {point["name"] for point in evidence.file.get("points") or ()}
    for point, score in own.items():
        if point not in apart:
            varied = next(r.varied for r in evidence.results if r.point == point)
            configurations.append(Configuration({k: varied[k] for k in keys if k in varied}, score))
    if len(configurations) < 2:
        return Section("Parameter importance", [Text("Fewer than two configurations have finished.")])
    method, shares = importances(configurations, evidence.file["mode"])
    parts: list[Part] = []
    if shares:
        lines = [["parameter", "importance"], *([k, f"{100 * v:.0f} %"] for k, v in shares.items())]
        what = "Shares of the variance" if method == "fANOVA" else "Weight for being among the best"
        told = f"{what}, by {method} over {len(configurations)} configurations, each the mean of its seeds."
        parts += [Grid(lines), Text(told)]
    elif len(configurations) >= needed(len(keys)):
        parts.append(
            Text("No share can be computed: the scores are equal, or too few configurations set every parameter.")
        )
    else:
        parts.append(
            Text(
                f"Too few trials to tell: {len(configurations)} configurations of {len(keys)} parameters; shares of "
                f"the variance are computed from {needed(len(keys))} on. The means below are what was measured."
            )
        )
    if means := means_by_value(configurations):
        head = ["parameter", "value", f"mean {evidence.file['metric']}", "configurations"]
        parts.append(Grid([head, *([k, value, f"{100 * score:.1f}", str(n)] for k, value, score, n in means)]))
    return Section("Parameter importance", parts)


def learning(evidence: Evidence) -> Section | None:
    """Learning curves, those of the best configurations named."""
    if evidence.posthoc:
        return None
    metric = evidence.file["metric"]
    keys = COLUMNS | ({} if metric in COLUMNS.values() else {metric: metric}) | {"total loss": "loss/total"}
    events = {r.identity: evidence.records[r.identity].events for r in evidence.results}
    seen = {key for some in events.values() for e in some for key in e.get("metrics", ())}
    panels_ = {title: key for title, key in keys.items() if key in seen}
    if not panels_:
        return Section("Learning curves", [Text("No trial has logged anything yet.")])
    order = [row.point for row in evidence.rows] + [r.point for r in evidence.results]
    shown = list(dict.fromkeys(order))[:MOST_CURVES]
    groups = {
        r.identity: r.point for r in sorted(evidence.results, key=lambda r: order.index(r.point)) if r.point in shown
    }
    drawn = curves({i: events[i] for i in groups}, panels_, groups)
    more = len(set(order)) - len(shown)
    caption = "A line for each trial, a colour for each configuration" + (
        f"; {more} more are not drawn" if more else ""
    )
    return Section("Learning curves", [Picture("curves.png", drawn, caption)])


def gallery(evidence: Evidence) -> Section | None:
    """The panels of the best and the worst trial on the same images, one above the other; of unlike methods, of the
    best trial of each."""
    if evidence.posthoc or not (ranked := evidence.ranked()):
        return None
    methods = list(dict.fromkeys(r.method for r in ranked))
    if len(methods) > 1:
        chosen = {method: next(r for r in ranked if r.method == method) for method in methods}
        heading = "CAMs of the best trial of each method"
    else:
        chosen = {"best": ranked[0]} | ({"worst": ranked[-1]} if len(ranked) > 1 else {})
        heading = "CAMs of the best and the worst trial"
    pictures = {name: panels(evidence, trial.identity) for name, trial in chosen.items()}
    images = sorted(set.intersection(*(set(names) for names in pictures.values())))[:MOST_IMAGES]
    metric = evidence.file["metric"]
    about = "; ".join(f"{name}: {r.name} ({100 * r.metrics[metric]:.1f} {metric})" for name, r in chosen.items())
    parts: list[Part] = [
        Text(f"{about}. Columns: image with its classes, class maps, pseudo-label, prediction, ground truth.")
    ]
    for image in images:
        for name, trial in chosen.items():
            iteration, key = pictures[name][image]
            if (content := jpeg(evidence.storage, key)) is not None:
                caption = f"{image}, {name} trial {trial.name}, iteration {iteration}"
                parts.append(Picture(f"{image.replace('/', '_')}-{name}.jpg", content, caption))
    if len(parts) == 1:
        parts.append(
            Text("No panels of the same images are in storage (train.panels is 0, or they were cleared away).")
        )
    return Section(heading, parts)


def classes(evidence: Evidence) -> Section | None:
    """IoU of each class, as differences to the reference."""
    base, metric = evidence.reference, evidence.file["metric"]
    if base is None:
        return None
    stage = "/".join(metric.split("/")[:3])
    keys = [k for k in next(r for r in evidence.rows if r.point == base).values if k.startswith(f"{stage}/iou/")]
    if not keys:
        return Section("IoU by class", [Text(f"{metric}: no IoU of single classes was measured at this stage.")])
    order = list(next(r for r in evidence.results if r.point == base and r.status == TrialStatus.FINISHED).metrics)
    others = [row.point for row in evidence.rows if row.point != base][: MOST_COMPARED - 1]
    lines = [["class", base, *others]]
    for key in sorted(keys, key=order.index):
        own = by_seed(evidence.results, base, key)
        cells = [_difference(by_seed(evidence.results, point, key), own) for point in others]
        lines.append([key.rsplit("/", 1)[1], f"{100 * sum(own.values()) / len(own):.1f}", *cells])
    named = reference(evidence.file) == base
    why = "" if named else " (the sweep names no baseline; this is the last of the leaderboard)"
    note = (
        f"{stage}, percent: {base}{why} as it is, the others as differences over shared seeds, with 95 % intervals "
        "where there are several. Many classes are looked at together: one interval in twenty misses by chance."
    )
    return Section("IoU by class", [Grid(lines, signed=True), Text(note)])


def configurations(evidence: Evidence) -> Section:
    """Fields in which configurations differ."""
    if evidence.posthoc:
        flat = {r.point: dict(r.varied) for r in evidence.results}
    else:
        flat = {p: flatten(experiment_of(e, p)) for p, e in evidence.experiments.items()}
        for point, refine in evidence.refinements.items():
            flat[point] |= {f"refine.{key}": str(value) for key, value in refine.items()}
    keys = [
        k
        for k in dict.fromkeys(k for values in flat.values() for k in values)
        if len({values.get(k) for values in flat.values()}) > 1
    ]
    base, order = evidence.reference, [row.point for row in evidence.rows]
    points = list(dict.fromkeys([*([base] if base else []), *order, *flat]))[:MOST_ROWS]
    parts: list[Part] = []
    methods = {evidence.experiments[p].get("method", DEFAULT): p for p in reversed(points)}  # the first point of each
    if len(methods) > 1 and not evidence.posthoc:  # many fields, few configurations
        shown = points[:MOST_COMPARED]
        cells = [[key, *(flat[p].get(key, ABSENT) for p in shown)] for key in keys]
        parts.append(Grid([["field", *shown], *cells]))
        parts.append(Text(f"{ABSENT}: the method has no such field."))
    elif keys:
        parts.append(Grid([["configuration", *keys], *([p, *(flat[p].get(k, "") for k in keys)] for p in points)]))
    else:
        parts.append(Text("All trials have the same configuration."))
    changed = evidence.file.get("set") or {}
    if "base" in evidence.file:
        text = ", ".join(f"{key}={value}" for key, value in changed.items()) or "nothing"
        parts.append(Text(f"Base: {evidence.file['base']}. Changed in it for every trial: {text}."))
    for first in reversed(methods.values()) if not evidence.posthoc else ():
        text = yaml.safe_dump(dict(evidence.experiments[first]), sort_keys=False)
        parts.append(Code(text, f"Whole configuration of {first}"))
    return Section("Configurations", parts)


def _difference(first: Mapping[int, float], other: Mapping[int, float]) -> str:
    test = paired(first, other)
    if test is None:
        return "-"
    text = f"{100 * test.mean:+.1f}"
    return text if test.low != test.low or test.n < 2 else f"{text} [{100 * test.low:+.1f}, {100 * test.high:+.1f}]"
