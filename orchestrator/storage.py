"""Files of trials in a local folder or an S3 bucket, under the same keys; the only module that knows which.

A key is a relative path with forward slashes. A file appears whole or not at all.
"""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

from pyarrow import fs

from mcc_core.errors import UsageError

_BLOCK = 8 << 20  # bytes
T = TypeVar("T")


class Storage:
    """A folder (`/path`, `file:///path`) or a bucket with a prefix (`s3://bucket/prefix`).

    Every method raises FileNotFoundError for a missing key where a file is needed, and OSError when the storage does
    not answer. Raises UsageError for an address it cannot use.
    """

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/") or "/"
        kind, _, rest = self.url.partition("://")
        self._folder: Path | None = None
        if not rest or kind == "file":
            self._folder = Path(rest if kind == "file" else self.url).expanduser().resolve()
            self._root = self._folder.as_posix()
            self._fs: fs.FileSystem = fs.LocalFileSystem()
        elif kind == "s3":
            self._root = rest
            self._fs = _s3(rest.partition("/")[0])
        else:
            raise UsageError(f"MCC_STORAGE: {url}: neither a folder nor s3://bucket/prefix")

    def __reduce__(self) -> tuple[type[Storage], tuple[str]]:
        # By address, never by client: a pickled S3 client carries its secret key.
        return Storage, (self.url,)

    def where(self, key: str) -> str:
        """The full address of a key, for people and for Ray."""
        return f"{self.url}/{key}"

    def local(self, key: str) -> Path | None:
        """The file of a key in a local folder, whether it exists or not; None in a bucket."""
        return self._folder / key if self._folder else None

    def write(self, key: str, data: bytes) -> None:
        """Create or replace a file."""
        if self._folder:
            with _whole(self._folder / key) as partial, partial.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            return
        with self._fs.open_output_stream(self._path(key)) as stream:
            stream.write(data)

    def read(self, key: str) -> bytes:
        """Content of a file."""
        with self._fs.open_input_stream(self._path(key)) as stream:
            return bytes(stream.read())

    def exists(self, key: str) -> bool:
        """Whether there is a file of this key."""
        return self.size(key) is not None

    def size(self, key: str) -> int | None:
        """Bytes of a file, None when there is none."""
        info = self._fs.get_file_info(self._path(key))
        return int(info.size) if info.type == fs.FileType.File else None

    def list(self, prefix: str) -> Sequence[str]:
        """Keys of the files directly in the folder `prefix`, sorted. None there: an empty list."""
        return [key for key, kind in self._entries(prefix) if kind == fs.FileType.File]

    def folders(self, prefix: str) -> Sequence[str]:
        """Keys of the folders directly in the folder `prefix`, sorted."""
        return [key for key, kind in self._entries(prefix) if kind == fs.FileType.Directory]

    def delete(self, key: str) -> None:
        """Remove a file; one that does not exist is no error."""
        if self._folder:
            (self._folder / key).unlink(missing_ok=True)
        elif self.exists(key):
            self._fs.delete_file(self._path(key))

    def delete_folder(self, prefix: str) -> None:
        """Remove a folder and everything in it; one that does not exist is no error."""
        if self._fs.get_file_info(self._path(prefix)).type == fs.FileType.Directory:
            self._fs.delete_dir(self._path(prefix))

    def upload(self, file: Path, key: str, *, move: bool = False) -> None:
        """Store a local file under a key; with `move` the local file is gone afterwards."""
        if self._folder:
            with _whole(self._folder / key) as partial:
                if move:
                    shutil.move(file, partial)  # a rename where both are on one disk
                else:
                    shutil.copyfile(file, partial)
            return
        with file.open("rb") as source, self._fs.open_output_stream(self._path(key)) as stream:
            shutil.copyfileobj(source, stream, _BLOCK)
        if move:
            file.unlink()

    def download(self, key: str, file: Path) -> None:
        """Copy a stored file to a local one."""
        with _whole(file) as partial, self._fs.open_input_stream(self._path(key)) as source, partial.open("wb") as copy:
            shutil.copyfileobj(source, copy, _BLOCK)

    def check(self) -> None:
        """Raise UsageError, naming the cause, unless a file can be written and removed."""
        key = f".mcc-write-check-{os.getpid()}"
        try:
            self.write(key, b"ok")
            self.delete(key)
        except OSError as error:
            reason = " ".join(str(error).split())[:300]
            raise UsageError(f"MCC_STORAGE: {self.url}: cannot be written: {reason}") from None

    def _path(self, key: str) -> str:
        return f"{self._root}/{key}" if key else self._root

    def _entries(self, prefix: str) -> Iterator[tuple[str, fs.FileType]]:
        selector = fs.FileSelector(self._path(prefix), allow_not_found=True)
        start = len(self._root) + 1
        found = sorted((info.path[start:], info.type) for info in self._fs.get_file_info(selector))
        hidden = (".part", "/")
        return ((key, kind) for key, kind in found if not key.endswith(hidden) and key != prefix)


def patiently(action: Callable[[], T], seconds: float = 600.0) -> T:
    """Result of `action`, tried again while storage does not answer, for as long as `seconds`."""
    deadline = time.monotonic() + seconds
    pause = 0.5
    while True:
        try:
            return action()
        except FileNotFoundError:
            raise
        except OSError:
            if time.monotonic() + pause > deadline:
                raise
        time.sleep(pause)
        pause = min(2 * pause, 15.0)


class _whole:  # noqa: N801 (a context manager that reads like a function)
    """A partial file beside the target, renamed over it at the end or removed on failure."""

    def __init__(self, target: Path) -> None:
        self.target = target
        self.partial = target.with_name(f".{target.name}.{os.getpid()}-{threading.get_ident()}.part")

    def __enter__(self) -> Path:
        self.target.parent.mkdir(parents=True, exist_ok=True)
        return self.partial

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if kind is None:
            os.replace(self.partial, self.target)
        else:
            self.partial.unlink(missing_ok=True)


def _s3(bucket: str) -> fs.S3FileSystem:
    """A client by the environment. pyarrow alone does not read the endpoint variables, and would wait very long."""
    if not bucket:
        raise UsageError("MCC_STORAGE: s3:// lacks a bucket: s3://bucket/prefix")
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    parts = urlsplit(endpoint) if endpoint else None
    try:
        return fs.S3FileSystem(
            endpoint_override=parts.netloc if parts else None,
            scheme=parts.scheme if parts else "https",
            region=os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION"),
            connect_timeout=5,
            request_timeout=60,
            retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=3),
        )
    except OSError as error:
        raise UsageError(f"MCC_STORAGE: s3://{bucket}: {' '.join(str(error).split())[:300]}") from None
