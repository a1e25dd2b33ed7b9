"""Whether the storage is in order, and what in it nobody needs any more: the answers behind `mcc storage`."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path

from orchestrator.records import layout, local_places
from orchestrator.records import sweeps as catalog
from orchestrator.records.checkpoints import KEPT, best_saved, saved_checkpoints
from orchestrator.records.leases import claimed, deleting
from orchestrator.settings import Settings
from orchestrator.storage.store import Storage, Stored, free_bytes
from orchestrator.text import reason, size_text

YOUNG_S = 3600.0  # what is younger may belong to a process that just begins
_LITTLE = 5 << 30  # bytes; less free disk than that is said
_TOPS = ("trials", "labels", "sweeps", "leases", "ray", layout.FILES)
_IDENTITY = re.compile(r"\b(?:[0-9a-f]{16}|[0-9a-f]{64})\b")  # of a trial or a label set; of a file that was sent
_PROBE = os.urandom(1 << 20)


@dataclass(frozen=True)
class Finding:
    """One line of `mcc storage check`."""

    name: str
    good: bool
    detail: str
    fix: str = ""


def check(settings: Settings, *, create: bool = False) -> Iterator[Finding]:
    """Try everything that trials do with storage. Ends at the first thing that makes the rest pointless.

    Args:
        create: make a bucket that is missing.
    """
    storage = Storage(settings.storage)
    if storage.bucket is not None:
        findings = _bucket(storage, create)
        yield findings
        if not findings.good:
            return
    key = f".mcc-check-{os.getpid()}/probe"
    where = "the folder" if storage.bucket is None else "the bucket"
    steps: list[tuple[str, Callable[[], object], str]] = [
        ("write 1 MiB", lambda: storage.write(key, _PROBE), f"let this user write to {where} ({storage.url})"),
        ("read it", lambda: _same(storage.read(key)), f"let this user read from {where}"),
        ("list", lambda: _listed(storage, key), f"let this user list {where} (s3:ListBucket)"),
        ("delete", lambda: storage.delete_folder(key.split("/")[0]), f"let this user delete in {where}"),
    ]
    for name, action, fix in steps:
        began = time.perf_counter()
        try:
            action()
        except OSError as error:
            yield Finding(name, False, reason(error), fix)
            return
        yield Finding(name, True, f"{1000 * (time.perf_counter() - began):.0f} ms")
    disks = {"home (MCC_HOME)": settings.home, "temporary files of Ray": Path(_ray_folder())}
    if (folder := storage.local("")) is not None and folder != settings.home:
        disks = {"storage (MCC_STORAGE)": folder} | disks
    for name, folder in disks.items():
        free = free_bytes(folder)
        yield Finding(
            f"free disk, {name}", free > _LITTLE, f"{size_text(free)} at {folder}", "make room, or choose another disk"
        )


@dataclass(frozen=True)
class Garbage:
    """Something that nobody needs any more."""

    what: str
    key: str
    size: int  # bytes
    stored: tuple[Stored, ...]
    folder: bool = False
    local: Path | None = None  # of this machine and not of the storage: a copy, which is fetched or packed again


def garbage(
    storage: Storage, home: Path, *, keep: int = KEPT, older_s: float = YOUNG_S
) -> tuple[list[Garbage], list[str]]:
    """(what nothing refers to, notes about what is left alone).

    Trials, label sets, sent files and Ray's books of sweeps that are not on record, checkpoints beyond the newest
    `keep` and the best, files without their other half, parts that killed processes left, uploads that never ended; of
    this machine the packed label sets and fetched checkpoints below `home` that no sweep on record names, and what
    killed attempts left of label sets that none names or that are in storage. Nothing of a trial or sweep that a living
    process holds a lease of, nothing younger than `older_s` seconds.
    """
    modes = _referred(storage)
    trials, sweeps = claimed(storage)
    limit = time.time() - older_s
    unused: list[Garbage] = []
    for folder, files in _by_folder(storage, layout.TRIALS).items():
        if folder in trials or any(file.modified > limit for file in files):
            continue
        if folder not in modes:
            unused.append(_all("trial of no sweep", layout.trial(folder), files))
        else:
            unused += _checkpoints(storage, folder, modes[folder], keep, {file.key: file for file in files})
    labels = _by_folder(storage, layout.LABELS)
    for folder, files in labels.items():
        if folder not in trials | modes.keys() and all(file.modified <= limit for file in files):
            unused.append(_all("labels of no sweep", layout.labels(folder), files))
    for folder, files in _by_folder(storage, layout.FILES).items():
        if folder not in modes and all(file.modified <= limit for file in files):
            unused.append(_all("file of no sweep", f"{layout.FILES}/{folder}", files))
    ids = {sweep.id for sweep in catalog.sweeps(storage)}
    for name in ("ray", "sweeps"):
        for folder, files in _by_folder(storage, name).items():
            if folder in sweeps or (name == "sweeps" and folder in ids) or any(file.modified > limit for file in files):
                continue
            what = "Ray's own books" if name == "ray" else "sweep without a plan"
            unused.append(_all(what, f"{name}/{folder}", files))
    parts = [file for top in _TOPS for file in storage.files(top, parts=True)]
    for what, ones in (("part of a killed process", parts), ("upload that never ended", storage.unfinished_uploads())):
        unused += [_one(what, file) for file in ones if file.modified <= limit and not _leased(file, trials | sweeps)]
    for what, top in (("packed label set of no sweep", "label-sets"), ("fetched checkpoint of no sweep", "fetched")):
        copies = {path: path.name.partition(".")[0] for path in (home / top).glob("*")}
        unused += _local(what, copies, trials | modes.keys(), limit)
    begun = [path.name for path in (home / local_places.WORK).glob("*")]
    there = {local_places.unfinished_labels(home, identity, storage): identity for identity in begun}
    unfinished = {path: identity for path, identity in there.items() if path.is_dir()}
    unused += _local("unfinished label set", unfinished, trials | (modes.keys() - labels.keys()), limit)
    return unused, _unsent(storage, home, trials)


def remove(storage: Storage, unused: Sequence[Garbage]) -> list[Garbage]:
    """Delete garbage; returns what went: all but trials that a sweep has come to refer to since.

    Raises UsageError when one of the trials is being run.
    """
    trials = {
        (item.key.split("/")[1], item.key): item
        for item in unused
        if item.folder and item.key.startswith((f"{layout.TRIALS}/", f"{layout.LABELS}/", f"{layout.FILES}/"))
    }
    local = [item.local for item in unused if item.local is not None]
    attempts = {path.parent.name for path in local if path.parent.parent.name == local_places.WORK}
    with deleting(storage, "", attempts | {identity for identity, _ in trials}) as lease:
        referred = _referred(storage)
        kept = [item for (identity, _), item in trials.items() if identity in referred]
        gone = [item for item in unused if not any(item is other for other in kept)]
        for item in gone:
            lease.refresh()
            if item.local is not None:
                _delete_local(item.local)
            elif item.folder:
                storage.delete_folder(item.key)
            for stored in () if item.folder else item.stored:
                if stored.upload:
                    storage.abort_upload(stored)
                else:
                    storage.delete(stored.key)
    return gone


def _bucket(storage: Storage, create: bool) -> Finding:
    name = f"bucket {storage.bucket}"
    began = time.perf_counter()
    try:
        if storage.bucket_exists():
            return Finding(name, True, f"answers in {1000 * (time.perf_counter() - began):.0f} ms")
        if not create:
            return Finding(name, False, "does not exist", "mcc storage check --create")
        storage.create_bucket()
        return Finding(name, True, "made")
    except OSError as error:
        text = reason(error)
        fix = "check AWS_ENDPOINT_URL and that the server runs"
        if text.startswith(("403", "401", "InvalidAccessKeyId", "SignatureDoesNotMatch", "AccessDenied")):
            fix = "check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and what they may do"
        elif "credentials" in text.lower():
            fix = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or make ~/.aws/credentials"
        return Finding(name, False, text, fix)


def _same(data: bytes) -> None:
    if data != _PROBE:
        raise OSError("what was read is not what was written")


def _listed(storage: Storage, key: str) -> None:
    if storage.list(key.split("/")[0]) != [key]:
        raise OSError("a file that was written is not in the list")


def _ray_folder() -> str:
    return os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()


def _by_folder(storage: Storage, top: str) -> dict[str, list[Stored]]:
    """Files by the folder directly below `top`, from one listing."""
    files: dict[str, list[Stored]] = defaultdict(list)
    for file in storage.files(top):
        parts = file.key.split("/")
        if len(parts) > 2:
            files[parts[1]].append(file)
    return dict(sorted(files.items()))


def _checkpoints(
    storage: Storage, identity: str, modes: set[str], keep: int, files: dict[str, Stored]
) -> Iterator[Garbage]:
    saved = saved_checkpoints(storage, identity)
    whole = {s.key(identity) for s in saved}
    wanted = {s.key(identity) for s in saved[-keep:]}
    wanted |= {best.key(identity) for mode in modes if (best := best_saved(saved, mode)) is not None}
    for key, stored in files.items():
        _, _, kind, *rest = key.split("/")
        if kind != "checkpoints" or not rest:
            continue
        file = key.removesuffix(".json")
        other = file if key != file else f"{key}.json"
        if other not in files:
            yield _one("half of a checkpoint", stored)
        elif file not in whole:
            yield _one("checkpoint that cannot be used", stored)
        elif file not in wanted:
            yield _one("checkpoint beyond those kept", stored)


def _referred(storage: Storage) -> dict[str, set[str]]:
    """What each trial that any file of a sweep names is compared by: max, min."""
    references: dict[str, set[str]] = defaultdict(set)
    modes = {sweep.id: {sweep.mode} for sweep in catalog.sweeps(storage)}
    for file in storage.files(layout.SWEEPS):
        if file.key.endswith((".json", ".jsonl")):
            for identity in _IDENTITY.findall(storage.read(file.key).decode("utf-8", "replace")):
                references[identity] |= modes.get(file.key.split("/")[1], {"max", "min"})
    return references


def _leased(file: Stored, names: set[str]) -> bool:
    return any(part in names for part in file.key.split("/"))


def _local(what: str, there: Mapping[Path, str], needed: Set[str], limit: float) -> Iterator[Garbage]:
    """What this machine has of identities that are not needed."""
    for path in sorted(path for path, identity in there.items() if identity not in needed):
        with contextlib.suppress(FileNotFoundError):  # somebody else cleans too
            stats = [file.stat() for file in (path.rglob("*") if path.is_dir() else [path]) if file.is_file()]
            # Not the time of modification, which may be that of the object in the bucket.
            if all(stat.st_ctime <= limit for stat in stats):
                yield Garbage(what, str(path), sum(stat.st_size for stat in stats), (), local=path)


def _delete_local(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _unsent(storage: Storage, home: Path, trials: set[str]) -> list[str]:
    """What waits in outboxes of this machine for trials that nobody runs: measured, so never garbage."""
    notes = []
    every = home / local_places.OUTBOX
    for folder in sorted(every.iterdir()) if every.is_dir() else ():
        identity = local_places.outbox_trial(folder)
        with contextlib.suppress(OSError):
            waiting = [file for file in folder.rglob("*") if file.is_file()]
            own = folder.name == identity or folder == local_places.outbox(home, identity, storage)
            to = "" if own else ", with the storage that it ran with,"
            if waiting and identity not in trials:
                size = size_text(sum(file.stat().st_size for file in waiting))
                notes.append(f"{size} of trial {identity} wait in {folder}: submit its sweep again{to} to send them")
    return notes


def _all(what: str, key: str, files: Sequence[Stored]) -> Garbage:
    return Garbage(what, key, sum(file.size for file in files), tuple(files), folder=True)


def _one(what: str, file: Stored) -> Garbage:
    return Garbage(what, file.key, file.size, (file,))
