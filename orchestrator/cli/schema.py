"""`mcc schema`: the JSON Schemas that editors check files with."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer


class Kind(StrEnum):
    """Files that users write."""

    experiment = "experiment"
    sweep = "sweep"


def schema(kind: Annotated[Kind, typer.Argument(metavar="experiment|sweep", help="Kind of file.")]) -> None:
    """Print the JSON Schema of a kind of file, for editors.

    `mcc schema sweep > sweep.schema.json`; then `# yaml-language-server: $schema=sweep.schema.json` as the first line
    of a sweep file.
    """
    from orchestrator.spec.json_schema import shipped

    print(shipped(kind.value), end="")
