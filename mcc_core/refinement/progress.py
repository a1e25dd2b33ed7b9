"""What a run that makes a label set has done, so that one that was cut off goes on with the images that lack a map."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mcc_core.data.label_maps import MapFile
from mcc_core.errors import UsageError
from mcc_core.evaluation.scoring import Counts
from mcc_core.journal import Journal, OtherJournal

PROGRESS = "progress.jsonl"  # the journal, in the folder of the label set


@dataclass(frozen=True)
class Done:
    """An image whose map is written."""

    file: MapFile
    counts: Mapping[str, Counts] = field(default_factory=dict)  # of its pixels against its mask, by what is scored
    broken: tuple[str, ...] = ()  # what is wrong with its mask


class Progress:
    """A journal in the folder of a label set that is being made, a line for each image after its files.

    What is there of another header, or cannot be read, is removed with all the folder has.
    """

    def __init__(self, folder: Path, header: Mapping[str, Any]) -> None:
        header = json.loads(json.dumps(header))
        try:
            self._journal = Journal(folder / PROGRESS, header)
            self.done = {str(entry["name"]): _done(entry) for entry in self._journal.entries}
        except (OtherJournal, UsageError, ValueError, KeyError, TypeError, AttributeError):
            shutil.rmtree(folder)
            self._journal, self.done = Journal(folder / PROGRESS, header), {}

    def add(self, name: str, done: Done) -> None:
        """Note an image whose files are there."""
        self.done[name] = done
        entry = {"name": name, "counts": done.counts, "broken": done.broken}
        self._journal.add(entry | done.file.model_dump(exclude_none=True))


def _done(entry: Mapping[str, Any]) -> Done:
    file = {key: value for key, value in entry.items() if key in MapFile.model_fields}
    counts = {what: [(int(a), int(b), int(n)) for a, b, n in some] for what, some in entry["counts"].items()}
    return Done(MapFile(**file), counts, tuple(map(str, entry["broken"])))
