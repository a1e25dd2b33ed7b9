"""A schema's field names, and its validation errors as one line each for the user."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from mcc_core.config import Strict
from mcc_core.errors import UsageError


def flatten(experiment: Strict) -> dict[str, str]:
    """Dotted field names to values as text; a schedule is one value."""
    flat: dict[str, str] = {}

    def walk(prefix: str, value: Any) -> None:
        if isinstance(value, Strict):
            for name in type(value).model_fields:
                walk(f"{prefix}{name}.", getattr(value, name))
        elif isinstance(value, tuple):
            flat[prefix[:-1]] = ", ".join(str(v) for v in value)
        else:
            flat[prefix[:-1]] = str(value)

    walk("", experiment)
    return flat


def field_names(model: type[BaseModel], prefix: str = "") -> list[str]:
    """Every dotted field name of a schema."""
    names: list[str] = []
    for name, field in model.model_fields.items():
        names.append(prefix + name)
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            names += field_names(field.annotation, f"{prefix}{name}.")
    return names


def settable(model: type[BaseModel]) -> list[str]:
    """Dotted names of the fields that hold values, not sections, without the description."""
    names = field_names(model)
    return [n for n in names if n != "description" and not any(other.startswith(f"{n}.") for other in names)]


M = TypeVar("M", bound=BaseModel)


def validate(model: type[M], fields: Mapping[str, Any], source: str) -> M:
    """`fields` as a `model`. Raises UsageError with one line per mistake: source, field, value, what would be right."""
    try:
        return model.model_validate(fields)
    except ValidationError as error:
        raise UsageError("\n".join(_explain(model, error, source))) from None


def _explain(model: type[BaseModel], error: ValidationError, source: str) -> list[str]:
    lines: dict[str, str] = {}
    known = field_names(model)
    for problem in error.errors(include_url=False):
        where = _location(problem["loc"])
        message = _plain(problem)
        if problem["loc"][-1:] == ("[key]",):  # of a mapping, where the location has its place in place of its name
            where = _location(problem["loc"][:-2])
            message = "expected a name; put it in quotes, or YAML reads it as something else"
        if problem["type"] == "extra_forbidden":
            siblings = [k for k in known if k.rpartition(".")[0] == where.rpartition(".")[0]]
            close = difflib.get_close_matches(where, siblings, n=1) or difflib.get_close_matches(where, known, n=1)
            close = close or difflib.get_close_matches(
                where.rsplit(".", 1)[-1], [k.rsplit(".", 1)[-1] for k in known], n=1
            )
            message = "unknown field" + (f", did you mean {close[0]}?" if close else "")
        elif problem["type"] == "float_type" and isinstance(problem["input"], dict):
            continue  # a schedule: the other branch of the union says what is wrong with it
        elif problem["type"] == "union_tag_not_found":
            message = "expected a number, or a mapping with schedule: constant, linear, cosine or step"
        elif where and isinstance(problem["input"], str | int | float | bool | None):
            message = f"{problem['input']!r}: {message}"
        lines.setdefault(where, f"{source}: {where + ': ' if where else ''}{message}")
    return list(lines.values()) or [f"{source}: {error}"]


_WORDS = {
    "missing": "is missing",
    "too_short": "needs at least {min_length} of them",
    "too_long": "may have at most {max_length}",
    "greater_than_equal": "must be at least {ge}",
    "greater_than": "must be above {gt}",
    "less_than_equal": "must be at most {le}",
    "less_than": "must be below {lt}",
    "string_pattern_mismatch": "has a character that may not be in it (expected {pattern})",
    "string_too_long": "may have at most {max_length} characters",
    "string_type": "expected text",
    "finite_number": "expected a finite number",
    "literal_error": "expected {expected}",
}
_KINDS = {"int": "a whole number", "float": "a number", "bool": "true or false", "tuple": "a list", "list": "a list"}
_KINDS |= {"dict": "a mapping", "model": "a section with fields", "path": "a path"}


def _plain(problem: Any) -> str:
    """A problem of pydantic's in our words."""
    kind: str = problem["type"]
    if kind in _WORDS:
        return _WORDS[kind].format(**problem.get("ctx", {}))
    for name, expected in _KINDS.items():
        if kind.startswith(f"{name}_"):
            return f"expected {expected}"
    return str(problem["msg"]).removeprefix("Value error, ")


def _location(loc: tuple[int | str, ...]) -> str:
    """Dotted field name of a pydantic location, without the names of union branches."""
    branches = {"float", "constant", "linear", "cosine", "step"}
    parts = [str(part) for part in loc]
    kept = [p for p in parts if p not in branches and "tagged-union" not in p and "function-" not in p]
    return "".join(f"[{p}]" if p.isdigit() else f".{p}" for p in kept).removeprefix(".")
