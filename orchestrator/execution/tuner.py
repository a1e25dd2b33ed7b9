"""Ray Tune over Ray Train, in a thread: hands out trials, keeps a number of them running, restarts what dies."""

from __future__ import annotations

import contextlib
import json
import logging
import threading
from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from typing import Any

from orchestrator.cluster.session import driver_resources, keep_credentials_out_of_ray, prepare_environment
from orchestrator.execution.queue import TrialQueue
from orchestrator.records import layout
from orchestrator.records.events import trial_state, write_end
from orchestrator.records.status import ENDED, TrialStatus
from orchestrator.storage.store import Storage, retry
from orchestrator.worker.assignment import Assignment
from orchestrator.worker.warm import run_warm

_TAIL_LINES = 15


class TuneRun:
    """One Tune experiment over what a queue hands out.

    Setting `stopping` hands out no further trial. Runs in a thread of its own: Tune would otherwise take over the
    signals of the process. `keep`: processes of trials with one worker wait for the next; for sweeps without any trial
    of several workers, which would wait for what they hold.
    """

    def __init__(
        self,
        queue: TrialQueue,
        *,
        concurrent: int,
        max_failures: int,
        name: str,
        storage_path: str,
        keep: bool,
    ) -> None:
        self.queue = queue
        self._keep = keep
        self._concurrent, self._max_failures = concurrent, max_failures
        self._name, self._storage_path = name, storage_path
        self.stopping = False
        self.error: BaseException | None = None
        self.active: dict[str, str] = {}  # Tune's trial id to identity
        self.begun: set[str] = set()  # identities handed out so far
        self._thread = threading.Thread(target=self._run, name="tune", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def alive(self) -> bool:
        return self._thread.is_alive()

    def wait(self, seconds: float) -> None:
        self._thread.join(seconds)

    def running(self) -> list[str]:
        """Identities handed out and not ended yet."""
        return list(self.active.values())

    def _run(self) -> None:
        try:
            self._fit()
        except BaseException as error:
            self.error = error

    def _fit(self) -> None:
        prepare_environment()
        from ray import tune

        keep_credentials_out_of_ray()
        for name in ("ray", "ray.tune", "ray.train"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
        driver = tune.with_parameters(
            drive,
            max_failures=self._max_failures,
            name=self._name,
            storage_path=self._storage_path,
            keep=self._keep,
        )
        tuner = tune.Tuner(
            tune.with_resources(driver, driver_resources()),
            tune_config=tune.TuneConfig(
                search_alg=_searcher(self),
                num_samples=-1,  # until the queue says that it is over
                max_concurrent_trials=self._concurrent,
                reuse_actors=True,
                trial_dirname_creator=lambda trial: trial.trial_id,
            ),
            run_config=tune.RunConfig(
                name=self._name,
                storage_path=self._storage_path,
                verbose=0,
                callbacks=[_silence()],
                failure_config=tune.FailureConfig(max_failures=1),  # of the trial's waiting process, not of workers
            ),
        )
        tuner.fit()


def _silence() -> Any:
    """In place of the callback that prints each trial's end even with `verbose=0`."""
    from ray.tune.progress_reporter import TrialProgressCallback

    class Silence(TrialProgressCallback):
        def on_trial_result(self, *_: Any, **__: Any) -> None: ...
        def on_trial_error(self, *_: Any, **__: Any) -> None: ...
        def on_trial_complete(self, *_: Any, **__: Any) -> None: ...

    return Silence()


def _searcher(run: TuneRun) -> Any:
    """A Tune searcher that hands out what the run's queue says."""
    from ray.tune.search import Searcher

    class Queue(Searcher):
        def __init__(self, run: TuneRun) -> None:
            super().__init__(metric="iteration", mode="max")
            self.run = run

        def __getstate__(self) -> dict[str, Any]:
            return {}  # Tune pickles its searcher; this one's state is of no use to another process

        def suggest(self, trial_id: str) -> Any:
            if self.run.stopping:
                return Searcher.FINISHED
            task = self.run.queue.take()
            if task is None:
                return Searcher.FINISHED if self.run.queue.over() else None
            self.run.active[trial_id] = task.identity
            self.run.begun.add(task.identity)
            return {"task": json.dumps(asdict(task))}

        def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
            identity = self.run.active.pop(trial_id, None)
            if identity is not None:
                self.run.queue.ended(identity)

        def save(self, checkpoint_path: str) -> None:
            """Nothing to keep: what is left to do is read from storage."""

        def restore(self, checkpoint_path: str) -> None:
            """See `save`."""

    return Queue(run)


def drive(
    config: dict[str, Any],
    max_failures: int,
    name: str,
    storage_path: str,
    keep: bool,
) -> None:
    """One Tune trial: a Train run of the trial's workers, or a warm process where it has only one.

    Leaves an end event whatever happens; raises nothing of the workers'.
    """
    import ray.train
    from ray.train.torch import TorchTrainer
    from ray.tune.integration.ray_train import TuneReportCallback

    task = json.loads(config["task"])
    workers = Assignment(**task).processes
    if workers == 1:
        try:
            ran = run_warm(task, max_failures, keep=keep, stopped=partial(_stopped, task))
        except ray.exceptions.RayError as error:
            _end_failed(task, error)
        else:
            if not ran:
                _end(task, TrialStatus.STOPPED, "the sweep was stopped while this trial waited for a worker")
        return
    resources = {"CPU": task["cpus_per_worker"]}
    if task["gpus_per_worker"]:
        resources["GPU"] = task["gpus_per_worker"]
    trainer = TorchTrainer(
        work,
        train_loop_config=dict(task),
        scaling_config=ray.train.ScalingConfig(
            num_workers=workers,
            use_gpu=bool(task["gpus_per_worker"]),
            resources_per_worker=resources,
        ),
        run_config=ray.train.RunConfig(
            name=f"{name}/{task['identity']}" + (f"-{task['until']}" if task["until"] else ""),
            storage_path=storage_path,
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=1),
            failure_config=ray.train.FailureConfig(max_failures=max_failures),
            callbacks=[TuneReportCallback()],  # type: ignore[list-item]
        ),
    )
    retry(lambda: Storage(task["storage"]).exists(layout.trial(task["identity"])))  # Ray itself would not wait for it
    try:
        trainer.fit()
    except ray.train.TrainingFailedError as error:
        _end_failed(task, error)


def work(config: dict[str, Any]) -> None:
    """What every worker runs. It imports the method here: the processes that only wait for workers start faster."""
    from orchestrator.worker.loop import train_loop

    train_loop(config)


def _stopped(task: Mapping[str, Any]) -> bool:
    """Whether the sweep is asked to stop; storage that is away says nothing."""
    with contextlib.suppress(OSError):
        return Storage(task["storage"]).exists(task["stop_key"])
    return False


def _end(task: Mapping[str, Any], status: TrialStatus, message: str) -> None:
    storage = Storage(task["storage"])
    retry(lambda: write_end(storage, task["identity"], status, message, launch=task["launch"]))


def _end_failed(task: Mapping[str, Any], error: BaseException) -> None:
    """Put the failure on record, unless a worker did so itself."""
    storage, identity = Storage(task["storage"]), task["identity"]
    state = retry(lambda: trial_state(storage, identity))
    if state.status in ENDED and state.launch == task["launch"]:
        return
    failures = getattr(error, "worker_failures", None)
    cause = next(iter(failures.values())) if failures else error
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    message = "\n".join([lines[-1] if lines else type(cause).__name__, *_log_tail(storage, identity)])
    _end(task, TrialStatus.FAILED, message)


def _log_tail(storage: Storage, identity: str) -> list[str]:
    """The last lines that the trial's newest worker printed, with the file they are from."""
    logs = storage.list(layout.logs(identity))
    if not logs:
        return []
    lines = storage.read(logs[-1]).decode("utf-8", "replace").splitlines()[-_TAIL_LINES:]
    return [f"last lines of {storage.where(logs[-1])}:", *(f"  {line}" for line in lines)]
