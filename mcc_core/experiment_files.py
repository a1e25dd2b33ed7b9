"""Presets, experiment files and dotted overrides, as validated experiments."""

from __future__ import annotations

import copy
import difflib
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from mcc_core.config import Experiment
from mcc_core.errors import UsageError
from mcc_core.methods.registry import experiment_of, method_of_fields
from mcc_core.structured_files import read_yaml
from mcc_core.validation import field_names

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
    raise UsageError(no_base(str(base)))


def no_base(base: str) -> str:
    """What is wrong with a base that is neither a preset nor an experiment file, in one line."""
    if close := difflib.get_close_matches(base, preset_names(), n=1):
        return f"{base}: neither a preset nor a .yaml file; did you mean {close[0]}?"
    return f"{base}: neither a preset ({', '.join(preset_names())}) nor a .yaml file"


def merge(base: Mapping[str, Any], overrides: Mapping[str, Any], source: str) -> dict[str, Any]:
    """A copy of nested `base` with dotted `overrides` put in; the bundle of `compat` comes before the others.

    A section as a mapping replaces only the fields that it names. Raises UsageError for a key below a non-section, and
    for a field that is given twice, by itself and in its section.
    """
    merged = copy.deepcopy(dict(base))
    schema = method_of_fields({**merged, **overrides}, source).experiment
    bundle = schema.bundles.get(str(overrides.get("compat")), {})
    for key, value in {**bundle, **_dotted(overrides, schema, source)}.items():
        node = merged
        *sections, last = key.split(".")
        for section in sections:
            node = node.setdefault(section, {})
            if not isinstance(node, dict):
                raise UsageError(f"{source}: {key}: {section} is not a section")
        node[last] = copy.deepcopy(value)  # a later key may lie inside it, and the caller keeps its own
    return merged


def _dotted(overrides: Mapping[str, Any], schema: type[Experiment], source: str) -> dict[str, Any]:
    """Overrides with sections taken apart into their fields. A field whose value is a mapping is one value."""
    flat: dict[str, Any] = {}
    for key, value in overrides.items():
        fields = {key: value}
        if isinstance(value, dict) and value and key not in _values(schema):
            fields = _dotted({f"{key}.{name}": inner for name, inner in value.items()}, schema, source)
        if twice := next((name for name in fields if name in flat), None):
            raise UsageError(f"{source}: {twice}: given twice, by itself and in its section; take one out")
        flat |= fields
    return flat


@cache
def _values(schema: type[Experiment]) -> frozenset[str]:
    """Dotted names of a schema's fields that are no sections; some take a mapping, such as a schedule."""
    names = field_names(schema)
    return frozenset(names) - {name.rpartition(".")[0] for name in names}


def resolve(base: str | Path, overrides: Mapping[str, Any] | None = None, source: str = "--set") -> Experiment:
    """The validated experiment of a preset or file with dotted overrides. Raises UsageError, one line per mistake."""
    fields = merge(load_base(base), overrides or {}, source)
    return experiment_of(fields, f"{base}" if not overrides else f"{base} with {source}")
