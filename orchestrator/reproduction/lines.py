"""Lines of a reproduced table: what was measured of a target, what may be said of it, and how it is written."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev

from mcc_core.config import EvaluationConfig
from mcc_core.evaluation.metrics import Metric
from mcc_core.evaluation.protocols import PROTOCOLS, ProtocolName, needs_crf
from orchestrator.analysis.statistics import holm, paired, verdict
from orchestrator.spec.paper_table import PaperTable, Target

TOLERANCE = 0.005  # half a point of mIoU: what the paper's 69.8 and its published checkpoint's 70.3 differ by

Networks = Mapping[tuple[str, int], Path]  # checkpoints by row and seed
Scores = Mapping[tuple[str, int], Mapping[str, float]]


@dataclass(frozen=True)
class Aspect:
    """Something that a difference to the paper can come from."""

    name: str  # code, data, configuration, environment, seed or protocol
    same: bool
    text: str


@dataclass(frozen=True)
class Origin:
    """Where a network comes from."""

    code: str
    environment: str


@dataclass(frozen=True)
class Line:
    """A target and what became of it."""

    target: Target
    seeds: Mapping[int, float]
    verdict: str
    aspects: Sequence[Aspect] = ()  # what is as it was published and what is not, where something was measured
    protocol: str = ""  # its authors', in words
    common: Mapping[int, float] | None = None  # by the table's common protocol, where it has one

    @property
    def mean(self) -> float:
        return mean(self.seeds.values()) if self.seeds else math.nan


def judged(target: Target, networks: Networks, scores: Scores, strange: str) -> Line:
    """A target's scores by seed and the verdict on them; `strange` is what keeps them from being comparable."""
    seeds = seeds_of(target, networks, scores)
    if target.server:
        return Line(target, {}, "not measured: only the benchmark's server has the masks")
    if not seeds:
        return Line(target, {}, "not measured")
    if target.value is None:
        return Line(target, seeds, "no number is printed")
    if strange:
        return Line(target, seeds, f"not comparable: {strange}")
    far = abs(mean(seeds.values()) - target.value)
    return Line(target, seeds, f"{'within' if far <= TOLERANCE else 'outside'} {100 * TOLERANCE:g} points")


def seeds_of(target: Target, networks: Networks, scores: Scores) -> dict[int, float]:
    """Seed to score of a target's row."""
    stage, how = PROTOCOLS[target.protocol]
    key = Metric(target.split, stage, how, "miou", 0.0).key
    own = [(point, seed) for point, seed in networks if point == target.point]
    return {trial[1]: scores[trial][key] for trial in own if key in scores.get(trial, {})}


def aspects(line: Line, reasons: Mapping[str, str], origin: Origin) -> tuple[Aspect, ...]:
    """Code, environment and seed always differ: the paper's run is one run of the authors' code on their machines."""
    seeds = ", ".join(map(str, line.seeds))
    return (
        Aspect("code", False, origin.code),
        Aspect("data", "data" not in reasons, reasons.get("data", "as many images in each split as officially")),
        Aspect(
            "configuration",
            "configuration" not in reasons,
            reasons.get("configuration", "the published one in every field that can change a result"),
        ),
        Aspect("environment", False, origin.environment),
        Aspect("seed", False, f"{seeds}; the paper gives one run, whose random draws cannot be had"),
        Aspect("protocol", True, f"{line.target.measures}: {line.protocol}" if line.protocol else line.target.measures),
    )


def protocol_text(config: EvaluationConfig, protocol: ProtocolName) -> str:
    """Input size, scales and CRF of a segmentation protocol in words; nothing of others."""
    if PROTOCOLS[protocol][0] != "seg":
        return ""
    side = f"long side {config.long_side}" if config.long_side else "native size"
    if config.style == "coco" or protocol == "single":
        side = f"{config.crop} x {config.crop}"
    if protocol == "single":
        return side
    scales = ", ".join(f"{scale:g}" for scale in config.scales)
    over = {"voc": "maximum of logits", "coco": "sum of logits", "mean": "mean of probabilities"}[config.style]
    text = f"{side}, scales {scales} and flips, {over}"
    if config.style == "mean" and config.class_threshold is not None:
        text += f", classes above {config.class_threshold:g}"
    if not needs_crf(protocol):
        return text
    crf = config.crf
    return (
        f"{text}; CRF: {crf.iterations} steps, Gaussian {crf.gaussian_sxy:g}/{crf.gaussian_compat:g}, bilateral "
        f"{crf.bilateral_sxy:g}/{crf.bilateral_srgb:g}/{crf.bilateral_compat:g}"
    )


def rows(lines: Sequence[Line], table: PaperTable) -> list[list[str]]:
    """Header and lines for people, in percent; other methods' numbers, marked as printed, are above."""
    shared = [f"by {table.common}'s protocol"] if table.common else []
    head = ["configuration", "what", "where", "published", "ours, by seed", "mean ± std", "difference"]
    text = [[*head, *shared, "verdict", *(["protocol"] if shared else [])]]
    for method in table.printed:
        for split, number in method.values.items():
            cells = [method.method, split, "printed", f"{100 * number:.1f}", "", "", "", *("" for _ in shared)]
            text.append([*cells, "not measured: as printed", *("" for _ in shared)])
    for line in lines:
        target, value = line.target, line.target.value
        alike = value is not None and not line.verdict.startswith("not comparable")
        change = f"{100 * (line.mean - value):+.1f}" if value is not None and line.seeds and alike else ""
        other = [aspect.name for aspect in line.aspects if not aspect.same]
        told = f"{line.verdict}; {', '.join(other)} differ" if other and alike else line.verdict
        published = "" if value is None else f"{100 * value:.1f}"
        cells = [named(target.point, table), target.measures, target.where, published]
        cells += [", ".join(f"{s}: {100 * v:.1f}" for s, v in line.seeds.items()), summed(line.seeds), change]
        cells += [summed(line.common or {})] if shared else []
        text.append([*cells, told, *([line.protocol] if shared else [])])
    return text


def short_rows(lines: Sequence[Line], table: PaperTable) -> list[list[str]]:
    """`rows` for a terminal: of what is trained here, without the place in the paper, verdicts without reasons."""
    head, *made = rows(lines, table.model_copy(update={"printed": ()}))
    place = head.index("verdict")
    return [[*row[:2], *row[3:place], row[place].split(":")[0]] for row in (head, *made)]


def compared(lines: Sequence[Line], table: PaperTable) -> list[list[str]]:
    """Rows against the common one by its protocol, seed by seed, with 95 % intervals; only a header without others."""
    comparable = [line for line in lines if line.common and line.target.split == lines[0].target.split]
    own = next((line.common for line in comparable if line.target.point == table.common), None)
    head = ["configuration", "mean ± std", f"less {table.common}", "seeds", "p (Holm)", ""]
    if own is None or not table.common:
        return [head]
    tests = {line.target.point: paired(line.common or {}, own) for line in comparable if line.common is not own}
    adjusted = dict(zip(tests, holm([t.p if t else math.nan for t in tests.values()]), strict=True))
    text = [head]
    for line in comparable:
        point = line.target.point
        cells = [named(point, table), summed(line.common or {})]
        if line.common is own:
            text.append([*cells, "", str(len(own)), "", "reference"])
            continue
        test, p = tests[point], adjusted[point]
        change = "-" if test is None else f"{100 * test.mean:+.1f}"
        if test is not None and not math.isnan(test.low):
            change += f" [{100 * test.low:+.1f}, {100 * test.high:+.1f}]"
        told = "" if math.isnan(p) else f"{p:.3f}"
        text.append([*cells, change, str(test.n if test else 0), told, verdict(test, p)])
    return text


def named(point: str, table: PaperTable) -> str:
    """A row with its network."""
    network = table.row(point).network
    return f"{point} ({network})" if network else point


def summed(seeds: Mapping[int, float]) -> str:
    """Mean and standard deviation in percent; empty without any."""
    if not seeds:
        return ""
    spread = f" ± {100 * stdev(seeds.values()):.1f}" if len(seeds) > 1 else ""
    return f"{100 * mean(seeds.values()):.1f}{spread}"
