"""Sweeps over evaluation parameters of a finished trial: nothing is trained, and the network runs once per image.

A sweep file that has `of:` is one:

    name: crf
    of: mask_ablation/no-contrast   # a trial of a sweep, or a checkpoint file
    protocol: ms_crf
    parameters: {crf.bilateral_srgb: [3, 5, 10], crf.bilateral_compat: [2, 4, 8]}

Its points are trials like any other: in storage, in MLflow, in `mcc sweep list | status | best`.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mcc_core import checkpoint as checkpoints
from mcc_core.checkpoint import Checkpoint
from mcc_core.errors import UsageError
from mcc_core.evaluation.metrics import Metric
from mcc_core.evaluation.protocols import PROTOCOLS
from mcc_core.evaluation.scoring import Setting, protocol_settings
from mcc_core.experiment_files import merge
from mcc_core.files import file_digest, json_digest
from mcc_core.structured_files import read_yaml
from mcc_core.validation import validate
from orchestrator.analysis.figures import summary
from orchestrator.environment import git_state
from orchestrator.evaluation.run import Evaluation, ExecutionOptions, Request, evaluate_checkpoint
from orchestrator.records import layout
from orchestrator.records import sweeps as catalog
from orchestrator.records.events import trial_state, write_attempt
from orchestrator.records.leases import refuse_deleted
from orchestrator.records.plans import PlanRecord
from orchestrator.records.results import Result
from orchestrator.records.status import TrialStatus
from orchestrator.settings import Settings
from orchestrator.spec.posthoc_file import PosthocFile
from orchestrator.storage.store import Storage
from orchestrator.tracking.background import BackgroundSync
from orchestrator.workflows.networks import find_network

_MOST = 1000  # points


@dataclass(frozen=True)
class _Point:
    identity: str
    setting: Setting
    varied: dict[str, str]


@dataclass(frozen=True)
class Posthoc:
    """A checked sweep."""

    sweep: str
    file: PosthocFile
    source: str
    checkpoint: Path
    saved: Checkpoint
    points: tuple[_Point, ...]
    metric: str  # the whole key

    def document(self) -> PlanRecord:
        """The JSON content of `sweeps/<id>/plan.json`."""
        experiment = self.saved.experiment.model_dump(mode="json")
        return {
            "sweep": self.sweep,
            "name": self.file.name,
            "source": self.source,
            "created": round(time.time(), 3),
            "command": list(sys.argv),
            "commit": (git_state() or {}).get("commit"),
            "file": self.file.model_dump(mode="json") | {"metric": self.metric},
            "concurrent": 1,
            "estimate": None,
            "trials": [
                {
                    "identity": point.identity,
                    "name": point.setting.name,
                    "point": point.setting.name,
                    "varied": point.varied,
                    "seed": self.saved.seed,
                    "fingerprint": "",
                    "experiment": experiment,
                }
                for point in self.points
            ],
        }


def is_posthoc(file: Path) -> bool:
    """Whether a sweep file is over evaluation parameters of something trained. Raises UsageError."""
    return "of" in read_yaml(file)


def plan_posthoc(source: Path, settings: Settings) -> Posthoc:
    """Check a sweep file of this kind. Raises UsageError, one line per mistake."""
    file = validate(PosthocFile, read_yaml(source), str(source))
    checkpoint = find_network(file.of, settings, f"{source}: of")
    saved = checkpoints.load(checkpoint)
    measured = ["miou", "pixel_accuracy", *(f"iou/{name}" for name in ("background", *saved.classes))]
    measured += ["coverage"] if file.protocol == "refined" else []
    if file.metric not in measured:
        raise UsageError(f"{source}: metric: {file.metric!r}: expected one of {', '.join(measured)}")
    for key, choices in file.parameters.items():
        if twice := [value for value in choices if choices.count(value) > 1]:
            raise UsageError(f"{source}: parameters.{key}: {twice[0]} is there twice")
        if key in file.set:
            raise UsageError(f"{source}: {key}: in set and in parameters; take one out")
    for axis in (file.heatmap.x, file.heatmap.y) if file.heatmap else ():
        if axis not in file.parameters:
            raise UsageError(f"{source}: heatmap: {axis!r} is not among parameters ({', '.join(file.parameters)})")
    combinations = list(itertools.product(*file.parameters.values()))
    if len(combinations) > _MOST:
        raise UsageError(f"{source}: parameters: {len(combinations)} points; at most {_MOST} are scored together")
    digest, points = file_digest(checkpoint), {}
    for values in combinations:
        varied = dict(zip(file.parameters, values, strict=True))
        fields = merge({}, file.set | varied, str(source))
        (protocol_setting,) = protocol_settings(
            saved.experiment, len(saved.classes), [file.protocol], fields, str(source)
        )
        name = ",".join(f"{key.rsplit('.', 1)[-1]}={_text(value)}" for key, value in varied.items())
        setting = Setting(name, protocol_setting.protocol, protocol_setting.config)
        content = [digest, saved.experiment.data.model_dump(mode="json"), file.split, file.limit]
        content += [file.protocol, protocol_setting.config.model_dump(mode="json")]
        identity = json_digest(content, 16)
        points[identity] = _Point(identity, setting, {key: _text(value) for key, value in varied.items()})
    stage, how = PROTOCOLS[file.protocol]
    sweep = f"{file.name}-{json_digest(sorted(points), 8)}"
    metric = Metric(file.split, stage, how, file.metric, 0.0).key
    return Posthoc(sweep, file, str(source), checkpoint, saved, tuple(points.values()), metric)


def run_posthoc(
    posthoc: Posthoc,
    settings: Settings,
    *,
    processes: int = 0,
    force: bool = False,
    on_image: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[list[Result], str]:
    """Score the points that were not scored before; returns all results and what kept MLflow from having them.

    Raises UsageError or DataError as `evaluate_checkpoint` does.
    """
    storage = Storage(settings.storage)
    storage.check()
    document = posthoc.document()
    storage.write(layout.plan(posthoc.sweep), json.dumps(document, indent=1).encode())
    refuse_deleted(storage, (p.identity for p in posthoc.points))
    todo = [p for p in posthoc.points if force or trial_state(storage, p.identity).status != TrialStatus.FINISHED]
    with BackgroundSync(settings, document) as feeder:
        if todo:
            _score(posthoc, todo, settings, storage, processes, on_image)
        results = catalog.results(storage, document)
        files = summary(document, results, {})
        for name, content in files.items():
            storage.write(f"{layout.sweep(posthoc.sweep)}/{name}", content)
        problem = "" if feeder.finish(files=files) else str(feeder.problem)
    return results, problem


def _score(
    posthoc: Posthoc,
    todo: list[_Point],
    settings: Settings,
    storage: Storage,
    processes: int,
    on_image: Callable[[int, int], None],
) -> None:
    file, began = posthoc.file, time.time()
    request = Request(
        posthoc.checkpoint,
        posthoc.saved,
        posthoc.saved.experiment.data,
        file.split,
        tuple(point.setting for point in todo),
        file.limit,
    )
    key = hashlib.sha256("".join(point.identity for point in todo).encode()).hexdigest()[:16]
    means = ExecutionOptions(processes=processes, cache_bytes=int(file.cache_gb * 1e9))
    evaluation = evaluate_checkpoint(request, settings.home / "posthoc" / key, settings, means, on_image)
    for point in todo:
        values = {metric.key: metric.value for metric in evaluation.metrics[point.setting.name]}
        write_attempt(storage, point.identity, posthoc.saved.iteration, values, began, _info(posthoc, evaluation))


def _info(posthoc: Posthoc, evaluation: Evaluation) -> dict[str, Any]:
    return {"of": posthoc.file.of, "checkpoint": evaluation.header["checkpoint"], "images": len(evaluation.images)}


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
