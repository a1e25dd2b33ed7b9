"""Sweeps on a distant cluster through the Ray Jobs API: the code and the sweep are shipped, the driver runs there.

The packages, the sweep file and its base are shipped; data and weights are read where the cluster has them. Of the
environment goes where things are kept, never a credential: the nodes have their own, and what a job was submitted with
can be read in Ray's state.
"""

from __future__ import annotations

import asyncio
import os
import shlex
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import mcc_core
from mcc_core.errors import MCCError, UsageError
from mcc_core.experiment_files import no_base, preset_names
from mcc_core.structured_files import read_yaml
from orchestrator.redaction import redact
from orchestrator.text import reason

_PASSED = ("MCC_STORAGE", "MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "MCC_HOME", "MCC_STALL_MINUTES")
_ADDRESSES = ("MCC_STORAGE", "MLFLOW_TRACKING_URI")


def is_remote(on: str) -> bool:
    """Whether `--on` names a Jobs API. Raises UsageError for what is neither that nor `local` nor `auto`."""
    if on in ("local", "auto"):
        return False
    parts = urlsplit(on)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UsageError(f"--on {redact(on)}: expected local, auto or http://HEAD:8265")
    return True


def submit_job(
    on: str,
    sweep: Path,
    options: Sequence[str],
    environ: Mapping[str, str] = os.environ,
    python: str = "python",
    base: str | None = None,
) -> str:
    """Submit `mcc sweep submit` of a sweep file to a cluster; returns the job's id.

    Args:
        options: further options of the command, but for `--base`.
        base: the preset or file of `--base`.
        python: the interpreter on the cluster's nodes that has the dependencies.

    Raises UsageError for a sweep that cannot be read or settings that cannot hold there, MCCError when the cluster
    does not answer.
    """
    passed = _environment(environ)
    with tempfile.TemporaryDirectory() as folder:
        _pack(sweep, Path(folder), base)
        name = sweep.name
        options = [*(["--base", base] if base is not None else []), *options]
        command = [python, "-c", "from orchestrator.cli import main; main()", "sweep", "submit", name, *options]
        client = _client(on)
        try:
            return str(
                client.submit_job(
                    entrypoint=shlex.join(command),
                    runtime_env={"working_dir": folder, "env_vars": passed},
                    metadata={"sweep": str(read_yaml(sweep).get("name", ""))},
                )
            )
        except (RuntimeError, OSError) as error:  # OSError: of the connection
            raise MCCError(f"--on {on}: the job was not taken: {reason(error)}") from None


def follow_job(on: str, job: str, on_text: Callable[[str], None]) -> int:
    """Pass on a job's output until it ends; returns its exit code: 0 when it succeeded, else 1.

    Raises UsageError for an unknown job, MCCError when the cluster does not answer.
    """
    client = _client(on)

    async def tail() -> None:
        async for text in client.tail_job_logs(job):
            on_text(text)

    try:
        client.get_job_status(job)
        asyncio.run(tail())
        return 0 if str(client.get_job_status(job).value) == "SUCCEEDED" else 1
    except (RuntimeError, OSError) as error:
        if "404" in str(error) or "does not exist" in str(error):
            raise UsageError(f"{job}: no such job at {on}") from None
        raise MCCError(f"--on {on}: {reason(error)}") from None


def _client(on: str) -> Any:
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    try:
        return JobSubmissionClient(on)
    except AuthenticationError:
        raise UsageError(
            f"--on {on}: the cluster's token is missing or wrong; put the one of its nodes into RAY_AUTH_TOKEN"
        ) from None
    except (ConnectionError, RuntimeError) as error:
        raise MCCError(f"--on {on}: no Ray cluster answers there: {reason(error)}") from None


def _environment(environ: Mapping[str, str]) -> dict[str, str]:
    """The variables that go with a job."""
    if not environ.get("MCC_STORAGE"):
        raise UsageError(
            "MCC_STORAGE: not set, and a cluster cannot write to this machine's .mcc: set s3://bucket/prefix, or a "
            "folder that all of its nodes share"
        )
    passed = {name: environ[name] for name in _PASSED if environ.get(name)}
    for name in _ADDRESSES:
        value = passed.get(name, "")
        if "@" in urlsplit(value).netloc:
            raise UsageError(f"{name}: holds a password, which would be readable in Ray's state; set it on the nodes")
    if "://" not in passed["MCC_STORAGE"]:
        passed["MCC_STORAGE"] = str(Path(passed["MCC_STORAGE"]).expanduser().resolve())
    return passed


def _pack(sweep: Path, folder: Path, base: str | None = None) -> None:
    """The packages, the sweep file and the files that it, or `--base`, names as bases."""
    for source in (Path(str(mcc_core.__file__)).parent, Path(__file__).parents[1]):
        shutil.copytree(source, folder / source.name, ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))
    shutil.copyfile(sweep, folder / sweep.name)
    named = {f"{sweep}: {where}": name for where, name in _bases(read_yaml(sweep)).items()}
    for where, name in (named | {"--base": base or ""}).items():
        if not name or name in preset_names():
            continue
        file = Path(name)
        if file.is_absolute() or ".." in file.parts:
            raise UsageError(f"{where}: {name}: only a file below the current folder is shipped to a cluster")
        if not file.is_file():
            raise UsageError(f"{where}: {no_base(name)}")
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, folder / file)


def _bases(fields: Mapping[str, Any]) -> dict[str, str]:
    """Where a file that is not checked yet, its stages and variants and their points name a base, and what it is."""
    stages, variants = fields.get("stages"), fields.get("bases")
    parts: dict[str, Any] = {"": fields}
    parts |= {f"stages.{name}.": stage for name, stage in stages.items()} if isinstance(stages, Mapping) else {}
    named: dict[str, str] = {}
    if isinstance(variants, Mapping):
        parts |= {f"bases.{name}.": variant for name, variant in variants.items()}
        named |= {f"bases.{name}": str(name) for name in variants}
    for where, part in parts.items():
        if not isinstance(part, Mapping):
            continue
        named[f"{where}base"] = str(part.get("base") or "")
        points = part.get("points")
        for number, point in enumerate(points if isinstance(points, list) else ()):
            if isinstance(point, Mapping):
                named[f"{where}points[{number}].base"] = str(point.get("base") or "")
    return named
