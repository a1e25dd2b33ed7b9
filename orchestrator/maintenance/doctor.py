"""`mcc doctor`: is this machine, and what it was told to use, fit for training; and what to do where it is not.

Every question ends within seconds, changes nothing that lasts, and answers without a secret.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as TooLateError
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Literal

import mcc_core
from mcc_core.errors import MCCError
from orchestrator.environment import hidden
from orchestrator.maintenance import storage_care
from orchestrator.settings import Settings

LIMIT_S = 15.0  # for the answer to one question
_CLUSTER_S = 90.0  # for a cluster of this machine's own to start, or the nodes of a running one to answer
_EXTRAS = {
    "crf": "dense CRF (protocols cam_crf, ms_crf)",
    "coco": "mcc data prepare coco",
}
_DATASETS = ("voc", "coco")
_DOWNLOADS = ("voc", "coco")  # presets whose backbone timm downloads
Level = Literal["ok", "warn", "fail"]


@dataclass(frozen=True)
class Finding:
    """One line of the report."""

    section: str
    level: Level
    detail: str
    fix: str = ""


Answer = Iterator[tuple[Level, str, str]]


def examine(settings: Settings, *, start_ray: bool = False, data: Path = Path("data")) -> Iterator[Finding]:
    """Ask everything, one section after the other.

    Args:
        start_ray: start a cluster of this machine's own and look at its node; half a minute. A cluster that
            `RAY_ADDRESS` names is always looked at.
        data: folder that prepared datasets are looked for in.
    """
    sections: list[tuple[str, Callable[[], Answer], float]] = [
        ("packages", _packages, LIMIT_S),
        ("device", _device, _CLUSTER_S),
        ("ray", lambda: _ray(settings, start=start_ray), _CLUSTER_S),
        ("storage", lambda: _storage(settings), 4 * LIMIT_S),
        ("mlflow", lambda: _mlflow(settings), 2 * LIMIT_S),
        ("data", lambda: _data(data), LIMIT_S),
        ("weights", _weights, LIMIT_S),
    ]
    for section, ask, limit in sections:
        for level, detail, fix in _within(ask, limit):
            yield Finding(section, level, hidden(detail), hidden(fix))


def _within(ask: Callable[[], Answer], limit_s: float) -> list[tuple[Level, str, str]]:
    """The answers of one section; an error or silence is an answer too."""
    pool = ThreadPoolExecutor(1, thread_name_prefix="doctor")
    found: list[tuple[Level, str, str]] = []

    def collect() -> None:
        for answer in ask():
            found.append(answer)

    future: Future[None] = pool.submit(collect)
    try:
        future.result(limit_s)
    except TooLateError:
        found.append(("fail", f"no answer within {limit_s:g} s", "look at the network, and at what should answer"))
    except (MCCError, OSError) as error:
        found.append(("fail", _line(error), ""))
    except Exception as error:  # a diagnosis must not end at what it is there to find
        found.append(("fail", f"{type(error).__name__}: {_line(error)}", "please report this"))
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
    return found


def _line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:300] if lines else type(error).__name__


def _packages() -> Answer:
    from packaging.requirements import Requirement

    yield "ok", f"mcc {mcc_core.__version__}, Python {sys.version.split()[0]}", ""
    fine: list[str] = []
    for text in requires("mcc") or ():
        need = Requirement(text)
        if need.marker is not None and not need.marker.evaluate({"extra": ""}):
            continue
        try:
            have = version(need.name)
        except PackageNotFoundError:
            yield "fail", f"{need.name} is missing", f"pip install '{need.name}{need.specifier}'"
            continue
        if need.specifier.contains(have, prereleases=True):
            fine.append(f"{need.name} {have}")
        else:
            yield (
                "fail",
                f"{need.name} {have} is outside of {need.specifier}",
                f"pip install '{need.name}{need.specifier}'",
            )
    yield "ok", ", ".join(fine), ""
    for extra, purpose in _EXTRAS.items():
        yield _extra(extra, purpose)


def _extra(extra: str, purpose: str) -> tuple[Level, str, str]:
    try:
        if extra == "crf":
            import pydensecrf.densecrf  # noqa: F401
        else:
            import pycocotools.mask  # noqa: F401
    except ImportError as error:
        compiler = "" if extra != "crf" or shutil.which("c++") else "; needs a C++ compiler (apt install g++)"
        return "warn", f"no mcc[{extra}]: {purpose} ({_line(error)})", f"pip install 'mcc[{extra}]'{compiler}"
    return "ok", f"mcc[{extra}]: {purpose}", ""


def _device() -> Answer:
    import torch

    from orchestrator.cluster.session import local_capacity

    capacity = local_capacity()
    yield "ok", f"{capacity.cpus:g} CPUs for this process, torch {torch.__version__}", ""
    if not torch.cuda.is_available():
        driver = _driver()
        if driver is None:
            yield "ok", "no GPU: trials run on the CPU", ""
        elif torch.version.cuda is None:
            yield "fail", f"NVIDIA driver {driver}, but torch is a CPU build", "pip install torch from PyPI"
        else:
            fix = "update the driver, or install a torch built for an older CUDA; see CUDA_VISIBLE_DEVICES too"
            yield "fail", f"NVIDIA driver {driver} does not serve torch's CUDA {torch.version.cuda}", fix
        return
    for number in range(torch.cuda.device_count()):
        facts = torch.cuda.get_device_properties(number)
        bf16 = "bfloat16" if facts.major >= 8 else "no bfloat16 arithmetic: keep compute.precision float32"
        yield "ok", f"GPU {number}: {facts.name}, {facts.total_memory / 2**30:.0f} GiB, {bf16}", ""
    probe = torch.ones(64, 64, device="cuda")
    if float((probe @ probe)[0, 0]) != 64:
        yield "fail", "a matrix product on the GPU came out wrong", "look at dmesg and nvidia-smi"


def _driver() -> str | None:
    """Version of the NVIDIA driver, None without one."""
    try:
        asked = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        done = subprocess.run(asked, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.split("\n")[0].strip() or None


def _ray(settings: Settings, *, start: bool) -> Answer:
    shared = shutil.disk_usage("/dev/shm").free if Path("/dev/shm").is_dir() else 0
    if shared < 256 << 20:
        size = storage_care.size_text(shared)
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
            there = ray.get(answer, timeout=_CLUSTER_S / 2)
        except ray.exceptions.RayError as error:
            yield "fail", f"node {address}: {_line(error)}", "install the same mcc and packages there"
            continue
        other = [f"{name} {there[name]} (here {value})" for name, value in here.items() if there[name] != value]
        if other:
            yield "warn", f"node {address}: {', '.join(other)}", "install constraints.txt on every node"
        else:
            yield "ok", f"node {address} has the same packages", ""


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    return {name: version(name) for name in ("mcc", "torch", "timm", "ray", "numpy", "pyarrow")}


def _storage(settings: Settings) -> Answer:
    yield "ok", settings.storage, ""
    for found in storage_care.check(settings):
        level: Level = "ok" if found.good else "warn" if found.name.startswith("free disk") else "fail"
        yield level, f"{found.name}: {found.detail}", found.fix if not found.good else ""
    if settings.ray_address is not None and "://" not in settings.storage:
        fix = "MCC_STORAGE=s3://bucket/prefix, or a folder that every node mounts"
        yield "warn", f"{settings.storage} is a folder of this machine, and RAY_ADDRESS names a cluster", fix


def _mlflow(settings: Settings) -> Answer:
    uri = settings.tracking_uri
    if uri.startswith(("http://", "https://")):
        yield from _server(settings)
        return
    folder = settings.home
    while not folder.exists():
        folder = folder.parent
    if not os.access(folder, os.W_OK):
        yield "fail", f"{uri}: {folder} cannot be written", "choose another MCC_HOME, or let this user write there"
        return
    yield "ok", f"{uri}: embedded, no server", ""


def _server(settings: Settings) -> Answer:
    from urllib.parse import urlsplit

    from mlflow.exceptions import MlflowException

    from orchestrator.tracking import client as mlflow_files

    address = urlsplit(settings.tracking_uri)
    port = address.port or (443 if address.scheme == "https" else 80)
    try:
        socket.create_connection((address.hostname or "", port), timeout=5).close()
    except OSError as error:
        yield "fail", f"{settings.tracking_uri}: {_line(error)}", "start the server, or mend MLFLOW_TRACKING_URI"
        return
    began = time.perf_counter()
    try:
        client = mlflow_files.client(settings)
        found = client.get_experiment_by_name(settings.experiment_name)
    except MlflowException as error:
        text = _line(error)
        refused = "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD" if "401" in text or "403" in text else ""
        fix = f"set {refused}; behind another host name: --allowed-hosts" if refused else "look at the server's log"
        yield "fail", f"{settings.tracking_uri}: {text}", fix
        return
    spent = 1000 * (time.perf_counter() - began)
    there = "there" if found else "not there yet"
    yield "ok", f"{settings.tracking_uri}: {spent:.0f} ms, experiment {settings.experiment_name} {there}", ""
    yield _artifacts(settings.tracking_uri)


def _artifacts(uri: str) -> tuple[Level, str, str]:
    """Whether the server takes artifacts: a few bytes sent through it, and deleted."""
    from mlflow.utils.credentials import get_default_host_creds
    from mlflow.utils.rest_utils import http_request

    where = f"/api/2.0/mlflow-artifacts/artifacts/mcc-doctor/{uuid.uuid4().hex}"
    began = time.perf_counter()
    for method, more in (("PUT", {"data": b"probe"}), ("DELETE", {})):
        answer = http_request(
            get_default_host_creds(uri), where, method, max_retries=0, raise_on_status=False, timeout=LIMIT_S, **more
        )
        if answer.status_code >= 400:
            text = f"artifacts through the server: {method} answers {answer.status_code}"
            return "fail", text, "mlflow server --artifacts-destination s3://...; then look at the server's log"
    return "ok", f"artifacts through the server: {1000 * (time.perf_counter() - began):.0f} ms", ""


def _data(folder: Path) -> Answer:
    from mcc_core.data.index_file import INDEX, read_index
    from mcc_core.errors import DataError

    for name in _DATASETS:
        if not (folder / name / INDEX).exists():
            yield "warn", f"no {folder / name}: only needed for the {name} recipe", f"mcc data prepare {name} ..."
            continue
        try:
            index = read_index(folder / name)
        except DataError as error:
            yield "fail", _line(error), f"mcc data prepare {name} ..."
            continue
        counts = ", ".join(f"{split} {len(names)}" for split, names in index.splits.items())
        yield "ok", f"{folder / name}: {counts}; mcc data check {folder / name} reads every file", ""


def _weights() -> Answer:
    from mcc_core.experiment_files import resolve
    from mcc_core.import_weights import cached_backbone

    for backbone in dict.fromkeys(resolve(name).model.backbone for name in _DOWNLOADS):
        if (file := cached_backbone(backbone)) is not None:
            yield "ok", f"{backbone}: {file}", ""
        else:
            fix = "timm downloads it when a trial starts; without a network: --set model.weights=FILE"
            yield "warn", f"{backbone}: ImageNet weights are not in the cache", fix
