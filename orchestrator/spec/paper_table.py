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
from orchestrator.spec.pipeline import OnOtherData, Pipeline, load_pipeline, stage_name
from orchestrator.spec.sweep_file import Slug

FOLDER = Path(__file__).parents[1] / "reproduction" / "tables"
# What changes neither what is learned nor what is scored; the batch is compared as a whole, data by its counts.
_FREE = {
    "description",
    *(f"data.{name}" for name in ("name", "root", "classes", "on_corrupt")),
    "model.weights",
    "labels.source",  # of a row of several stages, which says in a note what they are
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
    """Scores of the published training log of a row, evenly spaced."""

    point: str
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


class Sheet(Strict):
    """A figure of label maps: images in rows, the sweep's configurations in columns, the ground truth last."""

    split: str
    protocol: ProtocolName
    images: int = Field(ge=1, description="so many, those with two classes or more first")


class PublishedRun(Strict):
    """What a published training log says of its run."""

    hours: float = Field(gt=0)
    gpus: int = Field(ge=1)
    device: str
    images: int = Field(ge=1, description="that it trained on, each as often as it was seen")


class Work(Strict):
    """What a step of training takes."""

    forwards: float | None = Field(
        None, gt=0, description="of its encoder for an image and step, backward included, as benchmarks/step.py counts"
    )
    gflop: float | None = Field(None, gt=0, description="of one of them")


class Row(Work):
    """What is known of one of the sweep's configurations beside its scores."""

    network: str = Field("", description="and what it was pretrained on, as a table prints it")
    pipeline: Slug | None = Field(None, description="a row of several stages: the file in pipelines/ that has them")
    stages: dict[Slug, OnOtherData] = Field({}, description="what differs in its pipeline on this table's data")
    given: str = Field("", description="field that must be given for the row to be trained; else it is as printed")
    printed: str = Field("", description="what a line of printed numbers calls it")
    work: dict[Slug, Work] = Field({}, description="of its stages that train")
    published_forwards: float | None = Field(None, gt=0, description="of the published code")
    run: PublishedRun | None = None
    note: str = Field("", description="what keeps its recipe from being the authors'")


class PaperTable(Strict):
    """A table or a figure of the paper."""

    description: str
    sweep: dict[str, Any]
    tiny: dict[str, Any] = Field({}, description="fields of the sweep in its place at tiny scale")
    targets: tuple[Target, ...] = ()
    common: str | None = Field(None, description="the row by whose protocol every other row is scored too")
    rows: dict[str, Row] = Field({})
    figure: Figure | None = None
    sheet: Sheet | None = None
    curves: tuple[Curve, ...] = ()
    printed: tuple[Printed, ...] = ()

    @property
    def points(self) -> tuple[str, ...]:
        """Names of its rows, in order, those of several stages first; none of a grid."""
        return (*self.pipelines, *(point["name"] for point in self.sweep.get("points", ())))

    @property
    def pipelines(self) -> dict[str, Pipeline]:
        """The stages of its rows that have several."""
        return {name: load_pipeline(row.pipeline) for name, row in self.rows.items() if row.pipeline is not None}

    def stages(self) -> dict[str, tuple[str, str]]:
        """(row, stage) by the stage's name in the sweep of the whole table."""
        pipelines = self.pipelines
        return {stage_name(row, name): (row, name) for row, made in pipelines.items() for name in made.stages}

    def row(self, point: str) -> Row:
        """What is known of a row."""
        return self.rows.get(point, Row())

    def of_scale(self, scale: str) -> dict[str, Any]:
        """Fields of the sweep at a scale: `paper`, or `tiny`."""
        if scale != "tiny":
            return dict(self.sweep)
        return dict(self.sweep) | {"name": f"{self.sweep['name']}-tiny", "base": "tiny", **self.tiny}


def with_rows(table: PaperTable, only: Iterable[str]) -> PaperTable:
    """The table with some of its rows, named in any case. Raises UsageError."""
    known = {name.lower(): name for name in table.points}
    given = [name.strip() for name in only]
    if not known:
        raise UsageError(f"--only {','.join(given)}: {table.description}: has no rows but a grid")
    if wrong := [name for name in given if name.lower() not in known]:
        raise UsageError(f"--only: {wrong[0]!r}: no such row; expected some of {', '.join(table.points)}")
    kept = {known[name.lower()] for name in given}
    rows = {name: row for name, row in table.rows.items() if row.pipeline is None or name in kept}

    def some(fields: dict[str, Any]) -> dict[str, Any]:
        changes: dict[str, Any] = {}
        if "points" in fields:
            changes["points"] = [point for point in fields["points"] if point["name"] in kept]
        if fields.get("baseline") not in {None, *kept}:
            changes["baseline"] = None
        return fields | changes

    targets = tuple(target for target in table.targets if target.point in kept)
    fields = {"sweep": some(table.sweep), "tiny": some(table.tiny), "targets": targets, "rows": rows}
    return table.model_copy(update=fields)


def with_given(table: PaperTable, fields: Iterable[str], only: Iterable[str] = ()) -> tuple[PaperTable, list[str]]:
    """(the table without the rows that need what is not given, whose numbers stay printed; a line for each).

    Args:
        fields: that are given: `ROW:FIELD`, `ROW:STAGE.FIELD`, or `FIELD` for all rows.
        only: rows that are asked for by name, which are not left out: UsageError.
    """
    known = {field.lower() for field in fields}
    wanted = {name.strip().lower() for name in only}
    lines, printed, left = [], list(table.printed), []
    for name, pipeline in table.pipelines.items():
        row = table.rows[name]
        ways = [row.given, f"{name}:{row.given}", *(f"{name}:{stage}.{row.given}" for stage in pipeline.stages)]
        if not row.given or known.intersection(way.lower() for way in ways):
            continue
        need = f"{name} is not trained: give --set {name}:{row.given}=FILE, or a name that is downloaded"
        if name.lower() in wanted:
            raise UsageError(f"--only {name}: {need}")
        lines.append(f"{need}; its numbers are as printed")
        values = {t.split: t.value for t in table.targets if t.point == name and t.value is not None}
        printed.append(Printed(method=row.printed or name, values=values))
        left.append(name)
    if not left:
        return table, []
    kept = with_rows(table, (name for name in table.points if name not in left))
    return kept.model_copy(update={"printed": tuple(printed)}), lines


def table_names() -> list[str]:
    """Names that `mcc reproduce` takes."""
    return sorted(file.stem for file in FOLDER.glob("*.yaml"))


def load_table(name: str) -> PaperTable:
    """A shipped table. Raises UsageError."""
    if name not in table_names():
        raise UsageError(f"{name}: no such table; {', '.join(table_names())}")
    return validate(PaperTable, read_yaml(FOLDER / f"{name}.yaml"), f"{name}.yaml")


def of_small_networks(table: PaperTable) -> PaperTable:
    """The table as it is written at tiny scale, where its rows' networks are not the published ones."""
    rows = {
        point: row.model_copy(update={"network": f"small; published: {row.network}"}) if row.network else row
        for point, row in table.rows.items()
    }
    return table.model_copy(update={"rows": rows})


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
    note = table.row(point).note
    varied = set(table.sweep.get("parameters", ()))  # of a figure: each configuration is meant to differ in them
    strange = _data_differences(experiment, data, COCO_COUNTS if len(saved.classes) == 80 else VOC_COUNTS)
    reasons = [note] if note else []
    if experiment.model.weights == "random":
        reasons.append("model.weights=random (published: pretrained on ImageNet)")
    own, theirs = flatten(experiment), flatten(published)
    fields = [key for key in own | theirs if own.get(key) != theirs.get(key)]
    changed = [key for key in fields if key not in _FREE | varied and not key.startswith("data.shapes_")]
    texts = [f"{key}={own.get(key)} (published: {theirs.get(key)})" for key in changed]
    if experiment.train.global_batch != published.train.global_batch:
        texts.insert(0, f"{experiment.train.global_batch} images a step (published: {published.train.global_batch})")
    more = [f"and {len(texts) - _SHOWN} more fields"] if len(texts) > _SHOWN else []
    aspects = {"data": ", ".join(strange), "configuration": ", ".join([*reasons, *texts[:_SHOWN], *more])}
    return {name: text for name, text in aspects.items() if text}


def table_experiment(table: PaperTable, point: str, scale: str = "paper") -> Experiment:
    """The experiment of one of a table's configurations, as it was published or at tiny scale; of a row of several
    stages that of the last."""
    fields = table.of_scale(scale)
    if (pipeline := table.pipelines.get(point)) is not None:
        stage = pipeline.named(point, scale, table.row(point).stages)[stage_name(point, pipeline.last)]
        return resolve(str(stage.base), stage.set)
    own: Mapping[str, Any] = next((p for p in fields.get("points", ()) if p["name"] == point), {})
    return resolve(str(own.get("base") or fields["base"]), {**fields.get("set", {}), **own.get("set", {})})


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
