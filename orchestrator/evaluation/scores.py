"""Pixel counts of each image of an evaluation, in a file that an interrupted run goes on with."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from mcc_core.errors import UsageError
from mcc_core.evaluation.scoring import Counts


class ScoresFile:
    """One JSON line per image, after a first line (the header) that says what was scored and how.

    Raises UsageError when the file is of another header.
    """

    def __init__(self, file: Path, header: Mapping[str, object]) -> None:
        self.file = file
        self.known: dict[str, dict[str, Counts]] = {}
        file.parent.mkdir(parents=True, exist_ok=True)
        lines = file.read_bytes().splitlines(keepends=True) if file.exists() else []
        whole = [line for line in lines if line.endswith(b"\n")]  # a killed run may leave half a line
        if whole and json.loads(whole[0]) != header:
            raise UsageError(f"{file}: scores of another checkpoint, data or setting; give another --out or remove it")
        self.known = _counts(whole[1:])
        if len(whole) < max(1, len(lines)):
            file.write_bytes(b"".join(whole) or json.dumps(header).encode() + b"\n")

    def add(self, image: str, counts: dict[str, Counts]) -> None:
        """Append an image."""
        self.known[image] = counts
        with self.file.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps({"image": image, "counts": counts}) + "\n")


def read_scores(file: Path) -> tuple[dict[str, object], dict[str, dict[str, Counts]]]:
    """(header, counts by image and setting) of an evaluation. Raises UsageError when the file is not one."""
    try:
        header, *lines = [line for line in file.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]
        return json.loads(header), _counts(lines)
    except OSError as error:
        raise UsageError(f"{file}: {error.strerror or error}; `mcc evaluate` writes it") from None
    except (ValueError, KeyError, TypeError):
        raise UsageError(f"{file}: not the scores of an evaluation; `mcc evaluate` writes them") from None


def _counts(lines: list[bytes]) -> dict[str, dict[str, Counts]]:
    return {entry["image"]: entry["counts"] for entry in map(json.loads, lines)}
