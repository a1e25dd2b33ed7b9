"""Presets, experiment files and dotted overrides, as validated experiments."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from mcc_core.config import Experiment
from mcc_core.errors import UsageError
from mcc_core.methods.registry import experiment_of, method_of_fields

PRESETS = Path(__file__).parent / "presets"


def preset_names() -> list[str]:
    """Names of the experiments that ship with the package."""
    return sorted(path.stem for path in PRESETS.glob("*.yaml"))


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML mapping from a file. Raises UsageError when it cannot be read, parsed, or is not a mapping."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start})") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise UsageError(f"{path}:{where} not valid YAML: {getattr(error, 'problem', None) or error}") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise UsageError(f"{path}: expected a mapping of fields, found {type(content).__name__}")
    return content


def load_base(base: str | Path) -> dict[str, Any]:
    """The raw fields of a preset (by name) or of an experiment file (by path)."""
    shipped = PRESETS / f"{base}.yaml"
    if str(base) in preset_names():
        return read_yaml(shipped)
    if Path(base).suffix in {".yaml", ".yml"}:
        return read_yaml(Path(base))
    raise UsageError(f"{base}: neither a preset ({', '.join(preset_names())}) nor a .yaml file")


def merge(base: Mapping[str, Any], overrides: Mapping[str, Any], source: str) -> dict[str, Any]:
    """A copy of nested `base` with dotted `overrides` put in; the bundle of `compat` comes before the others.

    Raises UsageError for a key below a non-section.
    """
    merged = copy.deepcopy(dict(base))
    bundles = method_of_fields({**merged, **overrides}, source).experiment.bundles
    bundle = bundles.get(str(overrides.get("compat")), {})
    for key, value in {**bundle, **overrides}.items():
        node = merged
        *sections, last = key.split(".")
        for section in sections:
            node = node.setdefault(section, {})
            if not isinstance(node, dict):
                raise UsageError(f"{source}: {key}: {section} is not a section")
        node[last] = value
    return merged


def resolve(base: str | Path, overrides: Mapping[str, Any] | None = None, source: str = "--set") -> Experiment:
    """The validated experiment of a preset or file with dotted overrides. Raises UsageError, one line per mistake."""
    fields = merge(load_base(base), overrides or {}, source)
    return experiment_of(fields, f"{base}" if not overrides else f"{base} with {source}")
