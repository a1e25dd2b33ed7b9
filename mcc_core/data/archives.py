"""Unpacking datasets' archives, so that an interrupted unpacking goes on and nothing lands outside its folder."""

from __future__ import annotations

import glob
import gzip
import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from mcc_core.errors import DataError
from mcc_core.files import file_digest, file_stamp, whole

SUFFIXES = (".tar", ".tgz", ".tar.gz", ".zip")
_DONE = ".unpacked"  # in a whole folder: the stamps of its archive, a line for each place it was found at
_DAMAGED = (tarfile.TarError, zipfile.BadZipFile, zlib.error, gzip.BadGzipFile, EOFError)


def is_archive(path: Path) -> bool:
    """Whether a path is an archive by its name."""
    return path.is_file() and path.name.lower().endswith(SUFFIXES)


def opened(sources: Sequence[Path], folder: Path, progress: Callable[[str, int, int], None]) -> list[Path]:
    """Folders as they are, archives unpacked below `folder`. Raises DataError for what is neither."""
    folders = []
    for number, source in enumerate(sources):
        progress("unpacking", number, len(sources))
        if not source.exists():
            raise DataError(f"{source}: no such file or folder")
        if source.is_file() and not is_archive(source):
            raise DataError(f"{source}: neither a folder nor an archive ({', '.join(SUFFIXES)})")
        folders.append(unpack(source, folder) if is_archive(source) else source)
    return folders


def unpack(archive: Path, folder: Path) -> Path:
    """Unpack into `folder/<archive's name>-<digest of its content>/`; what is whole there is not written again.

    The digest keeps two archives of one name apart. An archive that has not been touched since is not read for it.
    Raises DataError for an archive that is cut short, damaged, holds a file twice, or would write outside the folder.
    """
    name, stamp = archive.name.split(".")[0], file_stamp(archive)
    for done in folder.glob(f"{glob.escape(name)}-*/{_DONE}"):
        if stamp in done.read_text(encoding="utf-8").splitlines():
            return done.parent
    target = folder / f"{name}-{file_digest(archive)[:12]}"
    done = target / _DONE
    if not done.is_file():
        target.mkdir(parents=True, exist_ok=True)
        _unpack(archive, target)
    with done.open("a", encoding="utf-8") as stream:
        stream.write(f"{stamp}\n")
    return target


def _unpack(archive: Path, target: Path) -> None:
    name, files = "", set[Path]()
    try:
        for name, size, copy in _members(archive):
            file = (target / name).resolve()
            if not file.is_relative_to(target.resolve()):
                raise DataError(f"{archive}: {name}: would be written outside the folder; not a dataset's archive")
            if file in files:
                raise DataError(f"{archive}: {name}: is in it twice; give its unpacked folder instead")
            files.add(file)
            if not (file.is_file() and file.stat().st_size == size):  # of this very archive, by the target's name
                with whole(file) as partial:
                    copy(partial)
                    if partial.stat().st_size != size:
                        raise EOFError(f"{name} ends early")
    except _DAMAGED as error:
        reason = "it ends early" if isinstance(error, EOFError) else f"after {name}" if name else "no such archive"
        raise DataError(f"{archive}: damaged or cut short ({reason}); fetch it again") from None
    except (FileExistsError, NotADirectoryError, IsADirectoryError):
        raise DataError(f"{archive}: {name}: is a file and a folder in it; give its unpacked folder instead") from None
    except NotImplementedError:
        raise DataError(f"{archive}: {name}: packed in a way that is not known; give its unpacked folder") from None
    except RuntimeError:  # what zipfile raises for a password
        raise DataError(f"{archive}: {name}: is encrypted; give its unpacked folder") from None


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
            if member.issym() or member.islnk():
                raise DataError(f"{archive}: {member.name}: is a link; give its unpacked folder instead")
            if member.isfile():
                yield member.name, member.size, lambda file, m=member: _copy(tape.extractfile(m), file)  # type: ignore[misc]
        assert tape.fileobj is not None
        tape.fileobj.seek(tape.offset)
        if tape.fileobj.read(512) != bytes(512):  # tarfile itself takes a cut between two files for the end
            raise EOFError("its end is missing")


def _copy(source: object, file: Path) -> None:
    with source as stream, file.open("wb") as copy:  # type: ignore[attr-defined]
        shutil.copyfileobj(stream, copy, 1 << 20)
