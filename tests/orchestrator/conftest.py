"""What tests of the orchestrator share: settings below the test's folder, storage of each kind."""

from __future__ import annotations

import faulthandler
from collections.abc import Iterator
from pathlib import Path

import pytest
from s3_server import S3Server, s3_server
from tiny import settings_in

from orchestrator.settings import Settings
from orchestrator.storage.store import Storage


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Settings with everything below the test's folder. A file may have its own, which `storage` follows."""
    return settings_in(tmp_path)


@pytest.fixture
def storage(settings: Settings) -> Storage:
    return Storage(settings.storage)


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """A real S3 server, one for all tests of a process; each keeps to keys of its own."""
    with s3_server(tmp_path_factory.mktemp("s3")) as running:
        yield running


@pytest.fixture(params=["folder", "s3"])
def settings_of_each_kind(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Settings with storage of each kind: what tests that use them say holds of all."""
    if request.param == "folder":
        return settings_in(tmp_path, storage=str(tmp_path / "storage"))
    server: S3Server = request.getfixturevalue("s3")
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    return settings_in(tmp_path, storage=f"s3://{server.bucket}/{request.node.path.stem}/{tmp_path.name}")


@pytest.fixture
def no_hanging() -> Iterator[None]:
    """A sweep that hangs ends the whole test run with every thread's stack, rather than never."""
    faulthandler.dump_traceback_later(550, exit=True)
    yield
    faulthandler.cancel_dump_traceback_later()
