"""Trained networks by every name that `mcc_core.load` and the command line take."""

from __future__ import annotations

import os
import shutil
import socket
from pathlib import Path

import pytest
from s3_server import s3_server

import mcc_core as mcc
from mcc_core.errors import MCCError, UsageError
from orchestrator.settings import Settings
from orchestrator.storage.store import Storage
from orchestrator.workflows.networks import find_network

V0 = Path(__file__).parents[2] / "data/v0"
CHECKPOINT = "trials/0fc7aeed0919c2dc/checkpoints/0000004-0001.pt"


def test_a_trial_by_its_sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(V0, tmp_path / "home")
    monkeypatch.setenv("MCC_HOME", str(tmp_path / "home"))
    model = mcc.load("before/ratio=0.3", device="cpu")
    assert (model.iteration, model.method) == (4, "mcc")
    with pytest.raises(UsageError, match=r"^checkpoint: before-3f238c7e has no trial ratio=0\.4; such as ratio="):
        mcc.load("before/ratio=0.4")


def test_an_object_in_a_bucket_is_fetched_once_and_again_when_it_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MCC_HOME", str(tmp_path / "home"))
    with s3_server(tmp_path) as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        storage, name = Storage(f"s3://{server.bucket}/nets"), f"s3://{server.bucket}/nets/a.pt"
        storage.upload(V0 / CHECKPOINT, "a.pt")
        settings = Settings.from_environment()
        assert mcc.load(name, device="cpu").iteration == 4
        file = find_network(name, settings)
        first = file.stat().st_ino
        assert find_network(name, settings).stat().st_ino == first
        storage.write("a.pt", b"x" * file.stat().st_size)
        os.utime(file, (1.0, 1.0))
        assert find_network(name, settings).read_bytes().startswith(b"xx")
        with pytest.raises(UsageError, match=r"^NET: s3://.*/nets/b\.pt: no such file in the bucket$"):
            find_network(f"s3://{server.bucket}/nets/b.pt", settings, "NET")
        with pytest.raises(UsageError, match=r"expected s3://bucket/file\.pt"):
            find_network("s3://alone", settings)


def test_a_registry_that_does_not_answer_or_has_no_such_model_is_one_line(tmp_path: Path) -> None:
    settings = Settings.at(tmp_path)
    with pytest.raises(UsageError, match=r"^NET: models:/net@best: MLflow at sqlite:.* has no such model$"):
        find_network("models:/net@best", settings, "NET")
    with pytest.raises(UsageError, match=r"expected models:/NAME@ALIAS or models:/NAME/VERSION"):
        find_network("models:/net", settings)
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        away = Settings.at(tmp_path, tracking_uri=f"http://127.0.0.1:{nobody.getsockname()[1]}")
        with pytest.raises(MCCError, match=r"^NET: models:/net/1: MLflow at http://127\.0\.0\.1:"):
            find_network("models:/net/1", away, "NET")
