"""Pixel counts of each image of an evaluation, in a file that an interrupted run goes on with."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from mcc_core.errors import UsageError
from mcc_core.evaluation.scoring import Counts
from mcc_core.journal import Journal, OtherJournal


class ScoresFile:
    """One JSON line per image, after a first line (the header) that says what was scored and how.

    Raises UsageError when the file is of another header.
    """

    def __init__(self, file: Path, header: Mapping[str, object]) -> None:
        try:
            self.journal = Journal(file, header)
        except OtherJournal as other:
            raise UsageError(
                f"{file}: scores of another checkpoint, data or setting (differing: {', '.join(other.differing)}); "
                "give another --out or remove the folder"
            ) from None
        self.known: dict[str, dict[str, Counts]] = {e["image"]: e["counts"] for e in self.journal.entries}

    def add(self, image: str, counts: dict[str, Counts]) -> None:
        """Append an image."""
        self.known[image] = counts
        self.journal.add({"image": image, "counts": counts})


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
