"""`mcc doctor`: whether this machine, and what it was told to use, is fit for training, and what to do where it is not.

Every question ends within seconds, changes nothing that lasts, and answers without a secret.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as TooLateError
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any

import mcc_core
from mcc_core.errors import MCCError
from orchestrator.cluster.check import ray_answers
from orchestrator.findings import CLUSTER_S, LIMIT_S, Answer, Finding, Level, one_line
from orchestrator.maintenance import storage_care
from orchestrator.redaction import redact
from orchestrator.settings import Settings
from orchestrator.tracking.check import mlflow_answers

_EXTRAS = {
    "crf": "dense CRF (protocols cam_crf, ms_crf)",
    "coco": "mcc data prepare coco",
}
_DATASETS = ("voc", "coco")


@dataclass(frozen=True)
class _Section:
    """A question. One that is `optional` is about what only some recipes need: silence is no failure then."""

    name: str
    ask: Callable[[], Answer]
    limit_s: float = LIMIT_S
    optional: str = ""  # what alone needs it


def examine(settings: Settings, *, start_ray: bool = False, data: Path = Path("data")) -> Iterator[Finding]:
    """Ask everything, one section after the other.

    Args:
        start_ray: start a cluster of this machine's own and look at its node; half a minute. A cluster that
            `RAY_ADDRESS` names is always looked at.
        data: folder that prepared datasets are looked for in.
    """
    sections = [
        _Section("packages", _packages),
        _Section("device", _device, CLUSTER_S),
        _Section("ray", lambda: ray_answers(settings, start=start_ray), CLUSTER_S),
        _Section("storage", lambda: _storage(settings), 4 * LIMIT_S),
        _Section("mlflow", lambda: mlflow_answers(settings), 2 * LIMIT_S),
        _Section("data", lambda: _data(data), optional="recipes on prepared datasets"),
        # Imports timm, which a busy machine reads from a cold disk for a while.
        _Section("weights", _weights, CLUSTER_S, optional="recipes that begin with ImageNet weights"),
    ]
    for section in sections:
        for level, detail, fix in _within(section):
            yield Finding(section.name, level, redact(detail), redact(fix))


def _within(section: _Section) -> list[tuple[Level, str, str]]:
    """The answers of one section; an error or silence is an answer too."""
    pool = ThreadPoolExecutor(1, thread_name_prefix="doctor")
    findings: list[tuple[Level, str, str]] = []

    def collect() -> None:
        for answer in section.ask():
            findings.append(answer)

    future: Future[None] = pool.submit(collect)
    try:
        future.result(section.limit_s)
    except TooLateError:
        silence = f"no answer within {section.limit_s:g} s"
        if section.optional:
            silence += f": only {section.optional} need it"
            findings.append(("warn", silence, "mcc doctor again, when this machine and its disk are less busy"))
        else:
            findings.append(("fail", silence, "look at the network, and at what should answer"))
    except (MCCError, OSError) as error:
        findings.append(("fail", one_line(error), ""))
    except Exception as error:  # a diagnosis must not end at what it is there to find
        findings.append(("fail", f"{type(error).__name__}: {one_line(error)}", "please report this"))
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
    return findings


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
        return "warn", f"no mcc[{extra}]: {purpose} ({one_line(error)})", f"pip install 'mcc[{extra}]'{compiler}"
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
        size = f"{facts.total_memory / 2**30:.0f} GiB"
        yield "ok", f"GPU {number}: {facts.name}, {size}, {_precisions(facts.major)}", ""
    yield "ok", "compute.augmentation: device computes colours on the GPU, so that it need not wait for its images", ""
    probe = torch.ones(64, 64, device="cuda")
    if float((probe @ probe)[0, 0]) != 64:
        yield "fail", "a matrix product on the GPU came out wrong", "look at dmesg and nvidia-smi"


def _precisions(major: int) -> str:
    """What a GPU of a major compute capability can compute in, the fastest first."""
    from mcc_core.precision import suggested

    advised = suggested(major)
    if len(advised) == 1:
        return "no bfloat16 or TF32: keep compute.precision float32"
    return f"compute.precision, the fastest first: {', '.join(advised)}"


def _driver() -> str | None:
    """Version of the NVIDIA driver, None without one."""
    try:
        asked = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        done = subprocess.run(asked, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.split("\n")[0].strip() or None


def _storage(settings: Settings) -> Answer:
    yield "ok", settings.storage, ""
    for finding in storage_care.check(settings):
        level: Level = "ok" if finding.good else "warn" if finding.name.startswith("free disk") else "fail"
        yield level, f"{finding.name}: {finding.detail}", finding.fix if not finding.good else ""
    if settings.ray_address is not None and "://" not in settings.storage:
        fix = "MCC_STORAGE=s3://bucket/prefix, or a folder that every node mounts"
        yield "warn", f"{settings.storage} is a folder of this machine, and RAY_ADDRESS names a cluster", fix


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
            yield "fail", one_line(error), f"mcc data prepare {name} ..."
            continue
        counts = ", ".join(f"{split} {len(names)}" for split, names in index.splits.items())
        yield "ok", f"{folder / name}: {counts}; mcc data check {folder / name} reads every file", ""


def _weights() -> Answer:
    from mcc_core.experiment_files import preset_names, resolve
    from mcc_core.import_weights import cached_backbone

    users: dict[tuple[str, Any], list[str]] = {}  # presets by backbone and where its weights come from
    for name in preset_names():
        model = resolve(name).model
        if model.weights != "random":
            users.setdefault((model.backbone, model.weights), []).append(name)
    for (backbone, weights), presets in users.items():
        used = f"{backbone} of {', '.join(presets)}"
        local = isinstance(weights, Path)
        file = (weights if weights.exists() else None) if local else cached_backbone(backbone, weights)
        if file is not None:
            yield "ok", f"{used}: {file}", ""
        elif local:
            yield "warn", f"{used}: no {weights} here: only these recipes need it", "--set model.weights=FILE"
        else:
            fix = "it is downloaded when a trial starts; without a network: --set model.weights=FILE"
            yield "warn", f"{used}: ImageNet weights are not in the cache", fix
