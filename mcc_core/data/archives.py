"""Unpacking datasets' archives, so that an interrupted unpacking goes on and nothing lands outside its folder."""

from __future__ import annotations

import gzip
import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

from mcc_core.errors import DataError
from mcc_core.files import whole

SUFFIXES = (".tar", ".tgz", ".tar.gz", ".zip")
_DAMAGED = (tarfile.TarError, zipfile.BadZipFile, zlib.error, gzip.BadGzipFile, EOFError)


def is_archive(path: Path) -> bool:
    """Whether a path is an archive by its name."""
    return path.is_file() and path.name.lower().endswith(SUFFIXES)


def unpack(archive: Path, folder: Path) -> Path:
    """Unpack into `folder/<archive's name>/`; what is there whole already is not written again.

    Raises DataError for an archive that is cut short, damaged, or would write outside the folder.
    """
    target = folder / archive.name.split(".")[0]
    done = target / ".unpacked"
    stamp = _stamp(archive)
    if done.is_file():
        if (before := done.read_text()) == stamp:
            return target
        if (other := before.split("\n")[0]) != stamp.split("\n")[0] and Path(other).is_file():
            raise DataError(f"{archive}: {target} holds {other}; rename one of the two, or give another --out")
    target.mkdir(parents=True, exist_ok=True)
    try:
        for name, size, copy in _members(archive):
            file = (target / name).resolve()
            if not file.is_relative_to(target.resolve()):
                raise DataError(f"{archive}: {name}: would be written outside the folder; not a dataset's archive")
            if not (file.is_file() and file.stat().st_size == size):
                with whole(file) as partial:
                    copy(partial)
                    if partial.stat().st_size != size:
                        raise EOFError(f"{name} ends early")
    except _DAMAGED as error:
        reason = str(error).splitlines()[0].rstrip(":") if str(error) else type(error).__name__
        raise DataError(f"{archive}: damaged or cut short ({reason}); fetch it again") from None
    except (RuntimeError, NotImplementedError, FileExistsError, NotADirectoryError, IsADirectoryError) as error:
        raise DataError(f"{archive}: cannot be unpacked: {error}") from None  # encrypted; a file where a folder is
    done.write_text(stamp)
    return target


def _members(archive: Path) -> Iterator[tuple[str, int, Callable[[Path], None]]]:
    """(name, size, a function that writes it to a file) of each regular file."""
    if archive.name.lower().endswith(".zip"):
        with zipfile.ZipFile(archive) as content:
            for entry in content.infolist():
                if not entry.is_dir():
                    yield entry.filename, entry.file_size, lambda file, e=entry: _copy(content.open(e), file)  # type: ignore[misc]
        return
    with tarfile.open(archive) as tape:
        for member in tape:
            if member.isfile():
                yield member.name, member.size, lambda file, m=member: _copy(tape.extractfile(m), file)  # type: ignore[misc]
        assert tape.fileobj is not None
        tape.fileobj.seek(tape.offset)
        if tape.fileobj.read(512) != bytes(512):  # tarfile itself takes a cut between two files for the end
            raise EOFError("its end is missing")


def _copy(source: object, file: Path) -> None:
    with source as stream, file.open("wb") as copy:  # type: ignore[attr-defined]
        shutil.copyfileobj(stream, copy, 1 << 20)


def _stamp(archive: Path) -> str:
    stat = archive.stat()
    return f"{archive.resolve()}\n{stat.st_size} {stat.st_mtime_ns}\n"
