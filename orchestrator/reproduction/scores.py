"""The networks of a table, trained here or given, scored by each target's protocol and by the common one."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from mcc_core import checkpoint as checkpoints
from mcc_core.config import EvaluationConfig
from mcc_core.data.index_file import INDEX, read_index
from mcc_core.errors import UsageError
from mcc_core.evaluation.protocols import ProtocolName
from mcc_core.evaluation.scoring import Setting
from mcc_core.files import file_digest
from mcc_core.import_weights import import_weights
from mcc_core.methods.registry import method_of
from orchestrator.evaluation.request import evaluation_request
from orchestrator.evaluation.run import ExecutionOptions, evaluate_checkpoint
from orchestrator.evaluation.voc_server import write_submission
from orchestrator.planning.plan import Plan
from orchestrator.records import layout
from orchestrator.records.checkpoints import saved_checkpoints
from orchestrator.records.events import history, trial_state
from orchestrator.records.lookup import fetch
from orchestrator.records.status import TrialStatus
from orchestrator.reproduction.lines import Line, Networks, Origin, aspects, judged, protocol_text, seeds_of
from orchestrator.reproduction.runs import missing
from orchestrator.reproduction.stages import row_of
from orchestrator.settings import Settings
from orchestrator.spec.paper_table import PaperTable, Target, differences, table_experiment
from orchestrator.storage.store import Storage

OnImage = Callable[[str, int, int], None]
# What the common protocol takes of another method's own: the rest is of CAMs and pseudo-labels.
_CLASSES = ("class_threshold", "class_top", "background_power")
_SEGMENTATION = ("style", "scales", "long_side", "flips", "crop", "crf", *_CLASSES)


@dataclass(frozen=True)
class Found:
    """Networks of a table's rows."""

    networks: Networks
    origins: Mapping[str, Origin]  # by row
    data: Path | None  # None: what each was trained on
    scale: str = "paper"


def trained(plan: Plan, scale: str, settings: Settings, table: PaperTable) -> Found:
    """The last checkpoint of every finished trial whose network is a row's."""
    storage = Storage(settings.storage)
    networks: dict[tuple[str, int], Path] = {}
    origins: dict[str, Origin] = {}
    for trial in plan.trials:
        if (row := row_of(table, trial)) is None:
            continue
        saved = saved_checkpoints(storage, trial.identity)
        if trial_state(storage, trial.identity).status == TrialStatus.FINISHED and saved:
            networks[row, trial.seed] = fetch(storage, settings, trial.identity, saved[-1])
            origins[row] = _origin(storage, trial.identity)
    return Found(networks, origins, None, scale)


def given(table: PaperTable, files: Sequence[str], data: Path, settings: Settings) -> Found:
    """Published checkpoints, or ones of ours, as `FILE` or `ROW=FILE`, each as the row of its method.

    Raises UsageError, also for what else is missing.
    """
    if not table.points:
        raise UsageError(
            f"--weights {files[0]}: {table.description}: a figure over many trainings; it takes no checkpoint"
        )
    if lacking := missing(table, data, {}, train=False):
        raise UsageError("\n".join([f"{table.description}: needs what is not here:", *lacking]))
    networks: dict[tuple[str, int], Path] = {}
    origins: dict[str, Origin] = {}
    for text in files:
        row, file = _row_and_file(table, text)
        base = None
        if row is not None and row not in table.pipelines:
            base = next(p.get("base") for p in table.sweep["points"] if p["name"] == row) or str(table.sweep["base"])
        origin = Origin("a checkpoint of ours", "scored on this machine; where it was trained is not known")
        try:
            checkpoints.load(file)
        except checkpoints.ForeignFile:
            origin = Origin("trained by published code, scored by ours", "trained elsewhere, scored on this machine")
            imported = import_weights(file, base)
            if imported.kind.startswith("backbone"):
                raise UsageError(f"{file}: a backbone alone; --weights takes a trained network") from None
            file = settings.home / "reproduce" / f"{file_digest(file)[:16]}{f'-{row}' if row else ''}.pt"
            checkpoints.save(imported.checkpoint, file)
        saved = checkpoints.load(file)
        row = row or _row_of(table, saved.experiment.method, file)
        if (row, saved.seed) in networks:
            raise UsageError(
                f"--weights {text}: {row}, seed {saved.seed}, was given before: {networks[row, saved.seed]}"
            )
        networks[row, saved.seed], origins[row] = file, origin
    return Found(networks, origins, data)


def _row_and_file(table: PaperTable, text: str) -> tuple[str | None, Path]:
    name, equals, rest = text.partition("=")
    known = {point.lower(): point for point in table.points}
    if not equals or Path(text).exists():
        return None, Path(text)
    if name.lower() not in known:
        raise UsageError(
            f"--weights {text}: no row {name}; expected FILE, or ROW=FILE with one of {', '.join(table.points)}"
        )
    return known[name.lower()], Path(rest)


def _row_of(table: PaperTable, method: str, file: Path) -> str:
    """The last row of a method: of an ablation that of the whole method."""
    own = [point for point in table.points if table_experiment(table, point).method == method]
    if not own:
        raise UsageError(f"--weights {file}: is of the method {method}, of which {table.description} has no row")
    if several := [point for point in own if point in table.pipelines]:
        raise UsageError(
            f"--weights {file}: is of the method {method}, the last stage of {', '.join(several)}: give ROW={file}"
        )
    return own[-1]


def score(
    table: PaperTable, networks: Found, settings: Settings, out: Path, processes: int, on_image: OnImage
) -> tuple[Line, ...]:
    """Score every network by its targets' protocols, with its authors' parameters and with the common ones."""
    own: dict[tuple[str, int], dict[str, float]] = {}
    shared: dict[tuple[str, int], dict[str, float]] = {}
    configs: dict[str, EvaluationConfig] = {}
    for (point, seed), file in networks.networks.items():
        saved, key = checkpoints.load(file), (point, seed)
        configs[point] = config = method_of(saved.experiment).evaluation(saved.experiment, len(saved.classes))
        common = config.model_copy(update=_common(table, networks.scale, len(saved.classes)))
        targets = [t for t in table.targets if t.point == point]
        folder = out / f"{point}-{seed}-{file_digest(file)[:12]}"
        own[key], shared[key] = {}, {}
        for split in dict.fromkeys(t.split for t in targets if not t.server):
            wanted = list(dict.fromkeys(t.protocol for t in targets if t.split == split))
            note = partial(on_image, f"{point} on {split}")
            own[key] |= _scores(file, wanted, split, config, networks, folder / split, settings, processes, note)
            if not table.common:
                continue
            alike = all(getattr(common, name) == getattr(config, name) for name in _SEGMENTATION)
            note = partial(on_image, f"{point} on {split}, by the common protocol")
            shared[key] |= (
                own[key]
                if alike
                else _scores(
                    file, wanted, split, common, networks, folder / f"{split}-common", settings, processes, note
                )
            )
        for target in (t for t in targets if t.server):
            archive = out / f"{point}-{seed}-{target.split}.tar.gz"
            _submit(target, file, networks.data, settings, folder / target.split, archive, processes, on_image)
    strange = {point: differences(table, point, file, networks.data) for (point, _), file in networks.networks.items()}
    made = []
    for target in table.targets:
        reasons = strange.get(target.point, {})
        line = judged(target, networks.networks, own, ", ".join(reasons.values()))
        config_ = configs.get(target.point)
        line = replace(
            line,
            protocol=protocol_text(config_, target.protocol) if config_ else "",
            common=seeds_of(target, networks.networks, shared) if table.common and not target.server else None,
        )
        if line.seeds:
            line = replace(line, aspects=aspects(line, reasons, networks.origins[target.point]))
        made.append(line)
    return tuple(made)


def told(table: PaperTable, networks: Found, lines: Sequence[Line]) -> list[str]:
    """What stands below a table on a terminal: protocols, and reasons of verdicts."""
    own = {line.target.point: line.protocol for line in lines if line.protocol}
    text = [f"{point}: {protocol}" for point, protocol in own.items()] if table.common else []
    text += [f"{table.common}'s protocol, for all: {common_text(table, networks)}"] if text else []
    return [*text, *dict.fromkeys(f"{_row(line)}{line.verdict}" for line in lines if ":" in line.verdict)]


def _row(line: Line) -> str:
    return f"{line.target.point}: " if line.seeds else ""


def common_text(table: PaperTable, networks: Found) -> str:
    """The common protocol in words; empty where a table has none."""
    if not table.common:
        return ""
    classes = max((len(checkpoints.load(file).classes) for file in networks.networks.values()), default=0)
    experiment = table_experiment(table, table.common, networks.scale)
    config = method_of(experiment).evaluation(experiment, classes)
    return protocol_text(config, table.targets[0].protocol)


def _common(table: PaperTable, scale: str, classes: int) -> dict[str, Any]:
    """The fields that the common protocol decides."""
    if not table.common:
        return {}
    experiment = table_experiment(table, table.common, scale)
    config = method_of(experiment).evaluation(experiment, classes)
    return {name: getattr(config, name) for name in _SEGMENTATION}


def _scores(
    file: Path,
    protocols: Sequence[ProtocolName],
    split: str,
    config: EvaluationConfig,
    networks: Found,
    folder: Path,
    settings: Settings,
    processes: int,
    note: Callable[[int, int], None],
) -> dict[str, float]:
    request = evaluation_request(file, protocols, split, {}, data=str(networks.data) if networks.data else None)
    request = replace(request, settings=tuple(Setting(name, name, config) for name in protocols))
    result = evaluate_checkpoint(request, folder, settings, ExecutionOptions(processes=processes), note)
    return {m.key: m.value for some in result.metrics.values() for m in some}


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
