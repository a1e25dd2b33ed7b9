"""Files on their way to storage: first on local disk, then sent in order by a thread, however long that takes.

Nothing that was put in is lost when storage is away for a while or the process is killed: what was not sent stays in
the outbox's folder and is sent first by the next outbox of the same folder. On a full disk putting waits for space.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import quote, unquote

from orchestrator.processes import born
from orchestrator.storage.store import Storage, is_full, retry

_RETRY_S = (0.5, 1.0, 2.0, 5.0, 10.0)  # pauses between attempts at one file


class Outbox:
    """An ordered queue of (key, file) with one sender. Not for two processes at once on one folder."""

    def __init__(self, storage: Storage, folder: Path, current: Callable[[], bool] = lambda: True) -> None:
        """`current`, asked before each file: whether there is still somebody to speak for."""
        self.storage, self._current = storage, current
        self.superseded = False  # whether there no longer was; what is put in then is dropped
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        for partial in folder.glob("*.part"):
            partial.unlink()
        waiting = self._waiting()
        self._next = 1 + max((int(path.name[:8]) for path in waiting), default=0)
        self._changed = threading.Condition()
        self._closing = False
        self.error: str | None = None  # why the oldest file could not be sent, while that is so
        self._thread = threading.Thread(target=self._send_all, name="outbox", daemon=True)
        self._thread.start()

    def put(self, key: str, data: bytes) -> None:
        """Queue a file with this content."""
        retry(lambda: self._queue(self._written(data), "put", key), when=is_full)

    def put_file(self, key: str, file: Path) -> None:
        """Queue a file, which is moved away."""
        self._queue(file, "put", key)

    def put_delete(self, key: str) -> None:
        """Queue the removal of a stored file, after everything queued before."""
        retry(lambda: self._queue(self._written(b""), "del", key), when=is_full)

    def drain(self, timeout: float) -> bool:
        """Wait until everything queued is stored; False when that takes longer than `timeout` seconds."""
        deadline = time.monotonic() + timeout
        with self._changed:
            self._changed.notify_all()  # no pause before the next attempt
            while self._waiting():
                left = deadline - time.monotonic()
                if left <= 0:
                    return False
                self._changed.wait(min(left, 0.5))
        return True

    def close(self, timeout: float) -> bool:
        """Drain, then end the sender. What is left stays on disk; False when something is."""
        done = self.drain(timeout)
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join(timeout=5)
        with contextlib.suppress(OSError):  # not empty: the rest waits for the next outbox
            self.folder.rmdir()
        return done

    def _written(self, data: bytes) -> Path:
        partial = self.folder / f"{threading.get_ident()}.part"
        try:
            with partial.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        except OSError:
            with contextlib.suppress(OSError):
                partial.unlink()
            raise
        return partial

    def _queue(self, file: Path, action: str, key: str) -> None:
        with self._changed:
            if self.superseded:
                file.unlink()
                return
            os.replace(file, self.folder / f"{self._next:08d}-{action}-{quote(key, safe='')}")
            self._next += 1
            self._changed.notify_all()

    def _waiting(self) -> list[Path]:
        return sorted(path for path in self.folder.iterdir() if path.suffix != ".part")

    def _send_all(self) -> None:
        failures = 0
        while True:
            with self._changed:
                if self._closing:
                    return
                waiting = self._waiting()
                if not waiting:
                    self._changed.wait(5)
                    continue
            try:
                if not self._current():
                    self._drop()
                    return
                self._send(waiting[0])
                failures, self.error = 0, None
                with self._changed:
                    self._changed.notify_all()
            except OSError as error:
                self.error = " ".join(str(error).split())[:300]
                with self._changed:
                    self._changed.wait(_RETRY_S[min(failures, len(_RETRY_S) - 1)])
                failures += 1

    def _drop(self) -> None:
        with self._changed:
            self.superseded = True
            for file in self._waiting():
                file.unlink()
            self._changed.notify_all()

    def _send(self, file: Path) -> None:
        _, action, key = file.name.split("-", 2)
        key = unquote(key)
        if action == "put":
            self.storage.upload(file, key, move=True)
        else:
            self.storage.delete(key)
            with contextlib.suppress(FileNotFoundError):
                file.unlink()


@contextlib.contextmanager
def alone(file: Path, seconds: float = 30.0) -> Iterator[None]:
    """Hold a lock that the system takes from a process when it dies, whatever processes that one started. A
    predecessor that is being ended is waited for; one that stands still for `seconds` is killed, as it was given up.

    Raises OSError when it holds the lock nevertheless.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a+") as lock:
        try:
            retry(lambda: fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB), seconds)
        except OSError:
            _kill_holder(file)
            retry(lambda: fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB), seconds)
        with contextlib.suppress(OSError):  # no space
            lock.truncate(0)
            lock.write(json.dumps([socket.gethostname(), os.getpid(), born(os.getpid())]))
            lock.flush()
        yield


def _kill_holder(file: Path) -> None:
    """Kill the process that a lock's file names, if it is that one still."""
    with contextlib.suppress(OSError, ValueError):
        host, pid, start = json.loads(file.read_text())
        if host == socket.gethostname() and start and born(pid) == start:
            os.kill(pid, signal.SIGKILL)


def send_leftovers(storage: Storage, folder: Path, newest: int, seconds: float) -> None:
    """Send what earlier attempts on this machine left in `folder`/<attempt>.

    Only the newest attempt of all has something to say: what an attempt left that was followed by another, on another
    machine perhaps, is superseded by what that one did, and is removed. Raises OSError when storage does not answer.
    """
    for left in sorted(folder.iterdir()) if folder.is_dir() else ():
        if left.name.isdigit() and int(left.name) >= newest:
            outbox = Outbox(storage, left)
            if not outbox.close(seconds):
                raise OSError(f"{storage.url}: does not answer: {outbox.error}")
        else:
            shutil.rmtree(left)
