"""Settings, leases, the record of the environment, and what is said about a cluster that does not answer."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from mcc_core.errors import MCCError, UsageError
from orchestrator.cluster.session import Capacity, cluster, local_capacity
from orchestrator.environment import environment_record, git_state
from orchestrator.records.leases import Lease, held
from orchestrator.settings import Settings
from orchestrator.storage.store import Storage


def test_settings_come_from_the_environment(tmp_path: Path) -> None:
    plain = Settings.from_environment({"MCC_HOME": str(tmp_path)})
    assert (plain.home, plain.storage, plain.ray_address) == (tmp_path, str(tmp_path), None)
    assert plain.tracking_uri == f"sqlite:///{tmp_path}/mlflow.db"
    full = Settings.from_environment(
        {
            "MCC_HOME": str(tmp_path),
            "MCC_STORAGE": "s3://bucket/x",
            "MLFLOW_TRACKING_URI": "http://mlflow:5000",
            "RAY_ADDRESS": "head:6379",
            "MCC_STALL_MINUTES": "2.5",
            "AWS_SECRET_ACCESS_KEY": "hidden-value",
        }
    )
    assert (full.storage, full.tracking_uri) == ("s3://bucket/x", "http://mlflow:5000")
    assert (full.ray_address, full.stall_minutes) == ("head:6379", 2.5)
    assert "hidden-value" not in repr(full)


def test_relative_folders_become_absolute_and_empty_means_not_set(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = Settings.from_environment({"MCC_HOME": "", "MCC_STORAGE": "store", "RAY_ADDRESS": "local"})
    assert (settings.home, settings.storage) == (tmp_path / ".mcc", str(tmp_path / "store"))
    assert settings.ray_address is None


@pytest.mark.parametrize("text", ["soon", "0", "-1", "nan"])
def test_a_bad_number_in_the_environment_is_named(text: str) -> None:
    with pytest.raises(UsageError, match=f"MCC_STALL_MINUTES: '{text}' is not a positive number"):
        Settings.from_environment({"MCC_STALL_MINUTES": text})


def test_this_machine_has_something_to_give() -> None:
    assert 1 <= local_capacity().cpus <= (os.cpu_count() or 1)


def test_a_client_address_is_refused(tmp_path: Path) -> None:
    with (
        pytest.raises(UsageError, match=r"RAY_ADDRESS: ray://head:10001: give the cluster's host:port"),
        _attached(tmp_path, "ray://head:10001"),
    ):
        pass


@pytest.mark.parametrize("address", ["127.0.0.1:1", "127.0.0.1", "no-such-host.invalid:6379"])
def test_a_cluster_that_is_not_there_is_named_at_once(tmp_path: Path, address: str) -> None:
    with pytest.raises(UsageError, match=f"RAY_ADDRESS: {address}: no cluster answers"), _attached(tmp_path, address):
        pass


def test_a_ray_that_does_not_start_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path / "file"))
    named = pytest.raises(MCCError, match=r"Ray does not start on this machine: .*file.*goes on")
    with named as raised, cluster(Settings.at(tmp_path / "home")):
        pass
    assert "\n" not in str(raised.value)


def test_a_dashboard_that_does_not_start_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def busy(**options: object) -> None:
        raise Exception("\nThe last 20 lines of dashboard.log: \n")  # as Ray does

    monkeypatch.setattr("ray.init", busy)
    named = pytest.raises(MCCError, match=r"Ray does not start on this machine: The last 20 lines of dashboard\.log")
    with named as said, cluster(Settings.at(tmp_path)):
        pass
    assert "\n" not in str(said.value)


def _attached(folder: Path, address: str) -> AbstractContextManager[Capacity]:
    return cluster(Settings.at(folder, ray_address=address))


def test_a_lease_is_exclusive_while_its_holder_lives(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    with held(Lease(storage, "a", "one", ["t1", "t2"])):
        time.sleep(0.01)
        with pytest.raises(UsageError, match=r"1 of these trials are being run by process .* \(sweep one\)"):
            Lease(storage, "b", "two", ["t2", "t3"]).take()
        Lease(storage, "c", "three", ["t3"]).take()
    with held(Lease(storage, "d", "two", ["t2"])):
        assert storage.list("leases") == ["leases/c.json", "leases/d.json"]


def test_a_lease_of_a_dead_process_does_not_count(tmp_path: Path) -> None:
    program = (
        "import os, sys\n"
        "from orchestrator.records.leases import Lease\n"
        "from orchestrator.storage.store import Storage\n"
        "Lease(Storage(sys.argv[1]), 'dead', 's', ['t']).take()\n"
        "os._exit(9)\n"
    )
    assert subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=False, timeout=60).returncode == 9
    storage = Storage(str(tmp_path))
    assert storage.list("leases") == ["leases/dead.json"]
    Lease(storage, "next", "s", ["t"]).take()
    assert storage.list("leases") == ["leases/next.json"]


def test_a_lease_of_another_host_lives_as_long_as_it_is_renewed(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    lease = {"launch": "x", "sweep": "s", "host": "elsewhere", "pid": 1, "born": "", "since": 1.0, "identities": ["t"]}
    storage.write("leases/x.json", json.dumps(lease | {"t": time.time() - 20}).encode())
    with pytest.raises(UsageError, match="process 1 on elsewhere"):
        Lease(storage, "y", "s", ["t"]).take()
    storage.write("leases/x.json", json.dumps(lease | {"t": time.time() - 1000}).encode())
    Lease(storage, "y", "s", ["t"]).take()


def test_the_environment_record_has_versions_and_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hidden-value")
    record = environment_record(["mcc", "sweep"])
    assert record["packages"]["torch"] and record["python"] == sys.version.split()[0]
    assert "hidden-value" not in json.dumps(record)


def test_git_state_is_of_the_code_alone() -> None:
    state = git_state()
    assert state is None or (len(state["commit"]) == 40 and isinstance(state["diff"], str))


def test_a_process_that_stood_still_leaves_its_trials_to_the_one_that_took_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage, now = Storage(str(tmp_path)), [1000.0]
    monkeypatch.setattr("orchestrator.records.leases.time.monotonic", lambda: now[0])
    first = Lease(storage, "first", "s", ["t1", "t2"])
    first.take()
    storage.delete("leases/first.json")  # as a reader on another host does with one that is not renewed
    now[0] += 100
    first.refresh()  # nobody took its trials: it goes on
    assert storage.list("leases") == ["leases/first.json"]
    storage.delete("leases/first.json")
    Lease(storage, "second", "s", ["t2"]).take()
    now[0] += 100
    with pytest.raises(MCCError, match=r"for 100 s, and process \d+ on .* \(sweep s\) went on with its trials"):
        first.refresh()
    assert storage.list("leases") == ["leases/second.json"]
