"""Ray for one command: a cluster of this machine's own, started and ended with it, or one that runs already.

Facts behind the choices (tried with ray 2.60): bare `ray.init()` can attach to a stranger's cluster on the host, so the
address is always given; without the dashboard a trial that is stopped leaks its workers' resources; `ray stop` would
end every cluster of the host, so it is never used.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mcc_core.errors import MCCError, UsageError
from orchestrator.settings import Settings

_DRIVER_CPU = 0.01  # what Tune reserves for the idle process that waits for a trial; 0 is refused

# Read by Ray on import or by its processes, which inherit them.
RAY_ENVIRONMENT = {
    "RAY_TRAIN_V2_ENABLED": "1",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",  # the default of 2 s doubles the time of a short trial
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DEDUP_LOGS_SKIP_REGEX": "worker processes have been started",  # a warning that fits any small machine
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
}
_LOCAL_ONLY = {
    "RAY_OBJECT_STORE_ALLOW_SLOW_STORAGE": "1",  # containers with a small /dev/shm; hardly anything is in it
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # one more process per trial; this machine is not taken away
}
_OBJECT_STORE = 128 << 20  # bytes


@dataclass(frozen=True)
class Capacity:
    """What a machine or cluster can give to trials."""

    cpus: float
    gpus: float
    nodes: tuple[tuple[float, float], ...] = ()  # (CPUs, GPUs) of each; default: one node with everything

    def trials_at_a_time(self, workers: int, cpus_per_worker: float, gpus_per_worker: float) -> int:
        """How many trials fit beside each other. Raises UsageError when not even one does."""
        cpus, gpus = workers * cpus_per_worker, workers * gpus_per_worker
        for need, have, what, field in (
            (cpus, self.cpus, "CPUs", "cpus_per_worker"),
            (gpus, self.gpus, "GPUs", "gpus_per_worker"),
        ):
            if need > have + 1e-9:
                each = cpus_per_worker if what == "CPUs" else gpus_per_worker
                raise UsageError(
                    f"a trial needs {need:g} {what} ({workers} workers x {field} {each:g}) and {have:g} are there, so "
                    f"it could never start; lower --workers or resources.{field}"
                )
        room = sum(_room(*node, cpus_per_worker, gpus_per_worker) for node in self.nodes or ((self.cpus, self.gpus),))
        room = min(room, math.floor((self.cpus + 1e-9) / cpus_per_worker))
        if room < workers:
            raise UsageError(
                f"a trial needs {workers} workers of {cpus_per_worker:g} CPUs and {gpus_per_worker:g} GPUs, each on "
                f"one node and one device, and there is room for {room}, so it could never start; lower --workers, "
                "resources.cpus_per_worker or resources.gpus_per_worker"
            )
        return room // workers


def _room(cpus: float, gpus: float, cpus_per_worker: float, gpus_per_worker: float) -> int:
    """Workers that fit on a node. A share of a GPU is of one device: two workers of 0.6 do not fit on 1.2 of two."""
    room = math.floor((cpus + 1e-9) / cpus_per_worker)
    if gpus_per_worker >= 1:
        room = min(room, math.floor((gpus + 1e-9) / gpus_per_worker))
    elif gpus_per_worker:
        room = min(room, math.floor(gpus + 1e-9) * math.floor(1 / gpus_per_worker + 1e-9))
    return room


def local_capacity() -> Capacity:
    """CPUs that this process may use, by affinity and container quota, and the GPUs that torch sees."""
    cpus = float(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    with contextlib.suppress(OSError, ValueError):
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        cpus = min(cpus, max(1.0, math.floor(int(quota) / int(period))))
    import torch

    return Capacity(cpus, float(torch.cuda.device_count()))


@contextlib.contextmanager
def cluster(settings: Settings) -> Iterator[Capacity]:
    """A connected Ray, ended at exit if it was started here.

    Yields what trials may use. Raises UsageError when the cluster of `settings.ray_address` does not answer, MCCError
    when a Ray of this machine does not start.
    """
    prepare_environment()
    import ray

    if ray.is_initialized():
        yield _capacity()
        return
    if settings.ray_address is None:
        capacity = local_capacity()
        for name, value in _LOCAL_ONLY.items():
            os.environ.setdefault(name, value)
        _start(capacity)
    else:
        _attach(settings.ray_address)
        capacity = _capacity()
    try:
        yield capacity
    finally:
        ray.shutdown()


def _start(capacity: Capacity) -> None:
    import ray

    try:
        ray.init(
            address="local",
            num_cpus=math.ceil(capacity.cpus) + 1,  # one more for the trials' waiting processes
            num_gpus=int(capacity.gpus),
            include_dashboard=True,
            object_store_memory=_OBJECT_STORE,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    except Exception as error:  # a machine that is too busy, a disk that is full; of the dashboard a bare Exception
        first = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        ray.shutdown()
        raise MCCError(
            f"Ray does not start on this machine: {first}; its logs are below RAY_TMPDIR or /tmp/ray; "
            "nothing was lost, the same command goes on"
        ) from None


def driver_resources() -> dict[str, float]:
    """What the process that waits for a trial reserves: next to nothing, on the node of this process.

    Anywhere else its hundredth of a CPU could keep a whole one from a worker, for ever on a cluster of nodes with one.
    """
    import ray

    here = ray.get_runtime_context().get_node_id()
    address = next(node["NodeManagerAddress"] for node in ray.nodes() if node["NodeID"] == here)
    return {"CPU": _DRIVER_CPU, f"node:{address}": 0.001}


def prepare_environment() -> None:
    """Set Ray's variables where the user has not; before the first import of ray."""
    for name, value in RAY_ENVIRONMENT.items():
        os.environ.setdefault(name, value)


def _attach(address: str) -> None:
    import ray

    if "://" in address:
        raise UsageError(
            f"RAY_ADDRESS: {address}: give the cluster's host:port (or auto) and run mcc on one of its machines"
        )
    host, _, port = address.rpartition(":")
    if address != "auto":
        try:  # Ray itself would try for minutes
            socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
        except (OSError, ValueError) as error:
            raise UsageError(f"RAY_ADDRESS: {address}: no cluster answers at host:port ({error})") from None
    try:
        ray.init(
            address=address,
            log_to_driver=False,
            logging_level=logging.ERROR,
            runtime_env={"env_vars": RAY_ENVIRONMENT},
        )
    except (ConnectionError, RuntimeError, ValueError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise UsageError(
            f"RAY_ADDRESS: {address}: cannot be used: {first}; is a Ray node of it on this machine, and the cluster's "
            "token in RAY_AUTH_TOKEN (or RAY_AUTH_MODE=disabled on both sides)?"
        ) from None


def _capacity() -> Capacity:
    """Resources of the connected cluster, less one CPU for the trials' waiting processes."""
    import ray

    total = ray.cluster_resources()
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    each = tuple((node.get("CPU", 0.0), node.get("GPU", 0.0)) for node in nodes)
    return Capacity(max(0.0, total.get("CPU", 0.0) - 1), total.get("GPU", 0.0), each)


def keep_credentials_out_of_ray() -> None:
    """Tune copies the AWS keys of its process into what Ray logs and keeps about each trial. Every node has them in
    its own environment, or needs none. Before trials are started."""
    from ray.tune.execution import class_cache

    names = {name for name in class_cache.ENV_VARS_TO_PROPAGATE if name.startswith("AWS_")}
    class_cache.ENV_VARS_TO_PROPAGATE.difference_update(names)
