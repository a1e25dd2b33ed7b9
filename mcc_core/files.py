"""Files that appear whole or not at all, and the fingerprint of a file's content."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mcc_core.errors import UsageError

PART = ".part"  # suffix of what is being written


@contextmanager
def whole(target: Path) -> Iterator[Path]:
    """A partial file beside the target, renamed over it at the end or removed on failure; makes the folder."""
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.{os.getpid()}-{threading.get_ident()}{PART}")
    try:
        yield partial
        os.replace(partial, target)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def partial_folder(folder: Path, named: str) -> Path:
    """A new folder beside one that is not there yet, or empty, over which it can be renamed once it is whole.

    Raises UsageError, beginning with `named`, where something is there already, or no folder can be.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{named}: is there already; give a folder that is not, or is empty")
    place = folder.resolve()  # of `.` too the folder that it lies in
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{place.name}.", suffix=PART, dir=place.parent))
        partial.chmod(0o755)
    except OSError as error:
        raise UsageError(f"{named}: cannot be made a folder: {error.strerror or error}") from None
    return partial


def made_folder(folder: Path, option: str) -> Path:
    """A user's folder, made where it is not there. Raises UsageError, with the option, where it cannot be one."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError, PermissionError) as error:
        raise UsageError(f"{option} {folder}: cannot be made a folder: {error.strerror}") from None
    return folder


def json_digest(content: object, digits: int = 64) -> str:
    """SHA-256 of a JSON document, whatever the order of its keys; its first hexadecimal digits."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:digits]


def file_digest(file: Path) -> str:
    """SHA-256 of a file, 64 hexadecimal digits. Raises OSError."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def file_stamp(file: Path) -> str:
    """What tells whether a file was touched: its path, size, times and number on the disk. Raises OSError.

    Writing, replacing and copying over a file set the time of its change, which, unlike the time of its content,
    no copy with times kept (`cp -p`, `rsync -t`) sets back.
    """
    stat = file.stat()
    return f"{file.resolve()} {stat.st_size} {stat.st_mtime_ns} {stat.st_ctime_ns} {stat.st_ino}"
