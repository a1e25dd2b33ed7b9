"""Which predictions a folder holds: of which checkpoint and protocol, and of which content of which files."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mcc_core.errors import UsageError
from mcc_core.files import made_folder, whole
from mcc_core.journal import Journal, OtherJournal

RECORD = "predictions.jsonl"
_FIELDS = {"image", "stem", "file", "digest", "scores"}
PARTS = {"masks": ".png", "overlays": ".jpg", "panels": ".png"}  # folder: suffix


class PredictionRecord:
    """The predictions in a folder, by output name.

    A prediction is taken for done only where the checkpoint, the protocol and the image's content are those asked for.

    Raises UsageError where `out` is no folder, or holds predictions of another checkpoint or protocol, or ones of which
    nothing is known.
    """

    def __init__(self, out: Path, header: Mapping[str, Any]) -> None:
        self.out = out
        for part in PARTS:
            made_folder(made_folder(out, "--out") / part, "--out")
        if not (out / RECORD).exists() and any(next((out / part).iterdir(), None) for part in PARTS):
            raise UsageError(
                f"--out {out}: holds files and no {RECORD}, which says what they are of; give another --out or empty it"
            )
        try:
            self.journal = Journal(out / RECORD, header)
        except OtherJournal as other:
            raise UsageError(
                f"--out {out}: holds predictions {_other(other, header)}; give another --out or remove the folder"
            ) from None
        self.known = self._by_name(self.journal)
        self._claimed: set[str] = set()

    def name_of(self, path: Path, digest: str) -> tuple[str, str]:
        """The output name of an image, and `done`, `changed` (the file was another picture) or `new`.

        No two files of a run share a name: the first has its stem, others of the same stem a number behind it.
        """
        file = str(path.resolve())
        free = {name: e for name, e in self.known.items() if name not in self._claimed and e["stem"] == path.stem}
        same = [name for name, e in free.items() if e["digest"] == digest and self._is_whole(name)]
        same.sort(key=lambda name: free[name]["file"] != file)
        before = [name for name, e in free.items() if e["file"] == file]
        if same:
            name, state = same[0], "done"
        elif before:
            name, state = before[0], "new" if free[before[0]]["digest"] == digest else "changed"
        else:
            taken = self.known.keys() | self._claimed
            numbered = (path.stem if n == 1 else f"{path.stem}-{n}" for n in range(1, len(taken) + 2))
            name, state = next(name for name in numbered if name not in taken), "new"
        self._claimed.add(name)
        return name, state

    def file(self, part: str, name: str) -> Path:
        """Where a part of a prediction is."""
        return self.out / part / f"{name}{PARTS[part]}"

    def add(self, name: str, path: Path, digest: str, scores: Sequence[float]) -> None:
        """Note an image whose files are all written."""
        entry = {"image": name, "stem": path.stem, "file": str(path.resolve()), "digest": digest}
        self.known[name] = entry | {"scores": [round(score, 4) for score in scores]}
        self.journal.add(self.known[name])

    def write_scores(self, classes: Sequence[str]) -> None:
        """`scores.csv`: class probabilities of every image in the folder, those of a call beside this one too."""
        known = self._by_name(Journal(self.journal.file, self.journal.header))
        text = io.StringIO(newline="")
        writer = csv.writer(text)
        writer.writerow(["image", *classes])
        writer.writerows([name, *(f"{s:.4f}" for s in e["scores"])] for name, e in known.items())
        with whole(self.out / "scores.csv") as partial:
            # surrogateescape: a file name that is no UTF-8 is written as it is
            partial.write_bytes(text.getvalue().encode("utf-8", "surrogateescape"))

    def _by_name(self, journal: Journal) -> dict[str, dict[str, Any]]:
        if any(not entry.keys() >= _FIELDS for entry in journal.entries):
            raise UsageError(f"--out {self.out}: {RECORD} is not one that mcc predict wrote; give another --out")
        return {entry["image"]: entry for entry in journal.entries}

    def _is_whole(self, name: str) -> bool:
        return all(self.file(part, name).is_file() for part in PARTS)


def _other(other: OtherJournal, header: Mapping[str, Any]) -> str:
    if "checkpoint" in other.differing:
        return "of another checkpoint"
    if "protocol" in other.differing:
        return f"by protocol {other.found.get('protocol')}, not {header['protocol']}"
    return "by other parameters of the protocol"
