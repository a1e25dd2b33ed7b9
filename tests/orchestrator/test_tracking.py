"""MLflow fed from event logs: real SQLite store, every step once whatever interrupts the feeding."""

from __future__ import annotations

import io
import os
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from PIL import Image

from mcc_core.config import resolve
from orchestrator.events import EventLog
from orchestrator.outbox import Outbox
from orchestrator.settings import Settings
from orchestrator.storage import Storage
from orchestrator.tracking import Feeder, Tracker, rebuild

SWEEP = "s-1234"


def document() -> dict[str, Any]:
    trials = []
    for i, ratio in enumerate(("0.5", "0.95")):
        experiment = resolve("tiny", {"mask.ratio": float(ratio)}).model_dump(mode="json")
        trials.append(
            {
                "identity": f"{i:016x}",
                "name": f"ratio={ratio}",
                "point": f"ratio={ratio}",
                "varied": {"mask.ratio": ratio, "mask.scale": "4"},
                "seed": 0,
                "fingerprint": "f",
                "experiment": experiment,
            }
        )
    file = {
        "metric": "val/seg/single/miou",
        "mode": "max",
        "description": "",
        "heatmap": {"x": "mask.ratio", "y": "mask.scale"},
    }
    return {"sweep": SWEEP, "name": "s", "created": 1.0, "command": ["mcc"], "file": file, "trials": trials}


def scores(seg: float) -> dict[str, float]:
    return {
        "val/seg/single/miou": seg,
        "val/cam/multi_scale/miou": 0.6,
        "val/aux_cam/multi_scale/miou": 0.5,
        "val/all_background/single/miou": 0.1,
    }


def attempt(storage: Storage, folder: Path, trial: str, number: int, first: int, last: int, *, end: bool) -> None:
    """Events as a worker writes them: a loss each iteration, an evaluation with a picture every fifth."""
    outbox = Outbox(storage, folder / trial)
    log = EventLog(outbox, trial, number, flush_events=4)
    log.emit("start", first, attempt=number, info={})
    for i in range(first + 1, last + 1):
        log.emit("metrics", i, metrics={"loss/total": 1 / i, "lr": 0.1})
        if i % 5 == 0:
            log.emit("metrics", i, metrics=scores(i / 100))
            picture = io.BytesIO()
            Image.new("RGB", (8, 8), (i, 0, 0)).save(picture, "PNG")
            outbox.put(f"trials/{trial}/images/{i:07d}-a.png", picture.getvalue())
            log.emit("image", i, key="panel/a", path=f"trials/{trial}/images/{i:07d}-a.png")
    if end:
        outbox.put(f"trials/{trial}/checkpoints/{last:07d}.pt", b"weights")
        log.emit("end", last, status="finished", message="", metrics=scores(last / 100), launch="x")
    log.close()
    assert outbox.drain(30)
    outbox.close(5)


@pytest.fixture(scope="session")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow database with its tables: making them takes seconds, copying them does not."""
    settings = Settings.at(tmp_path_factory.mktemp("migrated"))
    Tracker(settings, document() | {"trials": []}).client.search_experiments()
    return settings.home / "mlflow.db"


@pytest.fixture
def settings(tmp_path: Path, migrated: Path) -> Settings:
    made = Settings.at(tmp_path / "home")
    made.home.mkdir()
    shutil.copy(migrated, made.home / "mlflow.db")
    # The experiment in the copied database keeps its artifacts where that was made: give this test its own.
    client = MlflowClient(tracking_uri=made.tracking_uri)
    old = client.get_experiment_by_name("mcc")
    assert old is not None
    client.rename_experiment(old.experiment_id, "template")
    return made


@pytest.fixture
def storage(settings: Settings) -> Storage:
    return Storage(settings.storage)


def steps(tracker: Tracker, run: str, key: str = "loss/total") -> list[int]:
    return [m.step for m in tracker.client.get_metric_history(run, key)]


def test_runs_params_metrics_pictures_and_artifacts(settings: Settings, storage: Storage, tmp_path: Path) -> None:
    for trial in ("0" * 16, "0" * 15 + "1"):
        attempt(storage, tmp_path, trial, 1, 0, 10, end=True)
    tracker = Tracker(settings, document())
    tracker.sync()
    tracker.finish()
    client = tracker.client
    parent = client.get_run(tracker.parent)
    assert parent.info.status == "FINISHED" and parent.data.tags["mcc.best"] in {"ratio=0.5", "ratio=0.95"}
    names = {a.path for a in client.list_artifacts(tracker.parent)}
    assert {"heatmap.png", "leaderboard.md", "leaderboard.csv", "leaderboard.html", "curves.png", "plan.json"} <= names
    for child in tracker.children.values():
        assert child.run is not None
        run = client.get_run(child.run)
        assert run.data.tags["mlflow.parentRunId"] == tracker.parent and run.info.status == "FINISHED"
        assert run.data.params["mask.ratio"] == child.trial["varied"]["mask.ratio"]
        assert run.data.params["seed"] == "0" and len(run.data.params) > 60
        assert steps(tracker, child.run) == list(range(1, 11))
        assert steps(tracker, child.run, "val/seg/single/miou") == [5, 10]
        assert len([a for a in client.list_artifacts(child.run, "images") if a.path.endswith(".png")]) == 2
        assert [a.path for a in client.list_artifacts(child.run, "checkpoint")] == ["checkpoint/0000010.pt"]
        assert {a.path for a in client.list_artifacts(child.run, "config")} >= {"config/experiment.yaml"}


def test_feeding_twice_and_repeated_iterations_add_nothing(
    settings: Settings, storage: Storage, tmp_path: Path
) -> None:
    trial = "0" * 16
    attempt(storage, tmp_path, trial, 1, 0, 8, end=False)
    Tracker(settings, document()).sync()
    attempt(storage, tmp_path, trial, 2, 5, 12, end=True)  # went on from the checkpoint at 5
    for _ in range(2):
        tracker = Tracker(settings, document())
        tracker.sync()
        tracker.finish()
    run = tracker.children[trial].run
    assert run is not None
    assert steps(tracker, run) == list(range(1, 13))
    assert steps(tracker, run, "val/seg/single/miou") == [5, 10]
    assert len([a for a in tracker.client.list_artifacts(run, "images") if a.path.endswith(".png")]) == 2
    found = tracker.client.search_runs([tracker.experiment], "tags.`mcc.sweep` = 's-1234'")
    assert len(found) == 2  # the parent, and one child: the other trial never began


def test_killed_tracker_leaves_nothing_out_and_nothing_twice(
    settings: Settings, storage: Storage, tmp_path: Path
) -> None:
    trial = "0" * 16
    attempt(storage, tmp_path, trial, 1, 0, 60, end=True)
    script = textwrap.dedent(
        f"""
        import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})
        from pathlib import Path
        from orchestrator.settings import Settings
        from orchestrator.tracking import Tracker
        from test_tracking import document
        Tracker(Settings.at(Path({str(settings.home)!r})), document()).sync()
        """
    )
    watcher = Tracker(settings, document())
    for kill in (True, True, False):
        process = subprocess.Popen([sys.executable, "-c", script])
        if kill:
            before = _progress(watcher)
            deadline = time.monotonic() + 60
            while _progress(watcher) == before and time.monotonic() < deadline and process.poll() is None:
                time.sleep(0.01)
            os.kill(process.pid, signal.SIGKILL)
        assert process.wait(60) == (-9 if kill and process.returncode == -9 else 0)
    tracker = Tracker(settings, document())
    tracker.sync()
    run = tracker.children[trial].run
    assert run is not None
    assert steps(tracker, run) == list(range(1, 61))
    assert steps(tracker, run, "val/seg/single/miou") == list(range(5, 61, 5))


def _progress(tracker: Tracker) -> int:
    runs = tracker.client.search_runs([tracker.experiment], "tags.`mcc.kind` = 'trial'")
    return max(
        (m.step for r in runs for m in tracker.client.get_metric_history(r.info.run_id, "loss/total")), default=0
    )


def test_mlflow_away_only_delays(settings: Settings, storage: Storage, tmp_path: Path) -> None:
    """A real server that is not there yet, comes, goes and comes back."""
    trial = "0" * 16
    attempt(storage, tmp_path, trial, 1, 0, 10, end=False)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    remote = Settings.at(settings.home, tracking_uri=f"http://127.0.0.1:{port}")
    with Feeder(remote, document(), every_s=0.2) as feeder:
        _until(lambda: feeder.problem is not None)
        server = _server(settings, port)
        _until(lambda: feeder.problem is None)
        server.terminate()
        server.wait(30)
        attempt(storage, tmp_path, trial, 2, 10, 20, end=True)
        _until(lambda: feeder.problem is not None)
        server = _server(settings, port)
        try:
            assert feeder.finish(120)
            client = MlflowClient(tracking_uri=remote.tracking_uri)
            experiment = client.get_experiment_by_name("mcc")
            (parent,) = client.search_runs([experiment.experiment_id], "tags.`mcc.kind` = 'sweep'")
            assert parent.info.status == "FAILED"  # the other trial never began
            tracker = Tracker(remote, document())
            tracker.sync()
            run = tracker.children[trial].run
            assert run is not None and steps(tracker, run) == list(range(1, 21))
        finally:
            server.terminate()
            server.wait(30)


def _server(settings: Settings, port: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", settings.tracking_uri]
    command += ["--artifacts-destination", settings.artifact_root.as_uri(), "--port", str(port), "--workers", "1"]
    quiet = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    return subprocess.Popen(command, env=os.environ | quiet, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def _until(condition: Callable[[], bool], seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.05)


def test_rebuild_makes_the_view_again(settings: Settings, storage: Storage, tmp_path: Path) -> None:
    trial = "0" * 16
    attempt(storage, tmp_path, trial, 1, 0, 5, end=True)
    tracker = Tracker(settings, document())
    tracker.sync()
    old = tracker.children[trial].run
    rebuild(settings, document())
    fresh = Tracker(settings, document())
    fresh.sync()
    run = fresh.children[trial].run
    assert run is not None and run != old and steps(fresh, run) == [1, 2, 3, 4, 5]


def test_nothing_is_written_to_the_working_folder(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "cwd"
    folder.mkdir()
    monkeypatch.chdir(folder)
    Tracker(settings, document() | {"trials": []}).finish()
    assert list(folder.iterdir()) == []
