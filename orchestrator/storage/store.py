"""Files of trials in a local folder or an S3 bucket, under the same keys; the only module that knows which.

A key is a relative path with forward slashes. A file appears whole or not at all.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar
from urllib.parse import urlsplit

from pyarrow import fs

from mcc_core.errors import UsageError
from mcc_core.files import PART, whole
from orchestrator.text import reason

_BLOCK = 8 << 20  # bytes
PATIENCE_S = 600.0
_RACES = 100  # that a question to a folder may lose in a row
_CONNECT_S, _ANSWER_S, _TRIES = 5, 20, 3  # then whoever asked decides whether to go on trying
_AT_ONCE = 32  # requests to a bucket under way; each waits for the network, not for this machine
S = TypeVar("S")
T = TypeVar("T")


@dataclass(frozen=True)
class Stored:
    """A file in storage, or an upload that was begun and never ended."""

    key: str
    size: int  # bytes; 0 where it is not known
    modified: float  # unix seconds
    upload: str = ""  # the server's id of an unfinished upload


class Storage:
    """A folder (`/path`, `file:///path`) or a bucket with a prefix (`s3://bucket/prefix`).

    Every method raises FileNotFoundError for a missing key where a file is needed, ValueError for a key that leads
    out of the storage, and OSError when the storage does not answer. Raises UsageError for an address it cannot use.
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
            if "@" in rest or "?" in rest:
                raise UsageError(
                    "MCC_STORAGE: give s3://bucket/prefix alone; keys come from AWS_ACCESS_KEY_ID and "
                    "AWS_SECRET_ACCESS_KEY (or the AWS files), the address of a server from AWS_ENDPOINT_URL"
                )
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
        return self._folder / _inside(key) if self._folder else None

    def write(self, key: str, data: bytes) -> None:
        """Create or replace a file."""
        if self._folder:
            with whole(self._folder / _inside(key)) as partial, partial.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            return
        with self._fs.open_output_stream(self._path(key)) as stream:
            stream.write(data)

    def create(self, key: str, data: bytes) -> bool:
        """Create a file unless there is one; whether it was created, by exactly one of several who try at once.

        Servers that know no conditional writes (If-None-Match) just write."""
        if self._folder:
            target = self._folder / _inside(key)
            partial = target.with_name(f".{target.name}.{os.getpid()}.{threading.get_ident()}{PART}")
            partial.parent.mkdir(parents=True, exist_ok=True)
            partial.write_bytes(data)
            try:
                os.link(partial, target)
            except FileExistsError:
                return False
            finally:
                partial.unlink()
            return True
        if self.exists(key):
            return False
        full = self._path(key).partition("/")[2]
        answer = self._asked(
            lambda s3: s3.put_object(Bucket=self.bucket, Key=full, Body=data, IfNoneMatch="*"),
            missing={"PreconditionFailed", "ConditionalRequestConflict", "412", "409", "NotImplemented", "501"},
        )
        if answer is None and not self.exists(key):
            self.write(key, data)
            return True
        return answer is not None

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

    def stored(self, key: str) -> Stored | None:
        """Size and age of a file, None when there is none."""
        info = self._fs.get_file_info(self._path(key))
        return Stored(key, int(info.size), info.mtime.timestamp()) if info.type == fs.FileType.File else None

    def list(self, prefix: str) -> Sequence[str]:
        """Keys of the files directly in the folder `prefix`, sorted. None there: an empty list."""
        return [key for key, kind in self._entries(prefix) if kind == fs.FileType.File]

    def folders(self, prefix: str) -> Sequence[str]:
        """Keys of the folders directly in the folder `prefix`, sorted."""
        return [key for key, kind in self._entries(prefix) if kind == fs.FileType.Directory]

    def delete(self, key: str) -> None:
        """Remove a file; one that does not exist is no error."""
        if self._folder:
            (self._folder / _inside(key)).unlink(missing_ok=True)
        elif self.exists(key):
            self._fs.delete_file(self._path(key))

    def delete_folder(self, prefix: str) -> None:
        """Remove a folder and everything in it; one that does not exist is no error."""

        def delete() -> None:
            if self._fs.get_file_info(self._path(prefix)).type == fs.FileType.Directory:
                self._fs.delete_dir(self._path(prefix))

        _despite_others(delete)

    def each(self, work: Callable[[S], T], items: Iterable[S]) -> Sequence[T]:
        """Results of `work`, which asks this storage, on each item, in order. A bucket is asked many things at once."""
        if self._folder:  # answers at once: threads would only get in each other's way
            return [work(item) for item in items]
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            return [*pool.map(work, items)]

    def upload(self, file: Path, key: str, *, move: bool = False) -> None:
        """Store a local file under a key; with `move` the local file is gone afterwards, and not before."""
        if self._folder:
            self._place(file, self._folder / _inside(key), move=move)
            return
        with file.open("rb") as source:
            stream = self._fs.open_output_stream(self._path(key))
            try:
                shutil.copyfileobj(source, stream, _BLOCK)
            except BaseException:
                with contextlib.suppress(OSError):  # closing is what makes the object appear, cut short
                    stream.close()
                    self._fs.delete_file(self._path(key))
                raise
            stream.close()
        if move:
            file.unlink()

    def _place(self, file: Path, target: Path, *, move: bool) -> None:
        """Copy or move within this machine: whoever is killed in between leaves the file whole in one of the places."""
        if move:
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.replace(file, target)
                return
            except OSError as error:
                if error.errno != errno.EXDEV:  # another disk: a copy
                    raise
        with whole(target) as partial:
            shutil.copyfile(file, partial)
        if move:
            file.unlink()

    def download(self, key: str, file: Path) -> None:
        """Copy a stored file to a local one."""
        with whole(file) as partial, self._fs.open_input_stream(self._path(key)) as source, partial.open("wb") as copy:
            shutil.copyfileobj(source, copy, _BLOCK)

    def check(self) -> None:
        """Raise UsageError, naming the cause, unless a file can be written and removed."""
        key = f".mcc-write-check-{os.getpid()}"
        try:
            self.write(key, b"ok")
            self.delete(key)
        except OSError as error:
            raise UsageError(
                f"MCC_STORAGE: {self.url}: cannot be written: {reason(error)}; mcc storage check says more"
            ) from None

    def files(self, prefix: str, *, parts: bool = False) -> Iterator[Stored]:
        """Every file below a folder, in any depth; with `parts` what killed processes left of files instead."""
        start = len(self._root) + 1
        for info in self._infos(prefix, recursive=True):
            if info.type == fs.FileType.File and info.path.endswith(PART) == parts:
                yield Stored(info.path[start:], int(info.size), info.mtime.timestamp())

    def free_bytes(self) -> int | None:
        """What the disk of a folder has left; None for a bucket."""
        return free_bytes(self._folder) if self._folder else None

    @property
    def bucket(self) -> str | None:
        """Name of the bucket; None for a folder."""
        return None if self._folder else self._root.partition("/")[0]

    def bucket_exists(self) -> bool:
        """Whether the bucket is there for these credentials. Raises OSError with the server's answer otherwise."""
        return bool(self._asked(lambda s3: s3.head_bucket(Bucket=self.bucket), missing={"404", "NoSuchBucket"}))

    def create_bucket(self) -> None:
        """Make the bucket, where it is missing."""
        region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1"
        place = {} if region == "us-east-1" else {"CreateBucketConfiguration": {"LocationConstraint": region}}
        self._asked(lambda s3: s3.create_bucket(Bucket=self.bucket, **place), missing={"BucketAlreadyOwnedByYou"})

    def unfinished_uploads(self) -> Sequence[Stored]:
        """Uploads below the prefix that were begun and neither ended nor given up; they cost space in a bucket."""
        if self._folder:
            return []
        start = len(self._root.partition("/")[2]) + 1 if "/" in self._root else 0
        uploads = []
        pages = self._asked(
            lambda s3: list(
                s3.get_paginator("list_multipart_uploads").paginate(
                    Bucket=self.bucket, Prefix=self._root.partition("/")[2]
                )
            )
        )
        for page in pages:
            for upload in page.get("Uploads", []):
                begun: datetime = upload["Initiated"]
                uploads.append(Stored(upload["Key"][start:], 0, begun.timestamp(), upload["UploadId"]))
        return uploads

    def abort_upload(self, upload: Stored) -> None:
        """Give up an unfinished upload."""
        key = "/".join(part for part in (self._root.partition("/")[2], upload.key) if part)
        self._asked(
            lambda s3: s3.abort_multipart_upload(Bucket=self.bucket, Key=key, UploadId=upload.upload),
            missing={"404", "NoSuchUpload"},
        )

    def _asked(self, question: Callable[[Any], Any], missing: Collection[str] = ()) -> Any:
        """The server's answer through boto3, None where its error code is in `missing`; other errors are OSErrors."""
        import boto3
        from botocore.config import Config
        from botocore.exceptions import BotoCoreError, ClientError

        config = Config(connect_timeout=_CONNECT_S, read_timeout=_ANSWER_S, retries={"total_max_attempts": _TRIES})
        try:
            region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
            client = boto3.Session().client  # not the default session, which keeps the first credentials it saw
            return question(client("s3", endpoint_url=_endpoint(), region_name=region, config=config))
        except ClientError as error:
            if error.response["Error"]["Code"] in missing:
                return None
            raise OSError(f"{error.response['Error']['Code']}: {reason(error)}") from None
        except BotoCoreError as error:
            raise OSError(reason(error)) from None

    def _path(self, key: str) -> str:
        return f"{self._root}/{_inside(key)}" if key else self._root

    def _entries(self, prefix: str) -> Iterator[tuple[str, fs.FileType]]:
        start = len(self._root) + 1
        entries = ((info.path[start:], info.type) for info in self._infos(prefix))
        return ((key, kind) for key, kind in entries if not key.endswith((PART, "/")) and key != prefix)

    def _infos(self, prefix: str, *, recursive: bool = False) -> Sequence[fs.FileInfo]:
        """What is in a folder, sorted; nothing where there is none."""
        selector = fs.FileSelector(self._path(prefix), allow_not_found=True, recursive=recursive)
        return _despite_others(lambda: sorted(self._fs.get_file_info(selector), key=lambda info: str(info.path)))


def _despite_others(action: Callable[[], T]) -> T:
    """Result of `action`, done again where somebody else made or removed its folder meanwhile."""
    for _ in range(_RACES):
        with contextlib.suppress(FileNotFoundError):
            return action()
    return action()


def retry(
    action: Callable[[], T], seconds: float = PATIENCE_S, when: Callable[[OSError], bool] = lambda error: True
) -> T:
    """Result of `action`, tried again while storage does not answer (or `when` the error is such), for `seconds`."""
    deadline = time.monotonic() + seconds
    pause = 0.5
    while True:
        try:
            return action()
        except FileNotFoundError:
            raise
        except OSError as error:
            if not when(error) or time.monotonic() + pause > deadline:
                raise
        time.sleep(pause)
        pause = min(2 * pause, 15.0)


def is_full(error: OSError) -> bool:
    """Whether a disk, or what the user may have of it, is full: somebody can make room, and work goes on."""
    return error.errno in {errno.ENOSPC, errno.EDQUOT}


def is_away(error: OSError) -> bool:
    """Whether an S3 server did not answer, or answered with an error of its own."""
    return error.errno is None or "AWS Error" in str(error)


def free_bytes(folder: Path) -> int:
    """What the disk has left on which a folder lies or would lie."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def _inside(key: str) -> str:
    path = PurePosixPath(key)
    if path.is_absolute() or ".." in path.parts or "\0" in key:
        raise ValueError(f"{key!r} is not a key inside the storage")
    return key


def _endpoint() -> str | None:
    """Address of an S3 server that is not AWS. Ray and MLflow read a variable each: one is enough for all."""
    names = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "MLFLOW_S3_ENDPOINT_URL")
    endpoint = next((os.environ[name] for name in names if os.environ.get(name)), None)
    if endpoint is not None:
        if urlsplit(endpoint).scheme not in {"http", "https"} or "@" in endpoint:
            raise UsageError("AWS_ENDPOINT_URL: expected http://host:port or https://host, and nothing else in it")
        for name in names[1:]:
            os.environ.setdefault(name, endpoint)
    return endpoint


def _s3(bucket: str) -> fs.S3FileSystem:
    """A client by the environment. pyarrow alone does not read the endpoint variables, and would wait very long."""
    if not bucket:
        raise UsageError("MCC_STORAGE: s3:// lacks a bucket: s3://bucket/prefix")
    endpoint = _endpoint()
    parts = urlsplit(endpoint) if endpoint else None
    try:
        return fs.S3FileSystem(
            endpoint_override=parts.netloc if parts else None,
            scheme=parts.scheme if parts else "https",
            region=os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION"),
            connect_timeout=_CONNECT_S,
            request_timeout=_ANSWER_S,
            retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=_TRIES),
            allow_delayed_open=True,  # one request for a small file instead of three
        )
    except OSError as error:
        raise UsageError(f"MCC_STORAGE: s3://{bucket}: {reason(error)}") from None
