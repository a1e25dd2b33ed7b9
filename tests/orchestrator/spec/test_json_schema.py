"""The JSON Schemas for editors: current, met by every file that is shipped, and not met by what people get wrong."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator
from jsonschema.exceptions import best_match
from referencing import Registry, Resource

from orchestrator.spec import json_schema

ROOT = Path(__file__).parents[3]
SCHEMAS = {file.name: json.loads(file.read_text()) for file in json_schema.FOLDER.glob("*.json")}
SHIPPED = [
    *((file, "sweep.schema.json") for file in sorted((ROOT / "sweeps").glob("*.yaml"))),
    *((file, "experiment.schema.json") for file in sorted((ROOT / "mcc_core/presets").glob("*.yaml"))),
    *((file, "pipeline.schema.json") for file in sorted((ROOT / "orchestrator/reproduction/pipelines").glob("*.yaml"))),
    *((file, "table.schema.json") for file in sorted((ROOT / "orchestrator/reproduction/tables").glob("*.yaml"))),
]


def mistake(schema: str, fields: Any) -> str | None:
    """What a validator says is most wrong with a document."""
    resources = [(name, Resource.from_contents(content)) for name, content in SCHEMAS.items()]
    registry: Registry[Any] = Registry().with_resources(resources)
    found = best_match(Draft202012Validator(SCHEMAS[schema], registry=registry).iter_errors(fields))
    return found and f"{found.json_path}: {found.message}"


def test_the_shipped_schemas_are_those_of_the_models() -> None:
    shipped = {file.name: file.read_text() for file in json_schema.FOLDER.glob("*.json")}
    assert shipped == json_schema.texts(), "make reference writes them again"
    for schema in SCHEMAS.values():
        Draft202012Validator.check_schema(schema)


@pytest.mark.parametrize(("file", "schema"), SHIPPED, ids=lambda value: getattr(value, "name", value))
def test_shipped_files_meet_their_schema_and_name_it(file: Path, schema: str) -> None:
    text = file.read_text()
    assert mistake(schema, yaml.safe_load(text)) is None
    named = re.match(r"# yaml-language-server: \$schema=(\S+)\n", text)
    assert named, "the first line tells editors which schema is meant"
    assert (file.parent / named[1]).resolve() == (json_schema.FOLDER / schema).resolve()


def sweep(**fields: Any) -> dict[str, Any]:
    return {"name": "s", "base": "tiny", **fields}


@pytest.mark.parametrize(
    "fields",
    [
        sweep(parameters={"loss.mcc": [0, 0.5, {"schedule": "linear", "start": 0, "end": 1}]}),
        sweep(parameters={"loss.mcc": {"loguniform": [0.1, 1]}}, search={"kind": "tpe", "points": 3}),
        sweep(parameters={"mask.ratio": {"schedule": "linear", "start": 0.5, "end": {"uniform": [0.7, 0.9]}}}),
        sweep(set={"model.backbone_args.depth": 2, "train.iterations": 5}, base="mine.yaml"),
        sweep(bases={"voc": {"set": {"loss.mcc": 0}}}, scheduler={"kind": "asha", "min_iterations": 2}),
        {"name": "s", "of": "a/b", "protocol": "cam", "parameters": {"cam_threshold": [0.4, 0.5]}},
    ],
)
def test_what_a_sweep_may_say_is_accepted(fields: dict[str, Any]) -> None:
    assert mistake("sweep.schema.json", fields) is None


@pytest.mark.parametrize(
    ("schema", "fields", "said"),
    [
        ("sweep", {"name": "s"}, "'base' is a required property"),
        ("sweep", sweep(nmae="t"), "'nmae' was unexpected"),
        ("sweep", sweep(base="tinny"), "base"),
        ("sweep", sweep(parameters={"mask.rato": [0.5]}), "mask.rato"),
        ("sweep", sweep(parameters={"mask": [0.5]}), "mask"),
        ("sweep", sweep(parameters={"mask.ratio": [0.5, 1.2]}), "mask.ratio"),
        ("sweep", sweep(parameters={"mask.ratio": []}), "mask.ratio"),
        ("sweep", sweep(parameters={"mask.ratio": 0.5}), "mask.ratio"),
        ("sweep", sweep(parameters={"mask.ratio": {"unifrom": [0, 1]}}), "mask.ratio"),
        ("sweep", sweep(parameters={"train.crop": {"schedule": "linear", "start": 1, "end": 2}}), "train.crop"),
        ("sweep", sweep(set={"loss.mcc": {"schedule": "linear", "start": -1, "end": 1}}), "loss.mcc"),
        ("sweep", sweep(set={"loss.mcc": {"schedule": "lineal", "start": 0, "end": 1}}), "loss.mcc"),
        ("sweep", sweep(seeds=[]), "seeds"),
        ("sweep", sweep(mode="best"), "mode"),
        ("sweep", sweep(search={"kind": "tpe"}), "search"),
        ("sweep", sweep(points=[{"name": "a", "set": {"loss.mmc": 0}}]), "loss.mmc"),
        ("sweep", sweep(bases={"voc": {"parameter": {}}}), "parameter"),
        ("sweep", sweep(design={"kind": "add-one-in", "terms": {"a": ["loss.mcc"], "b": ["loss.seg_form"]}}), "terms"),
        ("sweep", {"name": "s", "of": "a/b", "protocol": "cma", "parameters": {"cam_threshold": [0.4]}}, "protocol"),
        ("sweep", {"name": "s", "of": "a/b", "protocol": "cam", "parameters": {"cam_treshold": [0.4]}}, "treshold"),
        ("experiment", {"loss": {"mmc": 0}}, "mmc"),
        ("experiment", {"mask": {"ratio": 1.2}}, "mask.ratio"),
        ("experiment", {"train": {"iterations": 0}}, "iterations"),
        ("experiment", {"model": {"projector": {"kind": "mpl"}}}, "kind"),
        ("table", {"description": "t", "sweep": {"name": "s", "base": "vok"}}, "base"),
        ("table", {"description": "t", "sweep": sweep(), "tiny": {"nmae": 1}}, "nmae"),
    ],
)
def test_typical_mistakes_are_marked(schema: str, fields: dict[str, Any], said: str) -> None:
    found = mistake(f"{schema}.schema.json", fields)
    assert found is not None and said in found
