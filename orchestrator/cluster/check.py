"""Whether Ray and its nodes are fit for trials."""

from __future__ import annotations

import shutil
import time
from importlib.metadata import version
from pathlib import Path

from orchestrator.findings import CLUSTER_S, Answer, one_line
from orchestrator.settings import Settings
from orchestrator.text import size_text


def ray_answers(settings: Settings, *, start: bool) -> Answer:
    shared = shutil.disk_usage("/dev/shm").free if Path("/dev/shm").is_dir() else 0
    if shared < 256 << 20:
        size = size_text(shared)
        yield "warn", f"/dev/shm has {size} free: Ray's object store goes to disk", "docker run --shm-size=1g"
    if settings.ray_address is None and not start:
        yield "ok", "a cluster of this machine's own is started for each sweep (mcc doctor --ray tries it)", ""
        return
    from orchestrator.cluster.session import cluster

    began = time.perf_counter()
    with cluster(settings) as capacity:
        import ray

        nodes = [node for node in ray.nodes() if node["Alive"]]
        where = settings.ray_address or "its own cluster"
        count = f"{len(nodes)} node{'s' if len(nodes) > 1 else ''}"
        text = f"{where}: {count}, {capacity.cpus:g} CPUs and {capacity.gpus:g} GPUs for trials"
        yield "ok", f"{text}, after {time.perf_counter() - began:.0f} s", ""
        yield from _nodes(nodes)


def _nodes(nodes: list[dict[str, object]]) -> Answer:
    """Whether every node has this code and reaches what this process reaches."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = _versions()
    asked = {}
    for node in nodes:
        place = NodeAffinitySchedulingStrategy(str(node["NodeID"]), soft=False)
        asked[str(node["NodeManagerAddress"])] = (
            ray.remote(_versions).options(scheduling_strategy=place, num_cpus=0, max_retries=0).remote()
        )
    for address, answer in asked.items():
        try:
            there = ray.get(answer, timeout=CLUSTER_S / 2)
        except ray.exceptions.RayError as error:
            yield "fail", f"node {address}: {one_line(error)}", "install the same mcc and packages there"
            continue
        other = [f"{name} {there[name]} (here {value})" for name, value in here.items() if there[name] != value]
        if other:
            yield "warn", f"node {address}: {', '.join(other)}", "install constraints.txt on every node"
        else:
            yield "ok", f"node {address} has the same packages", ""


def _versions() -> dict[str, str]:

    return {name: version(name) for name in ("mcc", "torch", "timm", "ray", "numpy", "pyarrow")}
