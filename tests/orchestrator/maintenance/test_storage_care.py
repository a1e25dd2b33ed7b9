"""`mcc storage check` and `gc`: on a folder, and on a real S3 server where one is installed."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path

import pytest
from s3_server import S3Server

from mcc_core.errors import UsageError
from orchestrator.cli import main
from orchestrator.maintenance.storage_care import check, garbage, remove
from orchestrator.records import layout
from orchestrator.records.checkpoints import CheckpointStore
from orchestrator.records.leases import Lease
from orchestrator.records.local_places import outbox, unfinished_labels
from orchestrator.settings import Settings
from orchestrator.storage.outbox import Outbox
from orchestrator.storage.store import Storage

KNOWN, STRAY, RUNNING = "a" * 16, "b" * 16, "c" * 16


@pytest.fixture
def settings(settings_of_each_kind: Settings) -> Settings:
    return settings_of_each_kind


def trial(storage: Storage, folder: Path, identity: str, scores: tuple[float, ...]) -> None:
    """A trial with a checkpoint per score, none of them pruned."""
    outbox = Outbox(storage, folder / "outbox")
    for i, score in enumerate(scores, start=1):
        file = folder / "file.pt"
        file.write_bytes(b"w" * 1000)
        CheckpointStore(outbox, identity, "max", [], i, 0).add(file, i, score)
    assert outbox.close(20)
    storage.write(f"trials/{identity}/events/0001-000001.jsonl", b'{"kind": "start", "iteration": 0, "t": 1}\n')


def sweep(storage: Storage, name: str, *identities: str) -> None:
    trials = [{"identity": identity} for identity in identities]
    document = {"sweep": name, "name": name, "created": 1, "file": {"mode": "max", "metric": "m"}, "trials": trials}
    storage.write(f"sweeps/{name}/plan.json", json.dumps(document).encode())


def test_gc_takes_what_nothing_refers_to_and_nothing_else(settings: Settings, storage: Storage, tmp_path: Path) -> None:
    sweep(storage, "s", KNOWN, RUNNING)
    for identity in (KNOWN, STRAY, RUNNING):
        trial(storage, tmp_path, identity, (0.1, 0.9, 0.2, 0.3, 0.4))
    storage.write(f"trials/{KNOWN}/checkpoints/0000007.pt", b"no sidecar")
    storage.write(f"trials/{KNOWN}/checkpoints/0000008.pt.json", b'{"iteration": 8}')
    storage.write("ray/gone/state", b"12345")
    storage.write("ray/lives/state", b"12345")
    kept = sorted(one.key for one in storage.files(""))
    assert garbage(storage, settings.home) == ([], [])  # all of it is younger than an hour

    lease = Lease(storage, "launch", "lives", [RUNNING])
    lease.take()
    found, notes = garbage(storage, settings.home, older_s=0)
    assert notes == []
    checkpoints = f"trials/{KNOWN}/checkpoints"
    gone = {f"{checkpoints}/{i:07d}.pt{end}" for i in (1, 3) for end in ("", ".json")}
    gone |= {f"{checkpoints}/0000007.pt", f"{checkpoints}/0000008.pt.json", f"trials/{STRAY}", "ray/gone"}
    assert {one.key for one in found} == gone
    sizes = {one.key: one.size for one in found}
    assert sizes[f"{checkpoints}/0000001.pt"] == 1000 and sizes["ray/gone"] == 5 and sizes[f"trials/{STRAY}"] > 5000
    assert remove(storage, found) == found
    left = sorted(one.key for one in storage.files("") if not one.key.startswith("leases"))
    assert left == [k for k in kept if not any(k == g or k.startswith(f"{g}/") for g in gone)]
    assert garbage(storage, settings.home, older_s=0)[0] == []
    lease.release()
    assert [one.key for one in garbage(storage, settings.home, older_s=0)[0]][-1] == "ray/lives"


def test_files_that_were_sent_for_no_sweep_on_record_go(tmp_path: Path) -> None:
    settings = Settings.at(tmp_path)
    storage = Storage(settings.storage)
    named, stray = layout.sent_file("1" * 64, "w.pt"), layout.sent_file("2" * 64, "w.pt")
    for key in (named, stray):
        storage.write(key, b"weights")
    sweep(storage, "s", str(storage.local(named)))  # as the weights of a trial of it
    (found,) = [one for one in garbage(storage, settings.home, older_s=0)[0] if one.what == "file of no sweep"]
    remove(storage, [found])
    assert storage.exists(named) and not storage.exists(stray)


def test_uploads_that_never_ended_are_given_up(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in s3.environment.items():
        monkeypatch.setenv(name, value)
    storage = Storage(f"s3://{s3.bucket}/uploads")
    for prefix in ("uploads", "another"):
        begun = s3.client().create_multipart_upload(Bucket=s3.bucket, Key=f"{prefix}/trials/x/big.pt")
        part = {"Bucket": s3.bucket, "Key": begun["Key"], "UploadId": begun["UploadId"], "PartNumber": 1}
        s3.client().upload_part(**part, Body=b"x" * 1000)
    found, _ = garbage(storage, Path("/nowhere"), older_s=-5)
    assert [(one.what, one.key) for one in found] == [("upload that never ended", "trials/x/big.pt")]
    remove(storage, found[:1])
    assert storage.unfinished_uploads() == []
    assert len(Storage(f"s3://{s3.bucket}/another").unfinished_uploads()) == 1


def test_parts_of_killed_processes_go_and_unsent_measurements_stay(tmp_path: Path) -> None:
    storage, home = Storage(str(tmp_path / "storage")), tmp_path / "home"
    sweep(storage, "s", KNOWN)
    storage.write(f"trials/{KNOWN}/events/0001-000001.jsonl", b"{}\n")
    part = tmp_path / "storage" / "trials" / KNOWN / "events" / ".0001-000002.jsonl.99.part"
    part.write_bytes(b"cut")
    waiting = home / "outbox" / KNOWN / "0001" / "00000001-put-x"
    waiting.parent.mkdir(parents=True)
    waiting.write_bytes(b"measured")
    elsewhere = outbox(home, KNOWN, Storage(str(tmp_path / "other")))
    for folder in (outbox(home, KNOWN, storage), elsewhere):
        (folder / "0001").mkdir(parents=True)
        (folder / "0001" / "00000001-put-x").write_bytes(b"more")
    found, notes = garbage(storage, home, older_s=0)
    assert [one.size for one in found] == [3]
    remove(storage, found[:1])
    assert not part.exists() and waiting.exists()
    assert sorted(notes) == sorted(
        f"{size} bytes of trial {KNOWN} wait in {folder}: submit its sweep again{to} to send them"
        for size, folder, to in (
            (8, home / "outbox" / KNOWN, ""),  # of a version before
            (4, outbox(home, KNOWN, storage), ""),
            (4, elsewhere, ", with the storage that it ran with,"),
        )
    )


def test_copies_of_this_machine_that_no_sweep_names_go(tmp_path: Path) -> None:
    storage, home = Storage(str(tmp_path / "storage")), tmp_path / "home"
    document = {"trials": [{"experiment": {"labels": {"source": f"labels/{KNOWN}"}}}]}
    storage.write(
        "sweeps/s/plan.json", json.dumps(document | {"sweep": "s", "created": 1, "file": {"mode": "max"}}).encode()
    )
    for name in (f"label-sets/{KNOWN}.zip", f"label-sets/{STRAY}.zip", f"fetched/{STRAY}/0000003.pt"):
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).write_bytes(b"packed")
        os.utime(home / name, (1, 1))  # as old as the object in the bucket that it is a copy of
    assert garbage(storage, home) == ([], [])
    found, _ = garbage(storage, home, older_s=0)
    labels, checkpoint = home / "label-sets", home / "fetched" / STRAY
    assert [(one.what, one.key, one.size) for one in found] == [
        ("packed label set of no sweep", str(labels / f"{STRAY}.zip"), 6),
        ("fetched checkpoint of no sweep", str(checkpoint), 6),
    ]
    assert remove(storage, found) == found
    assert [file.name for file in labels.iterdir()] == [f"{KNOWN}.zip"] and not checkpoint.exists()


def test_what_killed_attempts_left_goes_unless_a_sweep_can_go_on_with_it(tmp_path: Path) -> None:
    storage, home, done = Storage(str(tmp_path / "storage")), tmp_path / "home", "d" * 16
    sweep(storage, "s", KNOWN, RUNNING, done)
    storage.write(f"labels/{done}/labels.zip", b"packed")
    for identity in (KNOWN, STRAY, RUNNING, done):
        file = unfinished_labels(home, identity, storage) / "maps" / "a.png"
        file.parent.mkdir(parents=True)
        file.write_bytes(b"map")
    others = unfinished_labels(home, STRAY, Storage(str(tmp_path / "other")))  # whose sweeps are not on record here
    others.mkdir()
    assert garbage(storage, home) == ([], [])  # all of it is younger than an hour
    found, _ = garbage(storage, home, older_s=0)
    assert [(one.what, one.key, one.size) for one in found] == [
        ("unfinished label set", str(unfinished_labels(home, identity, storage)), 3) for identity in (STRAY, done)
    ]
    lease = Lease(storage, "launch", "s", [STRAY])
    lease.take()
    with pytest.raises(UsageError):  # begun since
        remove(storage, found)
    lease.release()
    assert remove(storage, found) == found
    kept = {unfinished_labels(home, identity, storage) for identity in (KNOWN, RUNNING)}
    assert set((home / "work").glob("*/*")) == kept | {others}


def test_check_finds_storage_in_order(settings: Settings, storage: Storage) -> None:
    found = list(check(settings))
    assert all(one.good for one in found[:-2]), found
    names = [one.name for one in found]
    start = names.index("write 1 MiB")
    assert names[start : start + 4] == ["write 1 MiB", "read it", "list", "delete"]
    assert list(storage.files("")) == []


def test_check_names_the_fix(s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in s3.environment.items():
        monkeypatch.setenv(name, value)
    missing = Settings.at(tmp_path, storage="s3://not-there-yet/x")
    (found,) = check(missing)
    assert (found.good, found.fix) == (False, "mcc storage check --create")
    assert next(iter(check(missing, create=True))).detail == "made"
    assert all(one.good for one in list(check(missing))[:5])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not-the-secret")
    (found,) = check(missing)
    assert not found.good and "AWS_SECRET_ACCESS_KEY" in found.fix and "not-the-secret" not in repr(found)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free.getsockname()[1]}")
    (found,) = check(missing)
    assert not found.good and "AWS_ENDPOINT_URL" in found.fix


def test_check_of_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    *_, found = check(Settings.at(tmp_path, storage=str(tmp_path / "file" / "sub")))
    assert not found.good and found.name == "write 1 MiB" and "let this user write to the folder" in found.fix


def test_the_command_says_what_it_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    storage = Storage(str(tmp_path / "home"))
    storage.write(f"trials/{STRAY}/experiment.yaml", b"x" * 2048)
    monkeypatch.setenv("MCC_HOME", str(tmp_path / "home"))
    for name in ("MCC_STORAGE", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    said = []
    for arguments in (["check"], ["gc"], ["gc", "--dry-run", "--older", "0"], ["gc", "--older", "0"]):
        monkeypatch.setattr("sys.argv", ["mcc", "storage", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code == 0 or arguments == ["check"]
        said.append(capsys.readouterr().out)
    assert "ok   write 1 MiB" in said[0]
    assert said[1] == "0 things, 0 bytes: removed\n"
    line = f"     2.05 kB  trial of no sweep: trials/{STRAY}\n"
    assert said[2] == f"{line}1 things, 2.05 kB: would be removed\n"
    assert said[3] == f"{line}1 things, 2.05 kB: removed\n"
    assert not os.path.exists(tmp_path / "home" / "trials" / STRAY)
