"""A file of JSON lines that a run appends to and an interrupted one goes on with."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mcc_core.errors import UsageError


class OtherJournal(Exception):  # noqa: N818  no error: the caller says what it means
    """The file is of another header, which is `found`."""

    def __init__(self, header_there: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
        self.found = header_there
        self.differing = tuple(
            k for k in dict.fromkeys((*wanted, *header_there)) if header_there.get(k) != wanted.get(k)
        )
        super().__init__(", ".join(self.differing))


class Journal:
    """JSON objects, one a line, after a first line (the header) that says what they are of.

    A last line that a killed run left half written is dropped.

    Raises OtherJournal when the file is of another header, UsageError when it is none.
    """

    def __init__(self, file: Path, header: Mapping[str, Any]) -> None:
        self.file, self.header = file, header
        file.parent.mkdir(parents=True, exist_ok=True)
        lines = file.read_bytes().splitlines(keepends=True) if file.exists() else []
        whole = [line for line in lines if line.endswith(b"\n")]
        try:
            header_there, *self.entries = [json.loads(line) for line in whole] or [header]
        except ValueError:
            raise UsageError(f"{file}: not written by mcc; move it away") from None
        if header_there != header:
            raise OtherJournal(header_there if isinstance(header_there, dict) else {}, header)
        if len(whole) < max(1, len(lines)):
            file.write_bytes(b"".join(whole) or json.dumps(header).encode() + b"\n")

    def add(self, entry: Mapping[str, Any]) -> None:
        """Append an object."""
        self.entries.append(dict(entry))
        with self.file.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(entry) + "\n")
