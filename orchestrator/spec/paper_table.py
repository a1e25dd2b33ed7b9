"""Tables of the paper as they are shipped, and what keeps a network from being held against one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import Field

from mcc_core import checkpoint as checkpoints
from mcc_core.config import Experiment, Strict
from mcc_core.data.index_file import INDEX, read_index
from mcc_core.data.prepare_coco import OFFICIAL as COCO_COUNTS
from mcc_core.data.prepare_voc import OFFICIAL as VOC_COUNTS
from mcc_core.errors import UsageError
from mcc_core.evaluation.protocols import PROTOCOLS, ProtocolName
from mcc_core.experiment_files import resolve
from mcc_core.structured_files import read_yaml
from mcc_core.validation import flatten, validate

FOLDER = Path(__file__).parents[1] / "reproduction" / "tables"
# What changes neither what is learned nor what is scored; the batch is compared as a whole, data by its counts.
_FREE = {
    "description",
    *(f"data.{name}" for name in ("name", "root", "classes", "on_corrupt")),
    "model.weights",
    *(f"compute.{name}" for name in ("compile", "recompute", "channels_last")),
    *(f"train.{name}" for name in ("workers", "batch_size", "accumulate", "loader_workers", "log_every", "panels")),
    *(f"train.{name}" for name in ("eval_every", "eval_images", "eval_batch", "eval_train_images")),
}
_SHOWN = 3  # differing fields named in a verdict


class Target(Strict):
    """A number that the paper prints, or one that it only draws (without a value)."""

    point: str
    split: str
    protocol: ProtocolName
    value: float | None = Field(None, ge=0, le=1)
    where: str
    server: bool = Field(False, description="only the benchmark's own server can score it")

    @property
    def measures(self) -> str:
        stage, how = PROTOCOLS[self.protocol]
        return f"{stage}/{how} on {self.split}"


class Curve(Strict):
    """Scores of the published training log, evenly spaced."""

    metric: str
    values: tuple[float, ...]


class Printed(Strict):
    """Another method's line of the table. Never measured here."""

    method: str
    values: Mapping[str, float]


class Figure(Strict):
    """What a figure shows of each of its sweep's configurations; its values are not printed."""

    split: str
    protocols: tuple[ProtocolName, ...]
    where: str


class PaperTable(Strict):
    """A table or a figure of the paper."""

    description: str
    sweep: dict[str, Any]
    tiny: dict[str, Any] = Field({}, description="fields of the sweep in its place at tiny scale")
    targets: tuple[Target, ...] = ()
    figure: Figure | None = None
    curves: tuple[Curve, ...] = ()
    printed: tuple[Printed, ...] = ()


def table_names() -> list[str]:
    """Names that `mcc reproduce` takes."""
    return sorted(file.stem for file in FOLDER.glob("*.yaml"))


def load_table(name: str) -> PaperTable:
    """A shipped table. Raises UsageError."""
    if name not in table_names():
        raise UsageError(f"{name}: no such table; {', '.join(table_names())}")
    return validate(PaperTable, read_yaml(FOLDER / f"{name}.yaml"), f"{name}.yaml")


def with_points(table: PaperTable, points: Iterable[str]) -> PaperTable:
    """A figure's table with targets for its sweep's points; others as they are."""
    if (figure := table.figure) is None:
        return table
    pairs = [(point, protocol) for point in dict.fromkeys(points) for protocol in figure.protocols]
    targets = tuple(Target(point=p, split=figure.split, protocol=name, where=figure.where) for p, name in pairs)
    return table.model_copy(update={"targets": targets})


def differences(table: PaperTable, point: str, file: Path, data: Path | None) -> dict[str, str]:
    """What keeps a network's scores from being held against the paper's: of `data` and of `configuration`.

    Every field of its experiment is compared with the table's, but for those that change no result.
    """
    saved = checkpoints.load(file)
    experiment, published = saved.experiment, table_experiment(table, point)
    varied = set(table.sweep.get("parameters", ()))  # of a figure: each configuration is meant to differ in them
    strange = _data_differences(experiment, data, COCO_COUNTS if len(saved.classes) == 80 else VOC_COUNTS)
    reasons = []
    if experiment.model.weights == "random":
        reasons.append("model.weights=random (published: pretrained on ImageNet)")
    own, theirs = flatten(experiment), flatten(published)
    fields = [key for key in own | theirs if own.get(key) != theirs.get(key)]
    changed = [key for key in fields if key not in _FREE | varied and not key.startswith("data.shapes_")]
    texts = [f"{key}={own.get(key)} (published: {theirs.get(key)})" for key in changed]
    if experiment.train.global_batch != published.train.global_batch:
        texts.insert(0, f"{experiment.train.global_batch} images a step (published: {published.train.global_batch})")
    more = [f"and {len(texts) - _SHOWN} more fields"] if len(texts) > _SHOWN else []
    found = {"data": ", ".join(strange), "configuration": ", ".join([*reasons, *texts[:_SHOWN], *more])}
    return {name: text for name, text in found.items() if text}


def table_experiment(table: PaperTable, point: str) -> Experiment:
    """The published experiment of one of a table's configurations."""
    own: Mapping[str, Any] = next((p.get("set", {}) for p in table.sweep.get("points", ()) if p["name"] == point), {})
    return resolve(str(table.sweep["base"]), {**table.sweep.get("set", {}), **own})


def _data_differences(experiment: Experiment, data: Path | None, official: Mapping[str, int]) -> list[str]:
    root = data or experiment.data.root
    if data is None and experiment.data.name == "shapes":
        return ["data (generated shapes)"]
    if root is None or not (root / INDEX).is_file():
        return [f"data ({root}: without an index, so that its images are not counted)"]
    for split, names in read_index(root).splits.items():
        if len(names) != official.get(split, len(names)):
            return [f"data ({len(names)} images in {split}, officially {official[split]})"]
    return []
