"""MLflow fed from event logs: real SQLite store, every step once whatever interrupts the feeding."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import experiments
import pytest
from experiments import plan_record
from hypothesis import given
from hypothesis import strategies as st
from mlflow import MlflowClient
from PIL import Image

from mcc_core.experiment_files import resolve
from orchestrator.records.checkpoints import CheckpointStore
from orchestrator.records.events import EventLog, write_end
from orchestrator.records.leases import Lease, feeding
from orchestrator.records.plans import PlanRecord
from orchestrator.records.status import TrialStatus
from orchestrator.settings import Settings
from orchestrator.storage.outbox import Outbox
from orchestrator.storage.store import Storage
from orchestrator.tracking.background import BackgroundSync
from orchestrator.tracking.client import experiment as experiment_of
from orchestrator.tracking.cursor import Cursor
from orchestrator.tracking.names import metric_name, picture_name, pictures, varied_first
from orchestrator.tracking.queries import page, runs
from orchestrator.tracking.rebuilding import rebuild
from orchestrator.tracking.sync import Tracker

SWEEP = "s-1234"


def document() -> PlanRecord:
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
    return plan_record(SWEEP, trials, name="s", created=1.0, file=file)


def scores(seg: float) -> dict[str, float]:
    return {
        "val/seg/single/miou": seg,
        "val/cam/ms/miou": 0.6,
        "val/aux_cam/ms/miou": 0.5,
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
        shelf = CheckpointStore(outbox, trial, "max", [], 0, 0)
        for i, score in ((last - 1, 0.9), (last, 0.5)):
            weights = folder / f"{trial}.pt"
            weights.write_bytes(f"weights {number} {i}".encode())
            shelf.add(weights, i, score)
        log.emit("end", last, status="finished", message="", metrics=scores(last / 100), launch="x")
    log.close()
    assert outbox.drain(30)
    outbox.close(5)


@pytest.fixture(scope="session")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow database with its tables: making them takes seconds, copying them does not."""
    settings = Settings.at(tmp_path_factory.mktemp("migrated"))
    Tracker(settings, plan_record(SWEEP)).client.search_experiments()
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


def steps(tracker: Tracker, run: str, key: str = "loss/total") -> list[int]:
    return [m.step for m in tracker.client.get_metric_history(run, key)]


def shown(tracker: Tracker, run: str) -> list[tuple[str, int]]:
    """Every picture of a run, with repetitions, by its small copy: MLflow writes that last, so that a process which is
    killed between the two leaves half a picture, and the next one logs a whole one."""
    files = [a.path for a in tracker.client.list_artifacts(run, "images")]
    return sorted(pair for file in files for pair in pictures([file]))


def test_runs_params_metrics_pictures_and_artifacts(settings: Settings, storage: Storage, tmp_path: Path) -> None:
    for trial in ("0" * 16, "0" * 15 + "1"):
        record = {"git": {"commit": "c0ffee", "diff": "+x"}, "packages": {"torch": "2"}}
        storage.write(f"trials/{trial}/environment.json", json.dumps(record).encode())
        attempt(storage, tmp_path, trial, 1, 0, 10, end=True)
    tracker = Tracker(settings, document())
    tracker.sync()
    client = tracker.client
    assert {client.get_run(str(c.run)).info.status for c in tracker.children.values()} == {
        "FINISHED"
    }  # before the rest
    assert client.get_run(tracker.parent).info.status == "RUNNING"
    tracker.finish()
    tracker.finish()
    assert [(m.value, m.step) for m in client.get_metric_history(tracker.parent, "best")] == [(0.1, 0)]
    assert "| 1 |" in client.get_run(tracker.parent).data.tags["mlflow.note.content"]
    parent = client.get_run(tracker.parent)
    assert parent.info.status == "FINISHED" and parent.data.tags["mcc.best"] in {"ratio=0.5", "ratio=0.95"}
    assert parent.data.tags["mcc.state"] == "finished" and "mcc.message" not in parent.data.tags
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
        assert sorted(run.data.metrics)[0] == "_score" and steps(tracker, child.run, "_score") == [5, 10]
        assert shown(tracker, child.run) == [("panel/a", 5), ("panel/a", 10)]
        files = {a.path for a in client.list_artifacts(child.run, "checkpoint")}
        assert files == {"checkpoint/last.pt", "checkpoint/best.pt"}
        assert Path(client.download_artifacts(child.run, "checkpoint/last.pt")).read_bytes() == b"weights 1 10"
        (last,) = settings.artifact_root.rglob(f"{child.run}/artifacts/checkpoint/last.pt")
        assert last.stat().st_nlink == 2  # no second copy on the disk
        (loss,) = [m for m in client.get_metric_history(child.run, "loss/total") if m.step == 10]
        assert 0 <= time.time() - loss.timestamp / 1000 < 600 and run.info.end_time < parent.info.end_time + 1000
        configs = {a.path for a in client.list_artifacts(child.run, "config")}
        assert configs >= {
            "config/experiment.yaml",
            "config/environment.json",
            "config/git.diff",
            "config/start-1.json",
        }
        tags = run.data.tags
        assert (tags["mlflow.source.git.commit"], tags["mlflow.source.name"]) == ("c0ffee", f"{SWEEP}.yaml")
        assert "seed 0: mcc on generated shapes: vit_tiny_patch16_224 from random" in tags["mlflow.note.content"]
        assert f"`mcc predict {SWEEP}/" in tags["mlflow.note.content"]


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
    assert shown(tracker, run) == [("panel/a", 5), ("panel/a", 10)]
    found = tracker.client.search_runs([tracker.experiment], "tags.`mcc.sweep` = 's-1234'")
    assert len(found) == 2  # the parent, and one child: the other trial never began


@pytest.mark.slow
def test_killed_tracker_leaves_nothing_out_and_nothing_twice(
    settings: Settings, storage: Storage, tmp_path: Path
) -> None:
    trial = "0" * 16
    attempt(storage, tmp_path, trial, 1, 0, 60, end=True)
    script = textwrap.dedent(
        f"""
        import sys; sys.path[:0] = [{str(Path(__file__).parent)!r}, {str(Path(experiments.__file__).parent)!r}]
        from pathlib import Path
        from orchestrator.settings import Settings
        from orchestrator.tracking.sync import Tracker
        from test_sync import document
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
            process.kill()  # nothing happens if it was faster
        assert process.wait(60) in ({0, -signal.SIGKILL} if kill else {0})
    tracker = Tracker(settings, document())
    tracker.sync()
    run = tracker.children[trial].run
    assert run is not None
    assert steps(tracker, run) == list(range(1, 61))
    assert steps(tracker, run, "val/seg/single/miou") == list(range(5, 61, 5))
    assert shown(tracker, run) == [("panel/a", i) for i in range(5, 61, 5)]


def test_a_kill_between_metrics_and_cursor_repeats_nothing(
    settings: Settings, storage: Storage, tmp_path: Path
) -> None:
    """The cursor is lost: as if the process had died right after each of its requests."""
    trial = "0" * 16
    attempt(storage, tmp_path, trial, 1, 0, 10, end=True)
    tracker = Tracker(settings, document())
    tracker.sync()
    run = str(tracker.children[trial].run)
    sent = tracker.client.get_metric_history(run, "loss/total")
    tracker.client.delete_tag(run, "mcc.cursor")
    # The same steps at other times: what the store itself would not take for repetitions.
    for name in sorted((settings.home / f"trials/{trial}/events").iterdir()):
        events = [json.loads(line) | {"t": 1e9} for line in name.read_text().splitlines()]
        name.write_text("".join(json.dumps(event) + "\n" for event in events))
    again = Tracker(settings, document())
    again.sync()
    key = lambda m: (m.step, m.value, m.timestamp)  # noqa: E731
    assert sorted(map(key, again.client.get_metric_history(run, "loss/total"))) == sorted(map(key, sent))
    assert shown(again, run) == [("panel/a", 5), ("panel/a", 10)]


def test_segments_that_arrive_after_the_end_from_outside_are_not_left_out(
    settings: Settings, storage: Storage, tmp_path: Path
) -> None:
    """A worker dies with events on its disk, its trial is ended from outside, the next attempt sends what was left."""
    trial = "0" * 16
    attempt(storage, tmp_path, trial, 1, 0, 10, end=False)
    folder = settings.home / f"trials/{trial}/events"
    waiting = sorted(folder.iterdir())[-2:]
    left = {file: file.read_bytes() for file in waiting}
    for file in waiting:
        file.unlink()
    write_end(storage, trial, TrialStatus.FAILED, "its process ended without a word")
    tracker = Tracker(settings, document())
    tracker.sync()
    run = str(tracker.children[trial].run)
    assert tracker.client.get_run(run).info.status == "FAILED" and steps(tracker, run)[-1] < 10
    for file, content in left.items():
        file.write_bytes(content)
    attempt(storage, tmp_path, trial, 2, 10, 12, end=True)
    for fresh in (tracker, Tracker(settings, document())):
        fresh.sync()
        assert steps(fresh, run) == list(range(1, 13))
    assert tracker.client.get_run(run).info.status == "FINISHED"


def test_a_finished_trial_that_is_run_again_replaces_its_run(
    settings: Settings, storage: Storage, tmp_path: Path
) -> None:
    trial = "0" * 16
    attempt(storage, tmp_path, trial, 1, 0, 10, end=True)
    first = Tracker(settings, document())
    first.sync()
    old = str(first.children[trial].run)
    attempt(storage, tmp_path, trial, 2, 0, 5, end=True)  # --force
    for tracker in (first, None):
        tracker = tracker or Tracker(settings, document())  # the second begins when the first is done
        tracker.sync()
        (run,) = tracker.runs("trial")
        assert run.info.run_id == tracker.children[trial].run != old and run.info.status == "FINISHED"
        assert steps(tracker, run.info.run_id) == [1, 2, 3, 4, 5]
        assert shown(tracker, run.info.run_id) == [("panel/a", 5)]


def test_runs_of_trials_whose_process_is_gone_are_ended(settings: Settings, storage: Storage, tmp_path: Path) -> None:
    trial, other = "0" * 16, "0" * 15 + "1"
    storage.write(f"sweeps/{SWEEP}/plan.json", json.dumps(document()).encode())
    storage.write("sweeps/next/plan.json", b"{}")
    attempt(storage, tmp_path, trial, 1, 0, 3, end=False)
    attempt(storage, tmp_path, other, 1, 0, 3, end=False)
    lease = Lease(storage, "l", "another", [other])
    lease.take()
    left = Tracker(settings, document())
    left.sync()  # and then its process is killed
    later = Tracker(settings, document() | {"sweep": "next", "trials": []})
    feeds = feeding(storage, "next")
    feeds.take()
    later.settle()
    runs = {t: left.client.get_run(str(left.children[t].run)).info.status for t in (trial, other)}
    assert runs == {trial: "KILLED", other: "RUNNING"}  # the other is being run by a process that lives
    tags = left.client.get_run(str(left.children[trial].run)).data.tags
    assert tags["mcc.state"] == "interrupted" and tags["mcc.settled"] and "cut off" in tags["mcc.message"]
    assert left.client.get_run(left.parent).info.status == "KILLED"
    assert left.client.get_run(later.parent).info.status == "RUNNING"
    lease.release()
    left.finish()
    assert left.client.get_run(str(left.children[other].run)).info.status == "KILLED"


def test_a_trial_that_cannot_be_shown_does_not_hold_up_the_others(
    settings: Settings, storage: Storage, tmp_path: Path
) -> None:
    bad, good = "0" * 16, "0" * 15 + "1"
    storage.write(f"trials/{bad}/events/0001-000001.jsonl", b"no event\n")
    attempt(storage, tmp_path, good, 1, 0, 5, end=True)
    with BackgroundSync(settings, document(), every_s=0.1) as feeder:
        _until(lambda: bool(feeder.complaints))
        assert "0001-000001.jsonl: line 1 is not an event" in feeder.complaints[0] and feeder.problem is None
    tracker = Tracker(settings, document())
    tracker.sync()
    assert steps(tracker, str(tracker.children[good].run)) == [1, 2, 3, 4, 5]


def test_names_of_photographs_and_classes_that_mlflow_refuses(
    settings: Settings, storage: Storage, tmp_path: Path
) -> None:
    trial = "0" * 16
    outbox = Outbox(storage, tmp_path / "o")
    log = EventLog(outbox, trial, 1)
    log.emit("start", 0, attempt=1, info={})
    for name in ("IMG (1)", "Straße: früh+spät", "gone"):
        path = f"trials/{trial}/images/{len(name)}.png"
        picture = io.BytesIO()
        Image.new("RGB", (8, 8)).save(picture, "PNG")
        if name != "gone":
            outbox.put(path, picture.getvalue())
        log.emit("image", 2, key=f"panel/{name}", path=path)
    log.emit("metrics", 2, metrics={"val/seg/single/iou/a//b(c)/../": 0.5, "loss/total": float("nan")})
    log.close()
    outbox.close(10)
    for _ in range(2):
        tracker = Tracker(settings, document())
        tracker.sync()
        assert tracker.complaints == []
    run = str(tracker.children[trial].run)
    assert shown(tracker, run) == [("panel/IMG _1_", 2), ("panel/Stra_e_ fr_h_sp_t", 2)]
    assert len(tracker.client.get_run(run).data.metrics) == 2


@given(st.text(min_size=1, max_size=300))
def test_any_name_becomes_one_that_mlflow_accepts(name: str) -> None:
    from mlflow.utils.validation import _validate_metric_name

    _validate_metric_name(metric_name(f"val/seg/single/iou/{name}"))
    assert re.fullmatch(r"[a-zA-Z0-9_\-./ ]+", picture_name(f"panel/{name}"))


def test_what_a_sweep_varies_stands_first_in_every_trial() -> None:
    trials = [{"varied": {"mask.ratio": "0.5"}}, {"varied": {"loss.mcc": "0"}}]
    values = {"loss.mcc": "0", "mask.ratio": "0.95", "seed": "0"}
    assert varied_first(trials, values) == {"_varied/mask.ratio": "0.95", "_varied/loss.mcc": "0"}
    assert varied_first([*trials, {"varied": {"crf.passes": "3"}}], values) == varied_first(trials, values)


def test_an_experiment_is_of_models_that_are_trained_unless_somebody_chose(settings: Settings) -> None:
    """Otherwise MLflow opens it on an empty page about language models."""
    kind = "mlflow.experimentKind"
    client = MlflowClient(tracking_uri=settings.tracking_uri)
    before = client.create_experiment("mcc")  # as versions before made it
    assert experiment_of(client, settings) == before
    assert client.get_experiment(before).tags[kind] == "custom_model_development"
    assert page(settings) == f"/#/experiments/{before}/runs?workflowType=machine_learning"
    assert page(Settings.at(settings.home / "never-fed")) == "/#/experiments?workflowType=machine_learning"
    assert not (settings.home / "never-fed").exists()
    client.set_experiment_tag(before, kind, "genai_development")
    assert experiment_of(client, settings) == before
    assert client.get_experiment(before).tags[kind] == "genai_development"


def test_cursor_survives_as_text() -> None:
    cursor = Cursor()
    for name in ("0001-000007.jsonl", "0001-999999.jsonl", "0003-000002.jsonl"):
        cursor.add(name)
    for same in (cursor, Cursor(str(cursor))):
        read = ["0001-000001.jsonl", "0001-000007.jsonl", "0001-999999.jsonl", "0003-000002.jsonl"]
        assert all(name in same for name in read)
        unread = ["0001-000008.jsonl", "0002-000001.jsonl", "0003-000003.jsonl", "0003-999999.jsonl"]
        assert not any(name in same for name in unread)


def test_a_trial_of_two_sweeps_is_a_child_of_both(settings: Settings, storage: Storage, tmp_path: Path) -> None:
    assert runs(Settings.at(tmp_path / "never"), SWEEP) == {}
    assert not (tmp_path / "never").exists()
    trial = "0" * 16
    attempt(storage, tmp_path, trial, 1, 0, 10, end=True)
    trackers = [Tracker(settings, document() | {"sweep": name}) for name in (SWEEP, "other-5678")]
    for tracker in trackers:
        tracker.sync()
        ((identity, run),) = runs(settings, tracker.document["sweep"]).items()
        assert identity == trial
        shown = tracker.client.get_run(run)
        assert shown.data.tags["mlflow.parentRunId"] == tracker.parent and shown.info.status == "FINISHED"
        assert shown.data.metrics["val/seg/single/miou"] == 0.1
        assert shown.data.tags["mcc.varied.mask.ratio"] == "0.5"
    assert trackers[0].parent != trackers[1].parent


def test_runs_go_to_the_experiment_that_was_asked_for_even_if_it_was_deleted(settings: Settings) -> None:
    named = Settings.at(settings.home, experiment_name="mine")
    for _ in range(2):
        tracker = Tracker(named, plan_record(SWEEP))
        experiment = tracker.client.get_experiment_by_name("mine")
        assert experiment is not None and experiment.artifact_location == named.artifact_root.as_uri()
        assert tracker.client.get_run(tracker.parent).info.experiment_id == experiment.experiment_id
        tracker.client.delete_experiment(experiment.experiment_id)


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
    with BackgroundSync(remote, document(), every_s=0.2) as feeder:
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
            assert experiment is not None
            (parent,) = client.search_runs([experiment.experiment_id], "tags.`mcc.kind` = 'sweep'")
            assert parent.info.status == "KILLED"  # the other trial never began
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
    Tracker(settings, plan_record(SWEEP, file=document()["file"])).finish()
    assert list(folder.iterdir()) == []
