"""One contract for every kind of storage: a local folder, and a real S3 server where one is installed."""

from __future__ import annotations

import pickle
import subprocess
import sys
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from s3_server import S3Server

from mcc_core.errors import UsageError
from orchestrator.settings import Settings
from orchestrator.storage.store import Storage, retry


@pytest.fixture
def settings(settings_of_each_kind: Settings) -> Settings:
    return settings_of_each_kind


def test_what_was_written_is_read(storage: Storage) -> None:
    storage.write("a/b c/d.txt", b"one")
    storage.write("a/b c/d.txt", b"two")
    assert storage.read("a/b c/d.txt") == b"two"
    assert storage.exists("a/b c/d.txt")
    assert storage.size("a/b c/d.txt") == 3


def test_one_of_many_who_create_a_file_at_once_does(storage: Storage) -> None:
    names = [f"{n}".encode() for n in range(8)]
    with ThreadPoolExecutor(8) as pool:
        created = [*pool.map(lambda name: storage.create("a/mark", name), names)]
    assert sum(created) == 1 and storage.read("a/mark") == names[created.index(True)]
    assert not storage.create("a/mark", b"late") and storage.list("a") == ["a/mark"]


_KILLED_MOVE = """
import os, signal, sys
from pathlib import Path
from orchestrator.storage.store import Storage
left = int(sys.argv[3])

def kill(event, _):
    global left
    if event in ("os.rename", "os.remove"):
        left -= 1
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)

storage = Storage(sys.argv[1])
sys.addaudithook(kill)
storage.upload(Path(sys.argv[2]), "a/b", move=True)
"""


@pytest.mark.parametrize("where", ["same disk", "another disk"])
def test_a_file_that_is_moved_is_whole_in_one_of_the_places_whenever_its_mover_is_killed(
    tmp_path: Path, where: str
) -> None:
    folder = tmp_path if where == "same disk" else Path("/dev/shm")
    if not folder.is_dir() or (where == "another disk" and folder.stat().st_dev == tmp_path.stat().st_dev):
        pytest.skip("no other disk here")
    codes = []
    for calls in range(4):
        with tempfile.TemporaryDirectory(dir=folder) as source:
            file, target = Path(source) / "waiting", tmp_path / f"storage{calls}" / "a" / "b"
            file.write_bytes(b"measured")
            command = [sys.executable, "-c", _KILLED_MOVE, str(target.parents[1]), str(file), str(calls)]
            codes.append(subprocess.run(command, timeout=120).returncode)
            assert b"measured" in [place.read_bytes() for place in (file, target) if place.exists()]
    assert -9 in codes and codes[-1] == 0


def test_an_empty_file_is_a_file(storage: Storage) -> None:
    storage.write("flag", b"")
    assert storage.exists("flag")
    assert storage.size("flag") == 0


def test_missing_things(storage: Storage) -> None:
    assert not storage.exists("no/such")
    assert storage.size("no") is None
    assert storage.list("no") == []
    storage.delete("no/such")
    storage.delete_folder("no")
    with pytest.raises(FileNotFoundError):
        storage.read("no/such")
    with pytest.raises(FileNotFoundError):
        retry(lambda: storage.read("no/such"))


def test_a_list_has_the_files_of_one_folder_in_order(storage: Storage) -> None:
    for key in ("t/2", "t/10", "t/deep/3", "tt/4"):
        storage.write(key, b".")
    assert storage.list("t") == ["t/10", "t/2"]
    assert storage.folders("t") == ["t/deep"]


def test_a_folder_that_others_make_and_remove_is_listed_with_or_without_what_it_had(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    listed: set[str] = set()
    over = threading.Event()

    def make_and_remove() -> None:
        folder = tmp_path / "a"
        while not over.is_set():
            (folder / "b").mkdir(parents=True)
            (folder / "b").rmdir()
            folder.rmdir()

    other = threading.Thread(target=make_and_remove)
    other.start()
    try:
        for _ in range(2_000):
            listed.update(storage.folders("a"))
            assert [*storage.files("a")] == [] == [*storage.files("a/b")]
    finally:
        over.set()
        other.join()
    assert listed <= {"a/b"}


def test_many_files_are_listed(storage: Storage) -> None:
    for i in range(60):
        storage.write(f"m/{i:04d}", b".")
    assert len(storage.list("m")) == 60


def test_many_questions_are_answered_in_order_and_a_missing_file_is_an_error(storage: Storage) -> None:
    keys = [f"q/{i:03d}" for i in range(80)]
    storage.each(lambda key: storage.write(key, key.encode()), keys)
    assert storage.each(storage.read, reversed(keys)) == [key.encode() for key in reversed(keys)]
    with pytest.raises(FileNotFoundError):
        storage.each(storage.read, [*keys, "q/none"])


def test_delete_takes_one_file_and_delete_folder_all(storage: Storage) -> None:
    for key in ("t/1", "t/2", "t/deep/3", "u/4"):
        storage.write(key, b".")
    storage.delete("t/1")
    assert storage.list("t") == ["t/2"]
    storage.delete_folder("t")
    assert storage.list("t") == [] and not storage.exists("t/deep/3") and storage.exists("u/4")


def test_files_go_up_and_down_whole(storage: Storage, tmp_path: Path) -> None:
    content = bytes(range(256)) * 80_000  # 20 MB: several parts
    up, down = tmp_path / "up", tmp_path / "deep" / "down"
    up.write_bytes(content)
    storage.upload(up, "x/file")
    assert up.exists()
    storage.upload(up, "x/moved", move=True)
    assert not up.exists()
    for key in ("x/file", "x/moved"):
        storage.download(key, down)
        assert down.read_bytes() == content
    with pytest.raises(FileNotFoundError):
        storage.download("x/none", tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_a_pickled_storage_holds_no_secret(storage: Storage) -> None:
    storage.write("k", b"v")
    data = pickle.dumps(storage)
    assert b"secret" not in data.lower()
    assert pickle.loads(data).read("k") == b"v"


def test_check_passes_and_leaves_nothing(storage: Storage) -> None:
    storage.check()
    assert storage.list("") == []


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=r"MCC_STORAGE: .*file/sub: cannot be written"):
        Storage(str(tmp_path / "file" / "sub")).check()


def test_a_wrong_secret_is_refused_without_showing_it(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (s3.environment | {"AWS_SECRET_ACCESS_KEY": "not-the-secret"}).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match="MCC_STORAGE: s3://") as caught:
        Storage(f"s3://{s3.bucket}/x").check()
    assert "not-the-secret" not in str(caught.value)


def test_other_addresses_are_refused() -> None:
    with pytest.raises(UsageError, match=r"MCC_STORAGE: gs://b/p: neither a folder nor s3://"):
        Storage("gs://b/p")
    with pytest.raises(UsageError, match="lacks a bucket"):
        Storage("s3:///p")
