"""Trials of one worker, in a process that is kept for the next one: Ray and torch are imported once, and neither a
placement group nor a Train controller is made for a single process.

A process is kept only after a trial that ended as asked; after anything else it is replaced, so that no trial sees what
a broken one left behind.
"""

from __future__ import annotations

import contextlib
import gc
import time
from collections.abc import Callable, Mapping
from typing import Any

from orchestrator.records.status import TrialStatus

_LOOK_S = 2.0  # between looks for a stop, while no node has room for a worker
_START_S = 10.0  # that a worker's process may take to start where there is room
_kept: list[Any] = []  # the worker actor of this waiting process, at most one


class WarmWorker:
    """Runs one trial after the other; an actor of Ray's."""

    def ready(self) -> None:
        """Returns once the process has its place on a node."""

    def run(self, task: dict[str, Any]) -> bool:
        """Run one attempt of a trial. Returns whether the process is fit for another trial."""
        import torch

        from orchestrator.records.events import trial_state
        from orchestrator.storage.store import Storage, retry
        from orchestrator.worker.loop import train_loop

        train_loop(task, by_itself=True)
        gc.collect()
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()
        storage = Storage(task["storage"])
        state = retry(lambda: trial_state(storage, task["identity"]))
        return state.status in {TrialStatus.FINISHED, TrialStatus.STOPPED, TrialStatus.PRUNED}


def run_warm(task: Mapping[str, Any], max_failures: int, *, keep: bool, stopped: Callable[[], bool]) -> bool:
    """Run a trial of one worker in the worker actor of this process, again up to `max_failures` times where it dies.

    Returns False when the sweep was `stopped` while no node had room for the worker, so that it was not run (again).
    Raises the last attempt's `ray.exceptions.RayError`.

    Args:
        keep: leave the actor, and what it holds of the cluster, to the next trial.
    """
    import ray

    for attempt in range(max_failures + 1):
        try:
            actor = _actor(task)
            if not _placed(actor, task, stopped):
                _discard()
                return False
            fit = ray.get(actor.run.remote(dict(task)))
        except ray.exceptions.RayError:
            _discard()
            if attempt == max_failures:
                raise
        else:
            if not (fit and keep):
                _discard()
            break
    return True


def _placed(actor: Any, task: Mapping[str, Any], stopped: Callable[[], bool]) -> bool:
    """Wait until the actor has its place, and put on record that the trial waits; False when the sweep is stopped
    before."""
    import ray

    from orchestrator.records.waiting import begin_waiting, end_waiting
    from orchestrator.storage.store import Storage

    storage, identity = Storage(task["storage"]), task["identity"]
    answer, began, marked = actor.ready.remote(), time.monotonic(), False
    try:
        while not ray.wait([answer], timeout=_LOOK_S)[0]:
            if stopped():
                return False
            if not marked and time.monotonic() - began > _START_S:
                marked = begin_waiting(storage, identity)
        ray.get(answer)
        return True
    finally:
        if marked:
            end_waiting(storage, identity)


def _actor(task: Mapping[str, Any]) -> Any:
    import ray
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    if not _kept:
        # Outside of Tune's placement group, which has room for this waiting process alone.
        outside = PlacementGroupSchedulingStrategy(placement_group=None)  # type: ignore[arg-type]
        options = {"num_cpus": task["cpus_per_worker"], "num_gpus": task["gpus_per_worker"]}
        _kept.append(ray.remote(WarmWorker).options(scheduling_strategy=outside, **options).remote())
    return _kept[0]


def _discard() -> None:
    import ray

    while _kept:
        with contextlib.suppress(ValueError, ray.exceptions.RayError):
            ray.kill(_kept.pop())
