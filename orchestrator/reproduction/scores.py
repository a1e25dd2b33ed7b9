"""The paper's tables as runnable experiments: sweeps with targets, run by the same machinery as any sweep."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from mcc_core import checkpoint as checkpoints
from mcc_core.data.index_file import INDEX, read_index
from mcc_core.errors import DataError, UsageError
from mcc_core.evaluation.metrics import Metric
from mcc_core.evaluation.protocols import PROTOCOLS
from mcc_core.experiment_files import resolve
from mcc_core.files import file_digest
from mcc_core.import_weights import cached_backbone, import_weights
from mcc_core.networks.backbones import build_vit
from mcc_core.pseudo_labels.crf import require_crf
from mcc_core.validation import validate
from orchestrator.evaluation.request import evaluation_request
from orchestrator.evaluation.run import ExecutionOptions, evaluate_checkpoint
from orchestrator.evaluation.voc_server import write_submission
from orchestrator.planning.plan import Plan, plan_sweep
from orchestrator.records import layout
from orchestrator.records.checkpoints import saved_checkpoints
from orchestrator.records.events import history, trial_state
from orchestrator.records.lookup import fetch
from orchestrator.records.status import TrialStatus
from orchestrator.settings import Settings
from orchestrator.spec.paper_table import PaperTable, Target, differences
from orchestrator.spec.sweep_file import SweepFile
from orchestrator.storage.store import Storage

TOLERANCE = 0.005  # half a point of mIoU: what the paper's 69.8 and its published checkpoint's 70.3 differ by

OnImage = Callable[[str, int, int], None]


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

    @property
    def mean(self) -> float:
        return mean(self.seeds.values()) if self.seeds else math.nan

    @property
    def spread(self) -> float:
        return stdev(self.seeds.values()) if len(self.seeds) > 1 else math.nan


def table_sweep(
    table: PaperTable, scale: str, data: Path | None, seeds: tuple[int, ...], changes: Mapping[str, Any] | None = None
) -> SweepFile:
    """The table's sweep at a scale: `paper`, or `tiny` on the generated shapes, in minutes."""
    fields = dict(table.sweep) | {"seeds": seeds}
    if scale == "tiny":
        fields |= {"name": f"{fields['name']}-tiny", "base": "tiny", **table.tiny}
    else:
        fields["set"] = dict(fields.get("set", {})) | {"data.root": str(data)}
    if changes:
        fields["set"] = dict(fields.get("set", {})) | dict(changes)
    return validate(SweepFile, fields, str(fields["name"]))


def missing(table: PaperTable, data: Path, changes: Mapping[str, Any], *, train: bool) -> list[str]:
    """What the paper's scale needs and is not there: a line each, with where it was looked for and what gets it."""
    base = str(table.sweep["base"])
    lines = []
    if not (data / INDEX).is_file():
        sources = "VOCtrainval_11-May-2012.tar benchmark.tgz" if base == "voc" else "FOLDER_OF_COCO2014"
        lines.append(
            f"data: looked for {data / INDEX}; from the publisher's files: mcc data prepare {base} {sources} "
            f"--out {data}; prepared elsewhere: --data FOLDER"
        )
    if train:
        model = resolve(base, {k: v for k, v in changes.items() if k.startswith("model.")}).model
        if lines and model.weights == "timm":  # no download for what cannot start anyway
            if cached_backbone(model.backbone) is None:
                lines.append(
                    f"ImageNet weights: {model.backbone} is not in timm's cache: fetched at the start where there is a "
                    "network, else --set model.weights=FILE (.safetensors or .pth)"
                )
        else:
            try:
                build_vit(model)
            except (UsageError, DataError) as error:
                lines.append(f"ImageNet weights: {error}")
    try:
        require_crf()
    except UsageError as error:
        lines.append(f"CRF: {error}")
    return lines


def plan_table(
    table: PaperTable,
    name: str,
    scale: str,
    data: Path,
    seeds: tuple[int, ...],
    changes: Mapping[str, Any],
    settings: Settings,
) -> Plan:
    """Plan a table's training. Raises UsageError that lists everything that is missing."""
    if scale == "paper" and (lacking := missing(table, data, changes, train=True)):
        raise UsageError("\n".join([f"{name} needs what is not here:", *lacking]))
    sweep = table_sweep(table, scale, data, seeds)
    return plan_sweep(sweep, f"{name}.yaml", overrides=changes, settings=settings)


def score_plan(
    table: PaperTable, plan: Plan, settings: Settings, out: Path, processes: int, on_image: OnImage
) -> tuple[Line, ...]:
    """Score the last checkpoint of every finished trial by each target's protocol."""
    storage = Storage(settings.storage)
    found: dict[tuple[str, int], Path] = {}
    for trial in plan.trials:
        saved = saved_checkpoints(storage, trial.identity)
        if trial_state(storage, trial.identity).status == TrialStatus.FINISHED and saved:
            found[trial.point, trial.seed] = fetch(storage, settings, trial.identity, saved[-1])
    origin = _origin(storage, plan.trials[0].identity)
    return _lines(table, found, origin, None, settings, out, processes, on_image)


def score_weights(
    table: PaperTable, file: Path, data: Path, settings: Settings, out: Path, processes: int, on_image: OnImage
) -> tuple[Line, ...]:
    """Score a published checkpoint, or one of ours, as the table's last configuration. Raises UsageError."""
    if table.figure is not None:
        raise UsageError(f"--weights {file}: {table.description}: a figure over many trainings; it takes no checkpoint")
    if lacking := missing(table, data, {}, train=False):
        raise UsageError("\n".join([f"{table.description}: needs what is not here:", *lacking]))
    origin = Origin("a checkpoint of ours", "scored on this machine; where it was trained is not known")
    try:
        checkpoints.load(file)
    except checkpoints.ForeignFile:
        origin = Origin("trained by the published code, scored by ours", "trained elsewhere, scored on this machine")
        imported = import_weights(file, str(table.sweep["base"]))
        if imported.kind.startswith("backbone"):
            raise UsageError(f"{file}: a backbone alone; --weights takes a trained network") from None
        file = settings.home / "reproduce" / f"{file_digest(file)[:16]}.pt"
        checkpoints.save(imported.checkpoint, file)
    point = table.targets[-1].point
    networks = {(point, checkpoints.load(file).seed): file}
    return _lines(table, networks, origin, data, settings, out, processes, on_image)


def _lines(
    table: PaperTable,
    networks: Mapping[tuple[str, int], Path],
    origin: Origin,
    data: Path | None,
    settings: Settings,
    out: Path,
    processes: int,
    on_image: OnImage,
) -> tuple[Line, ...]:
    scores: dict[tuple[str, int], dict[str, float]] = {}
    for (point, seed), file in networks.items():
        scores[point, seed] = {}
        own, folder = [t for t in table.targets if t.point == point], out / f"{point}-{seed}-{file_digest(file)[:12]}"
        for split in dict.fromkeys(t.split for t in own if not t.server):
            wanted = list(dict.fromkeys(t.protocol for t in own if t.split == split))
            request = evaluation_request(file, wanted, split, {}, data=str(data) if data else None)
            note = partial(on_image, f"{point} on {split}")
            result = evaluate_checkpoint(request, folder / split, settings, ExecutionOptions(processes=processes), note)
            scores[point, seed] |= {m.key: m.value for found in result.metrics.values() for m in found}
        for target in (t for t in own if t.server):
            archive = out / f"{point}-{seed}-{target.split}.tar.gz"
            _submit(target, file, data, settings, folder / target.split, archive, processes, on_image)
    strange = {point: differences(table, point, file, data) for (point, _), file in networks.items()}
    judged = []
    for target in table.targets:
        reasons = strange.get(target.point, {})
        line = _line(target, networks, scores, ", ".join(reasons.values()))
        judged.append(replace(line, aspects=_aspects(line, reasons, origin)) if line.seeds else line)
    return tuple(judged)


def _aspects(line: Line, reasons: Mapping[str, str], origin: Origin) -> tuple[Aspect, ...]:
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
        Aspect("protocol", True, line.target.measures),
    )


def _origin(storage: Storage, identity: str) -> Origin:
    """What a trial left on record of its code and machine."""
    recorded = json.loads(storage.read(layout.environment(identity)))
    info: Mapping[str, Any] = next((e["info"] for e in history(storage, identity) if e["kind"] == "start"), {})
    git = recorded.get("git") or {}
    commit = f", commit {git['commit'][:12]}" if git else ""
    commit += " with uncommitted changes" if git.get("diff") else ""
    device = info.get("gpu", info.get("device", "an unknown device"))
    torch = recorded.get("packages", {}).get("torch", "of an unknown version")
    return Origin(f"ours: mcc {recorded['mcc']}{commit}", f"{info.get('world_size', 1)} x {device}, PyTorch {torch}")


def _line(
    target: Target,
    networks: Mapping[tuple[str, int], Path],
    scores: Mapping[tuple[str, int], Mapping[str, float]],
    strange: str,
) -> Line:
    stage, how = PROTOCOLS[target.protocol]
    key = Metric(target.split, stage, how, "miou", 0.0).key
    seeds = {
        seed: scores[point, seed][key]
        for point, seed in networks
        if point == target.point and key in scores[point, seed]
    }
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


def _submit(
    target: Target,
    file: Path,
    data: Path | None,
    settings: Settings,
    folder: Path,
    archive: Path,
    processes: int,
    on_image: OnImage,
) -> None:
    """The server's file for a target that only it can score, where the images are there."""
    root = data or checkpoints.load(file).experiment.data.root
    if root is None or not (root / INDEX).is_file() or target.split not in read_index(root).splits:
        return
    request = evaluation_request(file, [target.protocol], target.split, {}, data=str(root), keep_masks=True, blind=True)
    note = partial(on_image, f"{target.point} on {target.split}")
    result = evaluate_checkpoint(request, folder, settings, ExecutionOptions(processes=processes), note)
    write_submission(result.masks(target.protocol), result.images, archive)


def short_rows(lines: Sequence[Line], table: PaperTable) -> list[list[str]]:
    """`rows` for a terminal: without the place in the paper, verdicts without their reasons."""
    return [[*row[:2], *row[3:-1], row[-1].split(":")[0]] for row in rows(lines, table)]


def rows(lines: Sequence[Line], table: PaperTable) -> list[list[str]]:
    """Header and lines for people, in percent; other methods' numbers are marked as printed."""
    text = [["configuration", "what", "where", "published", "ours, by seed", "mean ± std", "difference", "verdict"]]
    for line in lines:
        seeds = ", ".join(f"{seed}: {100 * value:.1f}" for seed, value in line.seeds.items())
        spread = "" if math.isnan(line.spread) else f" ± {100 * line.spread:.1f}"
        ours = f"{100 * line.mean:.1f}{spread}" if line.seeds else ""
        value = line.target.value
        alike = value is not None and not line.verdict.startswith("not comparable")
        change = f"{100 * (line.mean - (value or 0)):+.1f}" if line.seeds and alike else ""
        other = [aspect.name for aspect in line.aspects if not aspect.same]
        told = f"{line.verdict}; {', '.join(other)} differ" if other and alike else line.verdict
        published = "" if value is None else f"{100 * value:.1f}"
        text.append([line.target.point, line.target.measures, line.target.where, published, seeds, ours, change, told])
    for method in table.printed:
        for split, value in method.values.items():
            text.append([method.method, split, "printed", f"{100 * value:.1f}", "", "", "", "not measured: as printed"])
    return text
