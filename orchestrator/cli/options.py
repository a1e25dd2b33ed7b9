"""Options that several commands share."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from mcc_core.errors import UsageError
from mcc_core.structured_files import parse_yaml
from orchestrator.cli.completion import experiments, fields, sweep_names

Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Replace a field, such as mask.ratio=0.5. The value is YAML.",
        autocompletion=fields,
    ),
]
Refine = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Replace a field: of the refinement, such as threshold=0.3, or data.root."
    ),
]
Base = Annotated[
    str | None,
    typer.Option("--base", help="Another base: a preset or an experiment file.", autocompletion=experiments),
]
Workers = Annotated[int | None, typer.Option("--workers", min=1, help="Data-parallel workers of each trial.")]
SweepName = Annotated[
    str | None,
    typer.Argument(metavar="[SWEEP]", help="Id or name; default: the newest.", autocompletion=sweep_names),
]


def overrides(assignments: list[str] | None) -> dict[str, Any]:
    """`key=value` texts as dotted fields and values. Raises UsageError."""
    fields: dict[str, Any] = {}
    for text in assignments or []:
        key, equals, value = text.partition("=")
        if not equals or not key.strip():
            raise UsageError(f"--set {text}: expected KEY=VALUE, such as mask.ratio=0.5")
        read, before = parse_yaml(value, f"--set {text}"), fields.get(key.strip())
        if key.strip() in fields and read != before:
            raise UsageError(f"--set {text}: {key.strip()} is set twice, to {before!r} before; give one of the two")
        fields[key.strip()] = read
    return fields


def seed_list(text: str) -> tuple[int, ...]:
    """`0,1,2` as numbers. Raises UsageError."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() for part in parts):
        raise UsageError(f"--seeds {text}: expected whole numbers from 0 with commas between, such as 0,1,2")
    return tuple(int(part) for part in parts)
