"""YAML and JSON that a user gives, read so that nothing in it is lost: a key that is there twice is refused."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import yaml

from mcc_core.errors import UsageError

_IN_PLAIN_WORDS = (  # what the parser says, in part, and what it means
    (r"'\t'", "a tab; indent with spaces"),
    ("cannot start any token", "a sign that YAML keeps for itself; put the text in quotes"),
    (
        "mapping values are not allowed",
        "a colon too many, or none in the line before; put text with a colon in quotes",
    ),
    ("could not find expected ':'", "a line without `key:`"),
    ("<block end>", "indented otherwise than the lines before it"),
    ("expected ',' or", "a bracket that is not closed, or a comma is missing"),
    ("unexpected end of stream", "a quote that is not closed"),
    ("another document", "a second document after `---`; expected one"),
    ("undefined alias", "an alias `*name` without its anchor `&name`"),
    ("could not determine a constructor", "a tag `!name`; expected plain values"),
    ("unhashable", "a list or a mapping as a key"),
    ("special characters", "a control character"),
    ("<document start>", "a bracket too many"),
)
_JSON_TOKENS = re.compile(r'"(?:[^"\\]|\\.)*"|[{}\[\]:]')


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML mapping from a file. Raises UsageError when it cannot be read, parsed, or is not a mapping."""
    content = parse_yaml(_text(path), str(path))
    if content is None:
        raise UsageError(f"{path}: is empty; expected a mapping of fields")
    if not isinstance(content, dict):
        raise UsageError(f"{path}: expected a mapping of fields, found {type(content).__name__}")
    return content


def parse_yaml(text: str, source: str) -> Any:
    """What a YAML text says. Raises UsageError with source, line and, where one is there twice, the key."""
    try:
        return _Loader(text).get_single_data()
    except yaml.YAMLError as error:
        mark: Any = getattr(error, "problem_mark", None)
        where = f" line {mark.line + 1}:" if mark else ""
        problem = getattr(error, "problem", None) or str(error)
        if not isinstance(error, _RepeatedKey):
            hint = next((plain for part, plain in _IN_PLAIN_WORDS if part in problem), "expected `key: value` lines")
            problem = f"not valid YAML: {hint}"
        raise UsageError(f"{source}:{where} {problem}") from None
    except ValueError:  # of a value whose form alone is right, as 2024-02-30
        raise UsageError(f"{source}: not valid YAML: a date or number that there is not; put text in quotes") from None
    except RecursionError:
        raise UsageError(f"{source}: not valid YAML: nested too deeply") from None


def read_json(path: Path) -> Any:
    """What a JSON file holds. Raises UsageError with the file, the line and what is wrong there."""
    return parse_json(_text(path), str(path))


def parse_json(text: str, source: str) -> Any:
    """What a JSON text says. Raises UsageError with the source, the line and what is wrong there."""
    try:
        return json.loads(text, object_pairs_hook=_without_twins)
    except json.JSONDecodeError as error:
        early = " (it ends early)" if error.pos >= len(text.rstrip()) else ""
        raise UsageError(f"{source}: line {error.lineno}, column {error.colno}: not valid JSON{early}") from None
    except _Twins:
        line, first, key = _repeated(text)
        raise UsageError(f"{source}: line {line}: {_twice(key, first)}") from None
    except ValueError:  # of a number
        raise UsageError(f"{source}: not valid JSON: a number of more than 4,300 digits") from None
    except RecursionError:
        raise UsageError(f"{source}: not valid JSON: nested too deeply") from None


class _RepeatedKey(yaml.MarkedYAMLError):
    """Two equal keys in one mapping."""


class _Loader(yaml.SafeLoader):
    """Looks for repeated keys as the document stands, before `<<` brings in keys that may be replaced."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen: dict[tuple[str, str], int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            if (first := seen.get((key.tag, key.value))) is not None:
                raise _RepeatedKey(problem=_twice(key.value, first), problem_mark=key.start_mark)
            seen[key.tag, key.value] = key.start_mark.line + 1
        return node


class _Twins(Exception):  # noqa: N818  never leaves this module
    """Two equal keys in one JSON object."""


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    mapping = dict(pairs)
    if len(mapping) < len(pairs):
        raise _Twins
    return mapping


def _repeated(text: str) -> tuple[int, int, str]:
    """Of the first repeated key of a valid JSON text: its line, the line where it is first, the key."""
    open_objects: list[dict[str, int]] = []
    string = re.match("", text)
    for token in _JSON_TOKENS.finditer(text):
        match token[0]:
            case "{" | "[":
                open_objects.append({})
            case "}" | "]":
                open_objects.pop()
            case ":":
                assert string is not None
                key, at = json.loads(string[0]), string.start()
                if (first := open_objects[-1].setdefault(key, at)) != at:
                    return text.count("\n", 0, at) + 1, text.count("\n", 0, first) + 1, key
            case _:
                string = token
    raise AssertionError("no key is there twice")


def _twice(key: str, first_line: int) -> str:
    return f"{key!r} is there twice (first in line {first_line}): the later one would replace the other; take one out"


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start})") from None
