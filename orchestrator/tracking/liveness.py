"""MLflow runs of trials and sweeps whose process died say so; those of living processes are left alone.

Whoever comes by settles them: the feeding of any other sweep, `mcc ui` while it is open, `mcc sweep status` and `list`.
A process that stood still for so long that it was taken for dead opens its runs again.
"""

from __future__ import annotations

import threading
from collections.abc import Collection
from contextlib import suppress
from typing import TYPE_CHECKING

from orchestrator.records import layout
from orchestrator.records import sweeps as catalog
from orchestrator.records.events import read_segment, segments, trial_state
from orchestrator.records.leases import claimed, fed
from orchestrator.records.status import CUT_OFF, DONE, TrialStatus
from orchestrator.settings import Settings
from orchestrator.storage.store import Storage
from orchestrator.tracking import client as mlflow_files
from orchestrator.tracking.client import MOST_RUNS
from orchestrator.tracking.names import SETTLED

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

_DEAD = "its process ended without a word"
_STATES = {"finished": "FINISHED", "pruned": "FINISHED", "failed": "FAILED"}


def run_status(status: str) -> str:
    """What MLflow calls a trial's end."""
    return _STATES.get(status, "KILLED")


def sweep_status(statuses: Collection[TrialStatus]) -> str:
    """What MLflow calls the end of a sweep with such trials."""
    return "FAILED" if TrialStatus.FAILED in statuses else "FINISHED" if set(statuses) <= DONE else "KILLED"


def settle(client: MlflowClient, experiment: str, storage: Storage) -> int:
    """End the runs of this storage's sweeps that say RUNNING and that nobody works on; returns how many.

    Raises MLflow's and the network's own errors.
    """
    running = client.search_runs([experiment], "attributes.status = 'RUNNING'", max_results=MOST_RUNS)
    if not running:
        return 0
    # Only now: whoever began to feed a run before it was found has its lease already.
    (trials, sweeps), feeding = claimed(storage), fed(storage)
    here = {key.rsplit("/", 1)[-1] for key in storage.folders(layout.SWEEPS)}
    ended = 0
    for run in running:
        tags = run.data.tags
        sweep, identity = tags.get("mcc.sweep"), tags.get("mcc.identity")
        if sweep not in here or sweep in feeding or identity in trials:
            continue
        if identity is None and sweep in sweeps:
            continue
        if client.get_run(run.info.run_id).info.status == "RUNNING":  # it may have ended by itself meanwhile
            _end(client, storage, run)
            ended += 1
    return ended


def _end(client: MlflowClient, storage: Storage, run: Run) -> None:
    """What storage says of the trial or sweep; what was not shown of it is shown when it is fed again."""
    tags, at = run.data.tags, None
    if (identity := tags.get("mcc.identity")) is not None:
        state = trial_state(storage, identity)
        cut = state.status in {TrialStatus.RUNNING, TrialStatus.NEW}
        status = TrialStatus.INTERRUPTED if cut else state.status
        tell(client, run.info.run_id, status, CUT_OFF if cut else state.message, _DEAD)
        if names := segments(storage, identity):
            at = int(1000 * read_segment(storage, identity, names[-1])[-1]["t"])
        ended = run_status(status)
    else:
        try:
            document = catalog.recorded(storage, tags["mcc.sweep"]).document
            ended = sweep_status({result.status for result in catalog.results(storage, document)})
        except FileNotFoundError:  # being deleted
            ended = "KILLED"
        tell(client, run.info.run_id, ended.lower(), "", _DEAD)
    client.set_terminated(run.info.run_id, ended, at)


def reopen(client: MlflowClient, experiment: str, storage: Storage, sweep: str) -> None:
    """Runs of a sweep that lives after all run again: a process that stood still was taken for dead."""
    closed = [
        run
        for run in client.search_runs([experiment], f"tags.`mcc.sweep` = '{sweep}'", max_results=MOST_RUNS)
        if run.info.status == "KILLED" and run.data.tags.get(SETTLED)
    ]
    if not closed:
        return
    trials, _ = claimed(storage)
    for run in closed:
        identity = run.data.tags.get("mcc.identity")
        if identity is None or (identity in trials and trial_state(storage, identity).status == TrialStatus.RUNNING):
            revive(client, run.info.run_id)


def revive(client: MlflowClient, run: str) -> None:
    """A run that goes on."""
    client.update_run(run, status="RUNNING")
    tell(client, run, TrialStatus.RUNNING, "")


def close(client: MlflowClient, run: str, status: str, at: int | None) -> None:
    """End a sweep's run."""
    tell(client, run, status.lower(), "")
    client.set_terminated(run, status, at)


def tell(client: MlflowClient, run: str, state: str, message: str, settled: str = "") -> None:
    """Put on a run how it stands and why."""
    from mlflow.entities import RunTag

    tags = {"mcc.state": state, "mcc.message": message[:8000], SETTLED: settled}
    known = client.get_run(run).data.tags
    client.log_batch(run, tags=[RunTag(key, value) for key, value in tags.items() if value or known.get(key)])


def settle_all(settings: Settings) -> int:
    """`settle` with what the settings say; where MLflow was never fed, nothing is made.

    Raises MLflow's and the network's own errors.
    """
    if (database := mlflow_files.database(settings)) is not None and not database.exists():
        return 0
    client = mlflow_files.client(settings)
    experiment = client.get_experiment_by_name(settings.experiment_name)
    return settle(client, experiment.experiment_id, Storage(settings.storage)) if experiment else 0


class Watcher:
    """Settles in the background, every few seconds until `stop`. MLflow or storage that are away are no error."""

    def __init__(self, settings: Settings, every_s: float = 15.0) -> None:
        self.settings, self.every_s = settings, every_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="liveness", daemon=True)

    def __enter__(self) -> Watcher:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(timeout=5)

    def _loop(self) -> None:
        while not self._stop.is_set():
            with suppress(Exception):
                settle_all(self.settings)
            self._stop.wait(self.every_s)


def settle_soon(settings: Settings, patience_s: float = 60.0) -> None:
    """`settle_all`, once, for a command that has something else to do: no error, and no waiting on MLflow for long."""

    def attempt() -> None:
        with suppress(Exception):
            settle_all(settings)

    thread = threading.Thread(target=attempt, name="liveness", daemon=True)
    thread.start()
    thread.join(patience_s)
