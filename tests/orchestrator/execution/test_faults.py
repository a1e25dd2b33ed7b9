"""Faults injected for real below the level of a sweep: full disks, an S3 server that dies, killed and late workers.

Whole sweeps under the same faults: `benchmarks/chaos.py`, and `test_chaos.py` among the slow tests.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from s3_server import free_port, s3_server
from tiny import TINY

from mcc_core import checkpoint as checkpoints
from mcc_core.data.index import build_index
from mcc_core.experiment_files import resolve
from mcc_core.training.engine import Callbacks, train
from orchestrator.cli import main
from orchestrator.records.checkpoints import CheckpointStore, newest_checkpoint
from orchestrator.records.events import EventLog, claim_attempt, history, newest_attempt, segments
from orchestrator.storage.outbox import Outbox, alone, send_leftovers
from orchestrator.storage.store import Storage, is_full, retry


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MiB of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"a disk to fill needs root: {mounted.stderr.decode().strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(disk: Path) -> Path:
    """Use up the last byte; removing the returned file makes room again."""
    ballast = disk / "ballast"
    with ballast.open("wb", buffering=0) as file, pytest.raises(OSError) as full:
        while True:
            file.write(b"\0" * 4096)
    assert is_full(full.value)
    return ballast


def iterations(storage: Storage) -> list[int]:
    return [e["iteration"] for e in history(storage, "t") if e["kind"] == "metrics"]


def test_events_wait_for_space_on_a_full_disk(tmp_path: Path, small_disk: Path) -> None:
    storage = Storage(str(tmp_path / "storage"))
    outbox = Outbox(storage, small_disk / "outbox")
    log = EventLog(outbox, "t", 1, flush_s=0.1, flush_events=10)
    ballast = fill(small_disk)

    def measure() -> None:
        for i in range(100):
            log.emit("metrics", i, metrics={"loss": 1.0})

    training = threading.Thread(target=measure)
    training.start()
    training.join(1.0)
    assert training.is_alive() and iterations(storage) == []  # it waits; nothing is dropped
    ballast.unlink()
    training.join(30)
    log.close()
    assert outbox.close(20)
    assert iterations(storage) == list(range(100))


def test_a_checkpoint_on_a_full_disk_waits_and_changes_nothing(tmp_path: Path, small_disk: Path) -> None:
    experiment = resolve("tiny", TINY)
    index = build_index(experiment.data, tmp_path)
    work = small_disk / "work"
    models: list[dict[int, dict[str, torch.Tensor]]] = []
    errors: list[OSError] = []

    class Room(Callbacks):
        """Fills the disk, and makes room at the second attempt to write."""

        def __init__(self, full: bool) -> None:
            self.full, self.ballast = full, small_disk / "ballast"
            models.append({})

        def on_start(self, iteration: int, info: dict[str, Any]) -> None:
            if self.full:
                fill(small_disk)

        def on_write_error(self, error: OSError) -> None:
            errors.append(error)
            assert list(work.iterdir()) == []  # no half of a file is left
            if len(errors) == 2:
                self.ballast.unlink()

        def on_checkpoint(self, iteration: int, file: Path, sha256: str) -> None:
            models[-1][iteration] = checkpoints.load(file).model
            file.unlink()

    for full in (False, True):
        train(experiment, 0, index, device=torch.device("cpu"), workdir=work, callbacks=Room(full))
    assert [error.errno for error in errors] == [errno.ENOSPC] * 2
    undisturbed, waited = models
    assert list(waited) == [2, 4]
    for iteration, model in waited.items():
        assert all(torch.equal(tensor, undisturbed[iteration][key]) for key, tensor in model.items())


def test_an_error_that_waiting_cannot_mend_is_raised_at_once(tmp_path: Path) -> None:
    outbox = Outbox(Storage(str(tmp_path / "storage")), tmp_path / "outbox")
    assert outbox.close(5)  # removes its folder
    began = time.monotonic()
    with pytest.raises(FileNotFoundError):
        outbox.put("k", b"")
    with pytest.raises(PermissionError):
        retry(lambda: (_ for _ in ()).throw(PermissionError(errno.EACCES, "no")), when=is_full)
    assert time.monotonic() - began < 5


def test_an_s3_server_killed_during_a_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "s3").mkdir()
    with s3_server(tmp_path / "s3") as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        storage = Storage(f"s3://{server.bucket}/down")
        outbox = Outbox(storage, tmp_path / "outbox")
        log = EventLog(outbox, "t", 1, flush_events=1)
        shelf = CheckpointStore(outbox, "t", "max", [], 0, 1)
        content = {i: os.urandom(40 << 20) for i in (1, 2)}
        for i in (1, 2):
            log.emit("metrics", i, metrics={})
            (tmp_path / "file.pt").write_bytes(content[i])
            shelf.add(tmp_path / "file.pt", i, None)
            if i == 1:
                assert outbox.drain(60)
        while "2-0001.pt" not in min(p.name for p in (tmp_path / "outbox").iterdir()):
            time.sleep(0.005)  # until the second checkpoint is being sent
        server.kill()
        for i in (3, 4):
            log.emit("metrics", i, metrics={})
        _until(lambda: outbox.error is not None)
        assert not outbox.drain(1)
        server.start()
        log.close()
        assert outbox.close(60)
        one, file, complaints = newest_checkpoint(storage, "t", tmp_path)
        assert one is not None and file is not None and (one.iteration, complaints) == (2, [])
        assert file.read_bytes() == content[2]
        assert iterations(storage) == [1, 2, 3, 4] and len(segments(storage, "t")) == 4


def test_an_upload_whose_source_breaks_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unreadable = Path("/proc/self/mem")  # opens, and reading it fails with an input/output error
    with s3_server(tmp_path) as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        for storage in (Storage(str(tmp_path / "storage")), Storage(f"s3://{server.bucket}/x")):
            with pytest.raises(OSError, match="Input/output error"):
                storage.upload(unreadable, "a/b")
            assert not storage.exists("a/b") and list(storage.files("a", parts=True)) == []


def test_storage_that_is_away_is_one_line_on_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    nobody = {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{free_port()}", "AWS_ACCESS_KEY_ID": "k"}
    for name, value in (nobody | {"AWS_SECRET_ACCESS_KEY": "s", "MCC_STORAGE": "s3://b/x"}).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("sys.argv", ["mcc", "sweep", "list"])
    with pytest.raises(SystemExit) as ended:
        main()
    said = capsys.readouterr().err
    assert ended.value.code == 1
    assert said.startswith("error: ") and said.count("\n") == 1 and "mcc storage check" in said


def test_a_successor_waits_for_a_dying_worker_and_not_for_a_dead_one(tmp_path: Path) -> None:
    program = (
        "import sys, time\nfrom pathlib import Path\nfrom orchestrator.storage.outbox import alone\n"
        "with alone(Path(sys.argv[1])):\n    print('held', flush=True)\n    time.sleep(600)\n"
    )
    file = tmp_path / "locks" / "t"
    holder = subprocess.Popen([sys.executable, "-c", program, str(file)], stdout=subprocess.PIPE)
    assert holder.stdout is not None and holder.stdout.readline() == b"held\n"
    threading.Timer(1.0, holder.terminate).start()
    with alone(file, seconds=30):
        assert holder.wait(10) == -signal.SIGTERM


def test_a_predecessor_that_stands_still_is_killed_and_nobody_else(tmp_path: Path) -> None:
    program = (
        "import os, signal, sys\nfrom pathlib import Path\nfrom orchestrator.storage.outbox import alone\n"
        "with alone(Path(sys.argv[1])):\n    print('held', flush=True)\n    os.kill(os.getpid(), signal.SIGSTOP)\n"
    )
    file = tmp_path / "locks" / "t"
    holder = subprocess.Popen([sys.executable, "-c", program, str(file)], stdout=subprocess.PIPE)
    assert holder.stdout is not None and holder.stdout.readline() == b"held\n"
    true = file.read_text()
    file.write_text(json.dumps([socket.gethostname(), os.getpid(), "started at another time"]))
    with pytest.raises(OSError), alone(file, seconds=1):
        pass
    file.write_text(true)
    with alone(file, seconds=1):
        assert holder.wait(10) == -signal.SIGKILL


def test_an_attempt_keeps_its_number_though_it_never_wrote(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    assert [newest_attempt(storage, "t"), claim_attempt(storage, "t"), claim_attempt(storage, "t")] == [0, 1, 2]
    storage.write("trials/t/events/0007-000001.jsonl", b"{}\n")
    assert claim_attempt(storage, "t") == 8


def test_what_a_superseded_attempt_left_behind_is_not_sent(tmp_path: Path) -> None:
    """A machine that was cut off comes back after another went on from an older checkpoint."""
    storage = Storage(str(tmp_path / "storage"))
    here = tmp_path / "outbox"
    target = tmp_path / "storage"
    target.write_text("storage does not answer")
    for attempt, last in ((1, 60), (2, 80)):
        outbox = Outbox(storage, here / f"{attempt:04d}")
        log = EventLog(outbox, "t", attempt)
        log.emit("metrics", last, metrics={})
        log.close()
        (tmp_path / "file.pt").write_bytes(b"weights")
        CheckpointStore(outbox, "t", "max", [], 0, attempt).add(tmp_path / "file.pt", last, None)
        assert not outbox.close(0.1)
    target.unlink()
    send_leftovers(storage, here, newest=2, seconds=20)
    assert segments(storage, "t") == ["0002-000001.jsonl"]
    assert storage.list("trials/t/checkpoints") == [
        f"trials/t/checkpoints/0000080-0002.pt{end}" for end in ("", ".json")
    ]
    assert list(here.iterdir()) == []
    send_leftovers(storage, tmp_path / "no such folder", newest=0, seconds=1)


def _until(what: Any, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.02)
