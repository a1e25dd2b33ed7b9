"""The reference pages: commands from Typer, fields from the schemas, modules from their docstrings.

They are kept in the repository, so that links hold for those who read it there; a test says when they are out of date.
`make reference` writes them, and the JSON Schemas, again.
"""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from mcc_core.experiment_files import PRESETS, preset_names
from mcc_core.methods.base import Method
from mcc_core.methods.registry import DEFAULT, METHODS
from orchestrator import settings
from orchestrator.spec import json_schema

ROOT = Path(__file__).parents[1]
PAGES = Path(__file__).parent / "reference"


# --- the command line ------------------------------------------------------------------------------------------------


def cli() -> str:
    """Every command with its options, by Typer's own generator."""
    command = [sys.executable, "-m", "typer", "orchestrator.cli.app", "utils", "docs", "--name", "mcc"]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    text = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT, env=env).stdout
    return text.replace("# `mcc`", "# Commands", 1).rstrip() + "\n"


# --- modules ---------------------------------------------------------------------------------------------------------


def modules() -> Iterator[tuple[str, str]]:
    """(path, first sentence of its docstring) of every module."""
    for package in ("mcc_core", "orchestrator"):
        for file in sorted((ROOT / package).rglob("*.py")):
            text = ast.get_docstring(ast.parse(file.read_text("utf-8")))
            if file.name != "__init__.py" or text:
                first = (text or "").split("\n\n")[0].replace("\n", " ")
                yield file.relative_to(ROOT).as_posix(), first


def module_map() -> str:
    """What each module is, a table a package."""
    parts = [
        "# Modules\n\nThe first sentence of each; how they work together is in [architecture](../architecture.md)."
    ]
    for package in ("mcc_core", "orchestrator"):
        rows = [f"| `{path.removeprefix(f'{package}/')}` | {_cell(first)} |" for path, first in _of(package)]
        parts.append("\n".join((f"## `{package}`\n", "| module | |", "|---|---|", *rows)))
    return "\n\n".join(parts) + "\n"


def _of(package: str) -> Iterator[tuple[str, str]]:
    return (found for found in modules() if found[0].startswith(f"{package}/"))


# --- files that users write ------------------------------------------------------------------------------------------


def configuration() -> str:
    """Every field of experiment and sweep files, with type, default and meaning."""
    experiment, sweep = (json.loads(json_schema.shipped(name)) for name in ("experiment", "sweep"))
    out = [_INTRODUCTION, "## Experiment files", _EXPERIMENT]
    for method in METHODS.values():
        out += _experiment(method, experiment)
    out.append("### Schedules\n\n" + _SCHEDULES)
    for name in ("Constant", "Linear", "Cosine", "Step"):
        out.append(_model(name, experiment))
    out.append("## Presets")
    for name in preset_names():
        lines = (PRESETS / f"{name}.yaml").read_text("utf-8").splitlines(keepends=True)
        out.append(f"### `{name}`\n\n```yaml\n{''.join(line for line in lines if '$schema' not in line)}```")
    out += ["## Sweep files", _SWEEP]
    out += [_model(name, sweep) for name in _SWEEP_MODELS]
    out += ["## Sweeps of stages", "With `stages:`; [how](../sweeps.md#stages)."]
    out += [_model(name, sweep) for name in ("StagesFile", "Stage", "Refinement", "RandomWalkConfig")]
    out += ["## Sweeps over evaluation parameters", "With `of:`, of something trained; [how](../evaluation.md)."]
    out.append(_model("PosthocFile", sweep))
    out.append("The parameters, also those of `mcc evaluate --set evaluation.…`:")
    for name in ("EvaluationConfig", "ParConfig", "CrfConfig"):
        out.append(_model(name, sweep))
    table = (settings.__doc__ or "").split("\n\n", 1)[1]
    out += ["## Environment variables", table]
    return "\n\n".join(out) + "\n"


def _experiment(method: Method, schema: dict[str, Any]) -> list[str]:
    """The fields of a method's experiments: all of the default method's, of others those that are their own."""
    own = f"{method.name}."
    fields = schema["$defs"][f"{own}Experiment"]["properties"]
    sections = {k: v for k, v in fields.items() if "$ref" in v}
    out = []
    if method.name == DEFAULT:
        out.append(_table("", {k: v for k, v in fields.items() if k not in sections}, schema))
    else:
        sections = {k: v for k, v in sections.items() if f"/{own}" in v["$ref"]}
        out.append(f"## Experiments of {method.title}\n\nWith `method: {method.name}`; other sections are as above.")
    return out + [part for name, node in sections.items() for part in _section(name, node, schema)]


_INTRODUCTION = """# Configuration

Every field, its default and its limits, made from the schemas that check your files. For completion in an editor see
[concepts](../concepts.md#files)."""
_EXPERIMENT = """A preset, or a YAML file of yours: `mcc train FILE`, or `base: FILE` in a sweep. In a sweep, and with
`--set`, fields are named with dots: `loss.mcc`."""
_SCHEDULES = "Where a number *or schedule* may stand, a mapping with `schedule:` is a function of the iteration."
_SWEEP = """Explained with examples in [sweep files](../sweeps.md)."""
_SWEEP_MODELS = (
    *("SweepFile", "Space", "Point", "HeatMap", "Resources", "Grid", "Random", "Tpe", "Objective"),
    *("NoScheduler", "Asha", "Median", "Pbt", "Budget", "Design", "Variant"),
)


def _section(name: str, node: dict[str, Any], schema: dict[str, Any]) -> Iterator[str]:
    model = schema["$defs"][node["$ref"].rsplit("/", 1)[1]]
    inner = {k: v for k, v in model["properties"].items() if "$ref" in v and "Schedule" not in v["$ref"]}
    flat = {k: v for k, v in model["properties"].items() if k not in inner}
    yield f"### `{name}`\n\n{_cell(model.get('description', ''))}\n\n{_table(f'{name}.', flat, schema)}"
    for key, child in inner.items():
        yield from _section(f"{name}.{key}", child, schema)


def _model(name: str, schema: dict[str, Any]) -> str:
    model = schema["$defs"][name]
    text = f"### {name}\n\n{_cell(model.get('description', ''))}"
    return f"{text}\n\n{_table('', model['properties'], schema, set(model.get('required', ())))}"


def _table(prefix: str, fields: dict[str, Any], schema: dict[str, Any], required: Collection[str] = ()) -> str:
    rows = ["| field | value | default | |", "|---|---|---|---|"]
    for name, node in fields.items():
        default = "*required*" if name in required else f"`{_yaml(node['default'])}`" if "default" in node else ""
        cells = (f"`{prefix}{name}`", _cell(_kind(node)), default, _cell(node.get("description", "")))
        rows.append("| " + " | ".join(cells) + " |")
    return "\n".join(rows)


def _kind(node: dict[str, Any]) -> str:
    """What a value may be, in words."""
    if "const" in node or "enum" in node:
        return ", ".join(f"`{_yaml(value)}`" for value in node.get("enum", [node.get("const")]))
    limits = _limits(node)
    if "anyOf" in node or "oneOf" in node:
        kinds = dict.fromkeys(_kind(option) for option in node.get("anyOf") or node["oneOf"])
        return " or ".join(kinds) + limits
    if "$ref" in node:
        name = node["$ref"].rsplit("/", 1)[1]
        name = name.removeprefix("Stage") if name in ("StageFields", "StageParameters") else name
        return {"Schedule": "schedule", "Base": "preset or .yaml file", "Fields": "fields and their values"}.get(
            name, {"Parameters": "fields to lists or ranges", "Derived": "fields to arithmetic"}.get(name, name)
        )
    if node.get("type") == "array":
        if "prefixItems" in node:
            return f"[{', '.join(_kind(item) for item in node['prefixItems'])}]"
        return f"list of {_kind(node.get('items', {}))}"
    names = {"integer": "whole number", "boolean": "`true`, `false`", "object": "mapping", "null": "`null`"}
    kind = "path" if node.get("format") == "path" else "text" if node.get("type") == "string" else node.get("type")
    return names.get(str(kind), str(kind or "anything")) + limits


def _limits(node: dict[str, Any]) -> str:
    words = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    found = [f"{sign} {node[key]:g}" for key, sign in words.items() if key in node]
    return ", " + ", ".join(found) if found else ""


def _yaml(value: Any) -> str:
    return str(value) if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ").replace("<", "&lt;")


def texts() -> dict[str, str]:
    """File name in docs/reference to content."""
    return {"cli.md": cli(), "configuration.md": configuration(), "modules.md": module_map()}


def write() -> None:
    """Write the pages, and the JSON Schemas that one of them is made of."""
    json_schema.write()
    PAGES.mkdir(exist_ok=True)
    for name, text in texts().items():
        (PAGES / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    write()
