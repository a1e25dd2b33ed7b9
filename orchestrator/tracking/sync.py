"""The event log as MLflow runs: one parent per sweep, one child per trial. Imports mlflow where it needs it.

MLflow is a view, fed from the events in storage alone. Each child knows in a tag which segments it was fed. Whatever
interrupts the feeding (the tracker killed, MLflow away) delays it; feeding again goes on where it stopped. A step of a
metric that is there already is not sent again, so a trial that repeats iterations after a restart shows each step
once. A finished trial that is run again (`--force`) begins a new run, which replaces the old one.

A trial that two sweeps share is a child of both: a run can have one parent only, and each sweep shows all its trials.
"""

from __future__ import annotations

import io
import json
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from mcc_core.errors import MCCError
from mcc_core.methods.registry import experiment_of
from mcc_core.validation import flatten
from orchestrator.analysis.figures import markdown, summary
from orchestrator.analysis.leaderboard import COLUMNS, all_background, leaderboard, table
from orchestrator.records import layout
from orchestrator.records import sweeps as catalog
from orchestrator.records.checkpoints import CheckpointRecord, best_saved, saved_checkpoints
from orchestrator.records.events import Event, history, read_segment, segments, trial_state
from orchestrator.records.plans import PlanRecord, supervision
from orchestrator.records.results import Result
from orchestrator.records.status import TrialStatus
from orchestrator.records.waiting import silence
from orchestrator.settings import Settings
from orchestrator.storage.store import Storage
from orchestrator.text import reason
from orchestrator.tracking import client as mlflow_files
from orchestrator.tracking.client import MOST_RUNS
from orchestrator.tracking.cursor import Cursor
from orchestrator.tracking.liveness import close, reopen, revive, run_status, settle, sweep_status, tell
from orchestrator.tracking.models import dataset, forget_models, log_model, store_checkpoint
from orchestrator.tracking.names import metric_name, picture_name, pictures, score_first, varied_first
from orchestrator.tracking.notes import note, source
from orchestrator.tracking.queries import is_whole

if TYPE_CHECKING:
    from mlflow.entities import Metric, Run


_BATCH = 999  # metrics in one request: MLflow's limit of 1000, less one for the cursor
_PARAMS = 100


class Tracker:
    """Feeds one sweep's runs. Not for several threads at a time.

    Raises MLflow's and the network's own errors, after which a new Tracker goes on; `BackgroundSync` does that. A
    trial whose events cannot be shown (a broken file, a value that MLflow refuses) is left alone and named in
    `complaints`.
    """

    def __init__(self, settings: Settings, document: PlanRecord) -> None:
        self.settings, self.document = settings, document
        self.storage = Storage(settings.storage)
        self.client = mlflow_files.client(settings)
        self.experiment = mlflow_files.experiment(self.client, settings)
        self.parent = self._parent()
        self.complaints: list[str] = []
        self._known = {run.data.tags["mcc.identity"]: run for run in self.runs("trial")}
        self.children: dict[str, _Child] = {}
        self._welcome()

    def sync(self) -> bool:
        """Forward what is new of every trial; whether anything was."""
        from mlflow.exceptions import MlflowException

        moved = False
        self._welcome()
        for child in self.children.values():
            if child.broken:
                continue
            try:
                moved = child.sync() or moved
            except (MCCError, MlflowException) as error:
                if isinstance(error, MlflowException) and error.error_code != "INVALID_PARAMETER_VALUE":
                    raise
                child.broken = True
                self.complaints.append(f"{child.trial['name']}: {line(error)}")
        return moved

    def _welcome(self) -> None:
        """Trials of the document, which may grow while a search runs."""
        for trial in self.document["trials"][len(self.children) :]:
            self.children[trial["identity"]] = _Child(self, trial, self._known.get(trial["identity"]))

    def finish(self, files: Mapping[str, bytes] | None = None) -> None:
        """Put leaderboard, heat map and curves on the parent, and end every run that nobody works on any more.

        Args:
            files: what `summary` gives, where it is known; default: made here.
        """
        document = self.document.copy()
        results = catalog.results(self.storage, document)
        for result in results:
            if result.status == TrialStatus.INTERRUPTED:
                self.children[result.identity].cut_off(result.message)
        histories = {t["name"]: history(self.storage, t["identity"]) for t in document["trials"]}
        for name, content in (summary(document, results, histories) if files is None else files).items():
            self.artifact(self.parent, name, content)
        last = max((e["t"] for events in histories.values() for e in events), default=document["created"])
        self._scores(results, int(1000 * last))
        statuses = {result.status for result in results}
        if TrialStatus.RUNNING not in statuses:
            close(self.client, self.parent, sweep_status(statuses), int(1000 * last))

    def settle(self) -> None:
        """End the runs of other sweeps whose process is gone, go on with this one's that were taken for such, and say
        which of its trials wait for a node."""
        settle(self.client, self.experiment, self.storage)
        reopen(self.client, self.experiment, self.storage, self.document["sweep"])
        for child in self.children.values():
            child.listen()

    def artifact(self, run: str, name: str, content: bytes) -> None:
        """Store content as an artifact, in place of one of the same name."""
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / Path(name).name
            file.write_bytes(content)
            self.client.log_artifact(run, str(file), str(Path(name).parent) if "/" in name else None)

    def _scores(self, results: Sequence[Result], at: int) -> None:
        from mlflow.entities import Metric, RunTag

        file = self.document["file"]
        rows = leaderboard(results, file["metric"], file["mode"])
        lines = table(rows[:20], file["metric"], all_background(results))
        note = f"{file['description'] or self.document['name']}\n\n{markdown(lines)}"
        tags = [RunTag("mlflow.note.content", note[:8000])]
        scores = {}
        if rows:
            tags.append(RunTag("mcc.best", rows[0].point))
            scores = {"best": rows[0].score} | {
                f"best {name}": rows[0].values[key] for name, key in COLUMNS.items() if key in rows[0].values
            }
        self.client.log_batch(self.parent, metrics=[Metric(k, v, at, 0) for k, v in scores.items()], tags=tags)

    def runs(self, kind: str) -> list[Run]:
        """The sweep's runs of a kind, `sweep` (the parent) or `trial`."""
        query = f"tags.`mcc.sweep` = '{self.document['sweep']}' and tags.`mcc.kind` = '{kind}'"
        return list(self.client.search_runs([self.experiment], query, max_results=MOST_RUNS))

    def _parent(self) -> str:
        sweep, created = self.document["sweep"], int(1000 * self.document["created"])
        runs = self.runs("sweep")
        self.before = runs[0].info if runs else None
        if runs:
            revive(self.client, runs[0].info.run_id)
            return str(runs[0].info.run_id)
        tags = {"mcc.sweep": sweep, "mcc.kind": "sweep"} | source(self.document, self.document["commit"])
        run = str(self.client.create_run(self.experiment, created, tags, sweep).info.run_id)
        self.artifact(run, "plan.json", json.dumps(self.document, indent=1).encode())
        return run


class _Child:
    """The run of one trial within one sweep. It is made when the trial has its first event."""

    def __init__(self, tracker: Tracker, trial: Mapping[str, Any], stored: Run | None) -> None:
        self.tracker, self.client, self.storage = tracker, tracker.client, tracker.storage
        self.trial, self.identity = trial, str(trial["identity"])
        self.run: str | None = stored.info.run_id if stored else None
        self.broken = False
        self._stored = stored
        self._opened = False
        self._told: float | None = None  # of the last event; None: not known
        self._over = stored is not None and stored.info.status != "RUNNING"
        tags = stored.data.tags if stored else {}
        self._said = (tags.get("mcc.state", ""), tags.get("mcc.message", ""))
        self._finished = stored is not None and is_whole(stored)
        self._cursor = Cursor(stored.data.tags.get("mcc.cursor", "") if stored else "")
        self._last_step: dict[str, int] = {}
        self._pictures: set[tuple[str, int]] = set()
        self._rows: list[Metric] = []

    def sync(self) -> bool:
        """Forward new segments; whether there were any."""
        names = [n for n in segments(self.storage, self.identity) if n not in self._cursor]
        for name in names:
            events = read_segment(self.storage, self.identity, name)
            if not self._opened:
                self._open(events[0])
            for event in events:
                self._forward(event)
            self._cursor.add(name)
            if len(self._rows) >= _BATCH:
                self._send()
        if names:
            self._send()
        return bool(names)

    def cut_off(self, message: str) -> None:
        """End the run of a trial that has no end and no process."""
        if self.run is not None:
            self._terminate(TrialStatus.INTERRUPTED, message, None)

    def listen(self) -> None:
        """Say of a trial that neither writes nor ended whether it waits for a node, and take that back."""
        if self.run is None or self._over:
            return
        if self._told is None:
            self._told = trial_state(self.storage, self.identity).told
        state, message = silence(self.storage, self.identity, self._told)
        if (state, message) != self._said and self._told:
            tell(self.client, self.run, state, message)
            self._said = (state, message)

    def _open(self, first: Event) -> None:
        if self.run is None:
            self._create(first)
        elif self._stored is not None:
            self._last_step = {m.key: m.step for m in self._stored.data.to_proto().metrics}
            self._pictures = pictures(a.path for a in self.client.list_artifacts(self.run, "images"))
            if not str(self._cursor):
                self._describe()  # perhaps cut short when the run was made
        self._opened = True

    def _create(self, first: Event) -> None:
        tracker, trial = self.tracker, self.trial
        tags = {"mcc.sweep": tracker.document["sweep"], "mcc.identity": self.identity, "mcc.kind": "trial"}
        tags |= {"mlflow.parentRunId": tracker.parent, "mcc.point": trial["point"], "mcc.seed": str(trial["seed"])}
        tags["mcc.supervision"] = supervision(trial)
        tags |= {f"mcc.varied.{key}": value for key, value in trial["varied"].items()}
        tags |= source(tracker.document, None) | {"mlflow.note.content": note(tracker.document, trial)}
        tags |= {f"mcc.{key}": trial[key] for key in ("stage", "input", "network") if trial.get(key)}
        started = int(1000 * first["t"])
        self.run = str(self.client.create_run(tracker.experiment, started, tags, trial["name"]).info.run_id)
        self._describe()

    def _describe(self) -> None:
        from mlflow.entities import DatasetInput, InputTag, Param

        assert self.run is not None
        flat = {"seed": str(self.trial["seed"])} | flatten(experiment_of(self.trial["experiment"], "trial"))
        flat |= {f"refine/{key}": json.dumps(value) for key, value in (self.trial.get("refine") or {}).items()}
        varied = dict(self.trial["varied"])
        first = varied_first(self.tracker.document["trials"], flat | varied)
        params = [Param(key, value) for key, value in (first | varied | flat).items()]
        for start in range(0, len(params), _PARAMS):
            self.client.log_batch(self.run, params=params[start : start + _PARAMS])
        used = DatasetInput(dataset(self.trial), [InputTag("mlflow.data.context", "training")])
        self.client.log_inputs(self.run, [used])
        text = yaml.safe_dump(self.trial["experiment"], sort_keys=False)
        self.tracker.artifact(self.run, "config/experiment.yaml", text.encode())
        with suppress(FileNotFoundError):
            environment = json.loads(self.storage.read(layout.environment(self.identity)))
            git = environment.get("git") or {}
            self.tracker.artifact(self.run, "config/environment.json", json.dumps(environment, indent=1).encode())
            if git.get("diff"):
                self.tracker.artifact(self.run, "config/git.diff", git["diff"].encode())
            if git.get("commit"):
                self.client.set_tag(self.run, "mlflow.source.git.commit", git["commit"])

    def _forward(self, event: Event) -> None:
        from mlflow.entities import Metric

        step, kind, self._told = event["iteration"], event["kind"], float(event["t"])
        if kind in ("metrics", "machine"):
            for key, value in score_first(event["metrics"], self.tracker.document["file"].get("metric")).items():
                name = metric_name(key)
                if step > self._last_step.get(name, -1):
                    self._rows.append(Metric(name, value, int(1000 * event["t"]), step))
                    self._last_step[name] = step
        elif kind == "image":
            self._picture(picture_name(event["key"]), step, event["path"])
        elif kind == "start":
            self._start(event)
        elif kind == "end":
            self._end(event)

    def _send(self) -> None:
        from mlflow.entities import RunTag

        assert self.run is not None
        while len(self._rows) > _BATCH:
            self.client.log_batch(self.run, metrics=self._rows[:_BATCH])
            del self._rows[:_BATCH]
        self.client.log_batch(self.run, metrics=self._rows, tags=[RunTag("mcc.cursor", str(self._cursor))])
        self._rows.clear()

    def _picture(self, name: str, step: int, key: str) -> None:
        from PIL import Image

        assert self.run is not None
        if (name, step) in self._pictures:
            return
        with suppress(FileNotFoundError):  # a picture that was cleared away does not hold up the rest
            picture = Image.open(io.BytesIO(self.storage.read(key)))
            self.client.log_image(self.run, picture, key=name, step=step)
            self._pictures.add((name, step))

    def _start(self, event: Event) -> None:
        assert self.run is not None
        if event["iteration"] == 0 and self._finished:
            forget_models(self.client, self.tracker.experiment, self.run)
            self.client.delete_run(self.run)
            self._rows.clear()
            self._last_step.clear()
            self._pictures.clear()
            self._create(event)
        else:
            revive(self.client, self.run)
        self._finished = self._over = False
        self._said = (TrialStatus.RUNNING, "")
        content = json.dumps(event, indent=1).encode()
        self.tracker.artifact(self.run, f"config/start-{event['attempt']}.json", content)

    def _end(self, event: Event) -> None:
        """The checkpoints first, so that a run that is over has them."""
        if event["status"] in {TrialStatus.FINISHED, TrialStatus.FAILED, TrialStatus.PRUNED}:
            assert self.run is not None
            saved = saved_checkpoints(self.storage, self.identity)
            modes = self.tracker.document["file"]["mode"]
            chosen = {"last": saved[-1] if saved else None, "best": best_saved(saved, modes)}
            for name, item in chosen.items():
                if item is not None and (name == "last" or item != chosen["last"]):
                    store_checkpoint(self.client, self.storage, self.run, item.key(self.identity), f"{name}.pt")
            if (best := chosen["best"]) is not None:
                self._model(best)
        self._finished = event["status"] == TrialStatus.FINISHED
        if self.run is not None and event.get("cause"):
            self.client.set_tag(self.run, "mcc.cause", event["cause"])
        self._terminate(event["status"], event["message"], int(1000 * event["t"]))

    def _model(self, best: CheckpointRecord) -> None:
        """The best checkpoint as a model, after the scores that are linked to it were sent."""
        from mlflow.exceptions import MlflowException

        assert self.run is not None
        self._send()
        try:
            log_model(self.client, self.storage, self.run, self.trial, self.tracker.document["sweep"], best)
        except FileNotFoundError:
            pass  # a checkpoint that was cleared away does not hold up the rest
        except MlflowException as error:
            if error.error_code not in ("ENDPOINT_NOT_FOUND", "NOT_IMPLEMENTED"):
                raise
            self.tracker.complaints.append(f"{self.trial['name']}: no model: MLflow servers from 3.0 on keep them")

    def _terminate(self, status: str, message: str, at: int | None) -> None:
        assert self.run is not None
        tell(self.client, self.run, status, message)
        self._over = True
        self.client.set_terminated(self.run, run_status(status), at)


def line(error: Exception) -> str:
    """An error in one line, with its kind."""
    return f"{type(error).__name__}: {reason(error)}"
