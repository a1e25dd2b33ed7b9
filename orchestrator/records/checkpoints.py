"""The checkpoints of a trial in storage: the last two and the best, each with a sidecar that says it is complete.

Every attempt writes under names of its own, so that a late one cannot replace what another wrote.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from mcc_core.errors import MCCError
from mcc_core.files import file_digest
from orchestrator.records import layout
from orchestrator.records.events import newest_attempt, starts
from orchestrator.storage.outbox import Outbox
from orchestrator.storage.store import Storage, retry

KEPT = 2  # newest checkpoints kept beside the best


@dataclass(frozen=True)
class CheckpointRecord:
    """A stored checkpoint, as its sidecar describes it."""

    iteration: int
    size: int  # bytes
    sha256: str
    score: float | None = None  # of the sweep's metric
    attempt: int = 0  # that wrote it; 0 where it is not known

    @classmethod
    def of(cls, file: Path, iteration: int, score: float | None, attempt: int, sha256: str = "") -> CheckpointRecord:
        """Describe a local checkpoint file; its digest is made where it is not known."""
        return cls(iteration, file.stat().st_size, sha256 or file_digest(file), score, attempt)

    def key(self, identity: str) -> str:
        """Key of the file; the sidecar has `.json` behind it."""
        by = f"-{self.attempt:04d}" if self.attempt else ""
        return f"{layout.checkpoints(identity)}/{self.iteration:07d}{by}.pt"


class CheckpointStore:
    """Stores a trial's checkpoints through an outbox and removes those that are not worth keeping."""

    def __init__(
        self, outbox: Outbox, identity: str, mode: str, saved: Sequence[CheckpointRecord], start: int, attempt: int
    ) -> None:
        """`saved` is what storage has; what is beyond the iteration `start` that an attempt goes on from is spoiled."""
        self.outbox, self.identity, self.mode, self.attempt = outbox, identity, mode, attempt
        self.saved = list(saved)
        for record in [s for s in saved if s.iteration > start]:
            self._remove(record)

    def add(self, file: Path, iteration: int, score: float | None, sha256: str = "") -> str:
        """Queue a local checkpoint file, which is moved away, and its sidecar after it. Returns its key."""
        record = CheckpointRecord.of(file, iteration, score, self.attempt, sha256)
        key = record.key(self.identity)
        self.outbox.put_file(key, file)
        self.outbox.put(f"{key}.json", json.dumps(asdict(record)).encode())
        self.saved = [s for s in self.saved if s.key(self.identity) != key] + [record]
        self._prune()
        return key

    def _prune(self) -> None:
        keep = sorted(self.saved, key=_order)[-KEPT:]
        if (best := best_saved(self.saved, self.mode)) is not None:
            keep.append(best)
        for record in [s for s in self.saved if s not in keep]:
            self._remove(record)

    def _remove(self, record: CheckpointRecord) -> None:
        key = record.key(self.identity)
        self.outbox.put_delete(f"{key}.json")  # first, so that no sidecar promises a file that is gone
        self.outbox.put_delete(key)
        self.saved.remove(record)


def best_saved(saved: Sequence[CheckpointRecord], mode: str) -> CheckpointRecord | None:
    """The checkpoint with the best score; the earlier one of equals."""
    scored = [s for s in saved if s.score is not None and s.score == s.score]
    if not scored:
        return None
    sign = 1 if mode == "max" else -1
    return max(scored, key=lambda s: (sign * (s.score or 0.0), -s.iteration))


def saved_checkpoints(storage: Storage, identity: str) -> list[CheckpointRecord]:
    """Complete checkpoints in order of iteration.

    A sidecar that cannot be read does not count, and neither does what an attempt wrote after another had begun
    before that iteration: the trial's history is the other's from there.
    """
    saved = []
    for key in storage.list(layout.checkpoints(identity)):
        if key.endswith(".pt.json"):
            try:
                saved.append(CheckpointRecord(**json.loads(storage.read(key))))
            except (ValueError, TypeError):
                continue
    known = [s.attempt for s in saved if s.attempt]
    begun = starts(storage, identity, after=min(known)) if known else {}

    def stands(record: CheckpointRecord) -> bool:
        later = [first for number, first in begun.items() if number > record.attempt]
        return not record.attempt or all(record.iteration <= first for first in later)

    return sorted(filter(stands, saved), key=_order)


def _order(record: CheckpointRecord) -> tuple[int, int]:
    return record.iteration, record.attempt


def newest_checkpoint(
    storage: Storage, identity: str, folder: Path, *, only: int | None = None
) -> tuple[CheckpointRecord | None, Path | None, list[str]]:
    """(checkpoint, local file, complaints): the newest whose content is what was written.

    A file in a bucket is copied into `folder`. Complaints name files that are cut short or changed.

    Args:
        only: consider this iteration's checkpoint alone.
    """
    complaints: list[str] = []
    for record in reversed(saved_checkpoints(storage, identity)):
        if only is not None and record.iteration != only:
            continue
        key = record.key(identity)
        if (size := storage.size(key)) != record.size:
            was = "is missing" if size is None else f"has {size} bytes instead of {record.size}"
            complaints.append(f"{storage.where(key)} {was}")
            continue
        file = storage.local(key)
        if file is None:
            file = folder / f"{record.iteration:07d}.resume.pt"
            storage.download(key, file)
        if file_digest(file) == record.sha256:
            return record, file, complaints
        complaints.append(f"{storage.where(key)} is not what was written")
    return None, None, complaints


def newest_iteration(storage: Storage, identity: str) -> int:
    """Iteration of a trial's newest complete checkpoint, 0 without one. Waits for storage that is away."""
    saved = retry(lambda: saved_checkpoints(storage, identity))
    return saved[-1].iteration if saved else 0


def copy_checkpoint(storage: Storage, donor: str, iteration: int, identity: str) -> None:
    """Put a trial's checkpoint into another trial's folder, in place of one of the same iteration.

    Raises MCCError when the checkpoint is not there or not what was written.
    """
    with tempfile.TemporaryDirectory() as folder:
        record, file, complaints = newest_checkpoint(storage, donor, Path(folder), only=iteration)
        if record is None or file is None:
            raise MCCError(
                "; ".join(complaints) or f"{storage.where(layout.trial(donor))}: no checkpoint at {iteration}"
            )
        for own in saved_checkpoints(storage, identity):
            if own.iteration == iteration:
                storage.delete(f"{own.key(identity)}.json")  # until the file is whole nothing promises it
        copy = replace(record, attempt=newest_attempt(storage, identity))
        storage.upload(file, copy.key(identity))
        storage.write(f"{copy.key(identity)}.json", json.dumps(asdict(copy)).encode())
