"""Presets, experiment files and dotted overrides, as validated experiments."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mcc_core.config import BUNDLES, Experiment
from mcc_core.errors import UsageError
from mcc_core.structured_files import read_yaml
from mcc_core.validation import validate

PRESETS = Path(__file__).parent / "presets"


def preset_names() -> list[str]:
    """Names of the experiments that ship with the package."""
    return sorted(path.stem for path in PRESETS.glob("*.yaml"))


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
    bundle = BUNDLES.get(str(overrides.get("compat")), {})
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
    return validate(Experiment, fields, f"{base}" if not overrides else f"{base} with {source}")
