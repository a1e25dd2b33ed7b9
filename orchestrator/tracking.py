"""The event log as MLflow runs: one parent per sweep, one child per trial. The only module that imports mlflow.

MLflow is a view. It is fed from events alone, in order, and knows how far it is: a cursor in a tag of each child.
Whatever interrupts the feeding (the tracker killed, MLflow away) delays it; feeding again goes on where it stopped.
A step of a metric that is there already is not sent again, so a trial that repeats iterations after a restart shows
each step once. A trial that two sweeps share is a child of both.
"""

from __future__ import annotations

import io
import json
import logging
import os
import re
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from mcc_core.config import Experiment, flatten
from orchestrator import catalog, report
from orchestrator.events import Event, EventReader, trial_state
from orchestrator.settings import Settings
from orchestrator.storage import Storage

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")  # the feeding loop itself tries again

EXPERIMENT = "mcc"
_BATCH = 1000  # metrics in one request: MLflow's limit
_PARAMS = 100
_STATES = {"finished": "FINISHED", "failed": "FAILED", "stopped": "KILLED"}


class Tracker:
    """Feeds one sweep's runs. Not for several threads at a time.

    Raises MLflow's and the network's own errors; `Feeder` turns them into delays.
    """

    def __init__(self, settings: Settings, document: Mapping[str, Any]) -> None:
        for noisy in ("alembic", "mlflow.store.db.utils", "mlflow.utils.file_utils"):
            logging.getLogger(noisy).setLevel(logging.ERROR)
        from mlflow import MlflowClient

        self.settings, self.document = settings, document
        self.storage = Storage(settings.storage)
        if settings.tracking_uri.startswith("sqlite:///"):
            Path(settings.tracking_uri.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
        self.client = MlflowClient(tracking_uri=settings.tracking_uri)
        self.experiment = self._experiment()
        self.parent = self._parent()
        self.children = {t["identity"]: _Child(self, t) for t in document["trials"]}

    def sync(self) -> bool:
        """Forward what is new of every trial; whether anything was."""
        moved = [child.sync() for child in self.children.values()]
        return any(moved)

    def finish(self) -> None:
        """Put leaderboard, heat map and curves on the parent and end every run as its trial ended."""
        for child in self.children.values():
            child.finish()
        results = catalog.results(self.storage, dict(self.document))
        for name, content in summary(self.document, results, self._histories()).items():
            self._artifact(self.parent, name, content)
        file = self.document["file"]
        best = report.leaderboard(results, file["metric"], file["mode"])[:1]
        for row in best:
            values = {"best": row.score} | {
                name.replace(" ", "_"): row.values.get(k) for name, k in report.COLUMNS.items()
            }
            self.client.set_tag(self.parent, "mcc.best", row.point)
            for name, value in values.items():
                if value is not None:
                    self.client.log_metric(self.parent, name, value)
        broken = any(r.status != "finished" for r in results)
        self.client.set_terminated(self.parent, "FAILED" if broken else "FINISHED")

    def _histories(self) -> dict[str, list[Event]]:
        from orchestrator.events import history

        return {t["name"]: history(self.storage, t["identity"]) for t in self.document["trials"]}

    def _experiment(self) -> str:
        found = self.client.get_experiment_by_name(EXPERIMENT)
        if found is not None:
            return str(found.experiment_id)
        location = None
        if self.settings.tracking_uri.startswith("sqlite:///"):
            location = self.settings.artifact_root.as_uri()
        return str(self.client.create_experiment(EXPERIMENT, artifact_location=location))

    def _parent(self) -> str:
        run = self.run({"mcc.sweep": self.document["sweep"], "mcc.kind": "sweep"}, self.document["sweep"])
        self.client.update_run(run, status="RUNNING")
        if "plan.json" not in {a.path for a in self.client.list_artifacts(run)}:
            self._artifact(run, "plan.json", json.dumps(self.document, indent=1).encode())
            self.client.set_tag(
                run, "mlflow.note.content", self.document["file"]["description"] or self.document["name"]
            )
        return run

    def run(self, tags: dict[str, str], name: str, more: Mapping[str, str] | None = None) -> str:
        """Id of the run with these tags, created if there is none."""
        query = " and ".join(f"tags.`{key}` = '{value}'" for key, value in tags.items())
        found = self.client.search_runs([self.experiment], query, max_results=1)
        if found:
            return str(found[0].info.run_id)
        created = self.client.create_run(self.experiment, run_name=name, tags=tags | dict(more or {}))
        return str(created.info.run_id)

    def _artifact(self, run: str, name: str, content: bytes) -> None:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / Path(name).name
            file.write_bytes(content)
            self.client.log_artifact(run, str(file), str(Path(name).parent) if "/" in name else None)


class _Child:
    """The run of one trial within one sweep."""

    def __init__(self, tracker: Tracker, trial: Mapping[str, Any]) -> None:
        self.tracker, self.trial = tracker, trial
        self.run: str | None = None
        self.reader = EventReader(tracker.storage, trial["identity"])
        self.last_step: dict[str, int] = {}
        self.pictures: set[tuple[str, int]] = set()

    def sync(self) -> bool:
        moved = False
        if self.run is None:
            if trial_state(self.tracker.storage, self.trial["identity"]).status == "new":
                return False
            self._open()
            moved = True
        before = self.reader.cursor
        try:
            for name, events in self.reader:
                self._forward(events, name)
                before, moved = name, True
        except BaseException:
            self.reader.cursor = before  # the segment that failed is read again
            raise
        return moved

    def finish(self) -> None:
        """End the run as the trial ended; one that never began has no run."""
        if self.run is None:
            return
        state = trial_state(self.tracker.storage, self.trial["identity"])
        if state.status in _STATES:
            self._last_checkpoint()
            if state.message:
                self.tracker.client.set_tag(self.run, "mcc.message", state.message[:5000])
            self.tracker.client.set_terminated(self.run, _STATES[state.status])

    def _open(self) -> None:
        tracker, trial = self.tracker, self.trial
        identity = {"mcc.sweep": tracker.document["sweep"], "mcc.identity": trial["identity"]}
        more = {"mlflow.parentRunId": tracker.parent, "mcc.kind": "trial", "mcc.point": trial["point"]}
        varied = {f"mcc.varied.{key}": value for key, value in trial["varied"].items()}
        run = tracker.run(identity, trial["name"], more | varied)
        stored = tracker.client.get_run(run)
        self.run, self.reader.cursor = run, stored.data.tags.get("mcc.cursor", "")
        tracker.client.update_run(run, status="RUNNING")
        if self.reader.cursor:
            for key in stored.data.metrics:
                self.last_step[key] = max(m.step for m in tracker.client.get_metric_history(run, key))
            self.pictures = _pictures(tracker.client.list_artifacts(run, "images"))
        else:
            self._describe()

    def _describe(self) -> None:
        from mlflow.entities import Param

        assert self.run is not None
        tracker, trial = self.tracker, self.trial
        experiment = Experiment.model_validate(trial["experiment"])
        params = [Param(k, v) for k, v in ({"seed": str(trial["seed"])} | flatten(experiment)).items()]
        for start in range(0, len(params), _PARAMS):
            tracker.client.log_batch(self.run, params=params[start : start + _PARAMS])
        text = yaml.safe_dump(trial["experiment"], sort_keys=False).encode()
        tracker._artifact(self.run, "config/experiment.yaml", text)
        key = f"trials/{trial['identity']}/environment.json"
        if tracker.storage.exists(key):
            environment = json.loads(tracker.storage.read(key))
            git = environment.get("git") or {}
            tracker._artifact(self.run, "config/environment.json", json.dumps(environment, indent=1).encode())
            if git.get("diff"):
                tracker._artifact(self.run, "config/git.diff", git["diff"].encode())
            if git.get("commit"):
                tracker.client.set_tag(self.run, "mlflow.source.git.commit", git["commit"])

    def _forward(self, events: Sequence[Event], segment: str) -> None:
        from mlflow.entities import Metric, RunTag
        from PIL import Image

        assert self.run is not None
        client, rows = self.tracker.client, []
        for event in events:
            step, at = event["iteration"], int(event["t"] * 1000)
            if event["kind"] == "metrics":
                for key, value in event["metrics"].items():
                    if step > self.last_step.get(key, -1):
                        rows.append(Metric(_allowed(key), value, at, step))
            elif event["kind"] == "image" and (_allowed(event["key"]), step) not in self.pictures:
                picture = Image.open(io.BytesIO(self.tracker.storage.read(event["path"])))
                client.log_image(self.run, picture, key=_allowed(event["key"]), step=step)
                self.pictures.add((_allowed(event["key"]), step))
        for start in range(0, len(rows), _BATCH):
            client.log_batch(self.run, metrics=rows[start : start + _BATCH])
        client.log_batch(self.run, tags=[RunTag("mcc.cursor", segment)])
        for row in rows:
            self.last_step[row.key] = max(row.step, self.last_step.get(row.key, -1))

    def _last_checkpoint(self) -> None:
        """The newest checkpoint, once, as an artifact."""
        assert self.run is not None
        keys = self.tracker.storage.list(f"trials/{self.trial['identity']}/checkpoints")
        newest = max((key for key in keys if key.endswith(".pt")), default=None)
        client = self.tracker.client
        if newest is None or any(
            a.path.endswith(Path(newest).name) for a in client.list_artifacts(self.run, "checkpoint")
        ):
            return
        local = self.tracker.storage.local(newest)
        if local is not None:
            client.log_artifact(self.run, str(local), "checkpoint")
        else:
            with tempfile.TemporaryDirectory() as folder:
                file = Path(folder) / Path(newest).name
                self.tracker.storage.download(newest, file)
                client.log_artifact(self.run, str(file), "checkpoint")
        client.set_tag(self.run, "mcc.checkpoint", self.tracker.storage.where(newest))


class Feeder:
    """Feeds MLflow in the background, and goes on trying when it is away. `problem` says why it waits."""

    def __init__(self, settings: Settings, document: Mapping[str, Any], every_s: float = 2.0) -> None:
        self.settings, self.document, self.every_s = settings, document, every_s
        self.problem: str | None = None
        self._tracker: Tracker | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="tracking", daemon=True)

    def __enter__(self) -> Feeder:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(timeout=120)

    def finish(self, patience_s: float = 60.0) -> bool:
        """Forward the rest and end the runs; False when MLflow did not answer in time (nothing is lost)."""
        self._stop.set()
        self._thread.join(timeout=patience_s)
        if self._thread.is_alive():
            return False
        end = time.monotonic() + patience_s
        while not self._attempt(last=True):
            if time.monotonic() > end:
                return False
            time.sleep(self.every_s)
        return True

    def _loop(self) -> None:
        while not self._stop.wait(self.every_s if self._tracker else 0):
            if not self._attempt(last=False):
                self._stop.wait(self.every_s)

    def _attempt(self, *, last: bool) -> bool:
        try:
            self._tracker = self._tracker or Tracker(self.settings, self.document)
            self._tracker.sync()
            if last:
                self._tracker.finish()
        except Exception as error:  # MLflow, its database, its network: all of it only delays the view
            self.problem = f"{type(error).__name__}: {str(error).splitlines()[0][:200] if str(error) else ''}"
            return False
        self.problem = None
        return True


def rebuild(settings: Settings, document: Mapping[str, Any]) -> None:
    """Make a sweep's runs again from its events; the old ones are deleted."""
    tracker = Tracker(settings, document)
    query = f"tags.`mcc.sweep` = '{document['sweep']}'"
    for run in tracker.client.search_runs([tracker.experiment], query, max_results=50_000):
        tracker.client.delete_run(run.info.run_id)
    fresh = Tracker(settings, document)
    fresh.sync()
    fresh.finish()


def summary(
    document: Mapping[str, Any], results: Sequence[report.Result], histories: Mapping[str, Sequence[Event]]
) -> dict[str, bytes]:
    """The files that tell of a whole sweep: leaderboard in three forms, heat map, learning curves."""
    file = document["file"]
    lines = report.table(report.leaderboard(results, file["metric"], file["mode"]), file["metric"])
    files = {
        "leaderboard.md": report.markdown(lines).encode(),
        "leaderboard.csv": report.csv_text(lines).encode(),
        "leaderboard.html": report.html_text(lines, document["name"]).encode(),
        "curves.png": report.curves(histories, report.COLUMNS | {"total loss": "loss/total"}),
    }
    if file["heatmap"]:
        drawn = report.heat_map(results, file["heatmap"]["x"], file["heatmap"]["y"], document["name"])
        if drawn is not None:
            files["heatmap.png"] = drawn
    return files


def _allowed(key: str) -> str:
    """A name that MLflow accepts."""
    return re.sub(r"[^\w\-. /:]", "_", key)


def _pictures(artifacts: Sequence[Any]) -> set[tuple[str, int]]:
    """(key, step) of the images that a run has; MLflow puts both in the file name."""
    found = set()
    for artifact in artifacts:
        parts = Path(artifact.path).name.split("%")
        if len(parts) > 3 and parts[1] == "step":
            found.add((parts[0].replace("#", "/"), int(parts[2])))
    return found
