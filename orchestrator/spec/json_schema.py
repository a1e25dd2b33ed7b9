"""JSON Schemas of experiment, sweep and table files, for editors: made from the pydantic models, shipped as files.

A schema says what a file may look like. What needs two fields at once (the order of thresholds, what a search needs of
its parameters) is left to `mcc sweep plan`. `make reference` writes the files again.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import AfterValidator, BaseModel
from pydantic.fields import FieldInfo

from mcc_core.experiment_files import preset_names
from mcc_core.methods.registry import DEFAULT, FROZEN, METHODS
from mcc_core.validation import settable

FOLDER = Path(__file__).parent / "schemas"
Json = dict[str, Any]
_DIALECT = "https://json-schema.org/draft/2020-12/schema"
_ANY_DEPTH = r"^model\.backbone_args\."  # keyword arguments of timm's, which no schema lists


def shipped(name: str) -> str:
    """The text of a shipped schema: experiment, sweep, table or pipeline."""
    return (FOLDER / f"{name}.schema.json").read_text(encoding="utf-8")


def experiment_schema() -> Json:
    """Schema of an experiment file, presets among them: that of its method, MCC's where it names none."""
    definitions: Json = {}
    ways: list[Json] = []
    for name, method in (METHODS | FROZEN).items():
        definitions |= _definitions(method.experiment)
        named: Json = {"properties": {"method": {"const": name}}}
        if name != DEFAULT:
            named["required"] = ["method"]
        ways.append({"if": named, "then": {"$ref": f"#/$defs/{_definition(method.experiment)}"}})
    return {"$schema": _DIALECT, "title": "mcc experiment", "type": "object", "allOf": ways, "$defs": definitions}


def _definition(model: type[BaseModel]) -> str:
    """Name of a model among the definitions: methods may have models of one name."""
    *_, room, method, module = ("", "", *model.__module__.split("."))
    return f"{method}.{model.__name__}" if (room, module) == ("methods", "config") else model.__name__


def _definitions(model: type[BaseModel]) -> Json:
    """Schemas of a model and of all models in it, by name."""
    owners = {owner.__name__: owner for owner, _, _ in _fields(model)} | {model.__name__: model}
    schema = model.model_json_schema()
    definitions = schema.pop("$defs", {}) | {model.__name__: schema}
    for owner, field, info in _fields(model):
        if bounds := _bounds(info):
            definitions[owner.__name__]["properties"][field] |= _bounded(bounds)
    names = {name: _definition(owners[name]) for name in definitions if name in owners}
    return {names.get(name, name): _renamed(node, names) for name, node in definitions.items()}


def _renamed(node: Any, names: Mapping[str, str]) -> Any:
    if isinstance(node, list):
        return [_renamed(item, names) for item in node]
    if not isinstance(node, dict):
        return node
    renamed = {key: _renamed(value, names) for key, value in node.items()}
    if isinstance(target := node.get("$ref"), str):
        name = target.removeprefix("#/$defs/")
        renamed["$ref"] = f"#/$defs/{names.get(name, name)}"
    return renamed


def sweep_schema() -> Json:
    """Schema of a sweep file: over training, in stages, or (with `of`) over evaluation parameters."""
    from orchestrator.spec.posthoc_file import PosthocFile
    from orchestrator.spec.stages_file import StagesFile
    from orchestrator.spec.sweep_file import SweepFile

    definitions: Json = {}
    for model in (SweepFile, StagesFile, PosthocFile):
        schema = model.model_json_schema()
        definitions |= schema.pop("$defs") | {model.__name__: schema}
    definitions |= _experiment_definitions() | {"Base": _base(), "Fields": _settings(), "DrawnSchedule": _schedule()}
    _fill_sweep(definitions)
    _fill_stages(definitions)
    _fill_posthoc(definitions)
    return {
        "$schema": _DIALECT,
        "title": "mcc sweep",
        "type": "object",
        "if": {"required": ["of"]},
        "then": {"$ref": "#/$defs/PosthocFile"},
        "else": {
            "if": {"required": ["stages"]},
            "then": {"$ref": "#/$defs/StagesFile"},
            "else": {"$ref": "#/$defs/SweepFile"},
        },
        "$defs": definitions,
    }


def table_schema() -> Json:
    """Schema of a table of the paper; of the sweep in it, it refers to the file beside it."""
    from orchestrator.spec.paper_table import PaperTable
    from orchestrator.spec.sweep_file import SweepFile

    table, whole = PaperTable.model_json_schema(), "sweep.schema.json#/$defs/SweepFile"
    part = {key: {"$ref": f"{whole}/properties/{key}"} for key in SweepFile.model_fields}
    table["properties"]["sweep"] = {"$ref": whole}
    table["properties"]["tiny"] |= {"properties": part, "additionalProperties": False}
    return {"$schema": _DIALECT} | table | {"title": "mcc table of the paper"}


def pipeline_schema() -> Json:
    """Schema of the stages of a table's row; of a stage, it refers to the file beside it."""
    from orchestrator.spec.pipeline import Pipeline

    pipeline = Pipeline.model_json_schema()
    pipeline["$defs"] = {}
    for scale in ("stages", "tiny"):
        node = pipeline["properties"][scale]
        node |= {"additionalProperties": {"$ref": "sweep.schema.json#/$defs/Stage"}}
        node.pop("patternProperties", None)
    return {"$schema": _DIALECT} | pipeline | {"title": "mcc stages of a row of a table"}


def texts() -> dict[str, str]:
    """File name to content of every schema, as they should be shipped."""
    made = {"experiment": experiment_schema(), "sweep": sweep_schema(), "table": table_schema()}
    made["pipeline"] = pipeline_schema()
    return {f"{name}.schema.json": json.dumps(_tidy(schema), indent=1) + "\n" for name, schema in made.items()}


def _tidy(node: Any) -> Any:
    """Without what pydantic adds and no editor shows; the alternatives of a schedule are written once."""
    if isinstance(node, list):
        return [_tidy(item) for item in node]
    if not isinstance(node, dict):
        return node
    if "discriminator" in node and "schedule" in node["discriminator"].values():
        return {"$ref": "#/$defs/Schedule"}
    kept = {k: _tidy(v) for k, v in node.items() if not (k in ("title", "discriminator") and "$schema" not in node)}
    if "Linear" in kept.get("$defs", {}):
        names = ("Constant", "Linear", "Cosine", "Step")
        kept["$defs"]["Schedule"] = {"oneOf": [{"$ref": f"#/$defs/{name}"} for name in names]}
    return kept


def _fields(model: type[BaseModel]) -> Iterator[tuple[type[BaseModel], str, FieldInfo]]:
    for name, info in model.model_fields.items():
        if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
            yield from _fields(info.annotation)
        else:
            yield model, name, info


def _bounds(info: FieldInfo) -> Json:
    """Range of a number that may be a schedule.

    Read from its validator: an annotation in `mcc_core` would change the source that trials are identified by.
    """
    for item in info.metadata:
        if isinstance(item, AfterValidator):
            limits = inspect.getclosurevars(item.func).nonlocals
            high = {} if limits["high"] == float("inf") else {"maximum": limits["high"]}
            if limits["open_high"]:
                high = {"exclusiveMaximum": limits["high"]}
            return {"minimum": limits["low"]} | high
    return {}


def _bounded(bounds: Json) -> Json:
    """Keywords that bound a number, or every value of a schedule in its place."""
    values = dict.fromkeys(("value", "start", "end"), bounds) | {"values": {"items": bounds}}
    return bounds | {"properties": values}


def _settable(model: type[BaseModel]) -> dict[str, Json]:
    """Dotted field of a model to a reference to its value's schema."""
    nodes: dict[str, Json] = {}
    for name in settable(model):
        owner: type[BaseModel] = model
        *sections, last = name.split(".")
        for section in sections:
            owner = owner.model_fields[section].annotation  # type: ignore[assignment]
        nodes[name] = {"$ref": f"#/$defs/{_definition(owner)}/properties/{last}"}
    return nodes


def _any_method() -> dict[str, Json]:
    """Dotted field of any method's experiment to its value's schema: one of them, where methods differ."""
    ways: dict[str, list[Json]] = {}
    for method in (METHODS | FROZEN).values():
        for name, reference in _settable(method.experiment).items():
            known = ways.setdefault(name, [])
            if reference not in known:
                known.append(reference)
    return {name: known[0] if len(known) == 1 else {"anyOf": known} for name, known in ways.items()}


def _experiment_definitions() -> Json:
    return dict(experiment_schema()["$defs"])


def _object(properties: Json) -> Json:
    return {
        "type": "object",
        "properties": properties,
        "patternProperties": {_ANY_DEPTH: {}},
        "additionalProperties": False,
    }


def _base() -> Json:
    return {"anyOf": [{"enum": preset_names()}, {"type": "string", "pattern": r"\.ya?ml$"}]}


def _settings() -> Json:
    return _object(_any_method())


def _schedule() -> Json:
    """A schedule in which something is drawn."""
    number = {"anyOf": [{"type": "number"}, {"$ref": "#/$defs/Space"}]}
    properties: Json = dict.fromkeys(("value", "start", "end", "first", "last"), number)
    properties |= {"schedule": {"enum": ["constant", "linear", "cosine", "step"]}, "when": {"type": "string"}}
    properties |= {name: {"type": "array", "items": number} for name in ("values", "at_iterations")}
    return {"type": "object", "properties": properties, "required": ["schedule"], "additionalProperties": False}


def _varied() -> Json:
    """What `parameters` may hold: a list of values, a range, or a schedule in which something is drawn."""
    ways: Json = {}
    for name, value in _any_method().items():
        several = {"type": "array", "minItems": 1, "items": value}
        ways[name] = {"anyOf": [several, {"$ref": "#/$defs/Space"}]}
    drawn = {"$ref": "#/$defs/DrawnSchedule"}
    for schema in (method.experiment for method in (METHODS | FROZEN).values()):
        for model, field, info in _fields(schema):
            if _bounds(info):
                section = next(k for k, v in schema.model_fields.items() if v.annotation is model)
                if drawn not in (known := ways[f"{section}.{field}"]["anyOf"]):
                    known.append(drawn)
    return _object(ways)


def _fill_sweep(definitions: Json) -> None:
    """Put names of fields, presets and loss weights where pydantic knows only texts."""
    from orchestrator.spec.design import weights
    from orchestrator.spec.space import KINDS, Space

    space = Space.model_json_schema()
    for kind in KINDS:  # none of them is ever written as null
        node = space["properties"][kind]
        space["properties"][kind] = node.pop("anyOf")[0] | {k: v for k, v in node.items() if k != "default"}
    definitions["Space"] = space | {"oneOf": [{"required": [kind]} for kind in KINDS]}
    definitions["Parameters"] = _varied()
    arithmetic = {name: {"type": ["string", "number"]} for name in _any_method()}
    definitions["Derived"] = _object(arithmetic)
    for model in ("SweepFile", "Variant", "Point"):
        properties = definitions[model]["properties"]
        for key, target in (("set", "Fields"), ("parameters", "Parameters"), ("derived", "Derived")):
            if key in properties:
                described = {k: v for k, v in properties[key].items() if k in ("description", "default")}
                properties[key] = described | {"$ref": f"#/$defs/{target}"}
    sweep = definitions["SweepFile"]["properties"]
    sweep["base"] = {"description": sweep["base"]["description"], "$ref": "#/$defs/Base"}
    sweep["bases"]["propertyNames"] = {"$ref": "#/$defs/Base"}
    known = list(dict.fromkeys(weight for method in METHODS.values() for weight in weights(method)))
    definitions["Design"]["properties"]["terms"] |= {
        "additionalProperties": {"type": "array", "minItems": 1, "items": {"enum": known}}
    }
    definitions["Design"]["properties"]["terms"].pop("patternProperties", None)


def _fill_stages(definitions: Json) -> None:
    """Fields of experiments, and of refinements beside them, where a stage names some."""
    from mcc_core.refinement.base import Refinement
    from orchestrator.spec.stages_file import OF_FROZEN, REFINE

    schema = Refinement.model_json_schema()
    definitions |= schema.pop("$defs") | {"Refinement": schema}
    own = {f"{REFINE}.{field}": value for field, value in _settable(Refinement).items()}
    lists = {field: {"type": "array", "minItems": 1, "items": value} for field, value in own.items()}
    network = {field: value for field, value in _any_method().items() if field.startswith(OF_FROZEN)}
    several = {field: {"type": "array", "minItems": 1, "items": value} for field, value in network.items()}
    for name, some in (("Fields", network | own), ("Parameters", several | lists)):  # a stage trains or refines
        alone = {"type": "object", "properties": some, "additionalProperties": False}
        definitions[f"Stage{name}"] = {"anyOf": [{"$ref": f"#/$defs/{name}"}, alone]}
    properties = definitions["Stage"]["properties"]
    targets = {"set": "StageFields", "parameters": "StageParameters", "derived": "Derived", "base": "Base"}
    for key, target in (targets | {REFINE: "Refinement"}).items():
        properties[key] = {"description": properties[key]["description"], "$ref": f"#/$defs/{target}"}
    point = definitions["Point"]
    more = {"set": point["properties"]["set"] | {"$ref": "#/$defs/StageFields"}}
    definitions["StagePoint"] = point | {"properties": point["properties"] | more}
    properties["points"]["items"] = {"$ref": "#/$defs/StagePoint"}


def _fill_posthoc(definitions: Json) -> None:
    from mcc_core.config import EvaluationConfig

    schema = EvaluationConfig.model_json_schema()
    definitions |= schema.pop("$defs") | {"EvaluationConfig": schema}
    for model, field, info in _fields(EvaluationConfig):
        if bounds := _bounds(info):
            definitions[model.__name__]["properties"][field] |= _bounded(bounds)
    values = _settable(EvaluationConfig)
    properties = definitions["PosthocFile"]["properties"]
    properties["set"] |= {"properties": values, "additionalProperties": False}
    several = {name: {"type": "array", "minItems": 1, "items": value} for name, value in values.items()}
    properties["parameters"] |= {"properties": several, "additionalProperties": False}


def write() -> None:
    """Write the files that are shipped."""
    FOLDER.mkdir(exist_ok=True)
    for name, text in texts().items():
        (FOLDER / name).write_text(text, encoding="utf-8")
