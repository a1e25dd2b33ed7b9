"""A reproduced table as one file, to attach to an issue or a paper: configuration, versions, logs, curves, tables in
Markdown and LaTeX, checksums, and a line beside each number that says what it is. Credentials are masked, and folders
of the person are not named."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
import shlex
import time
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from mcc_core.errors import UsageError
from mcc_core.files import file_digest
from orchestrator.environment import environment_record
from orchestrator.planning.plan import Plan, plan_document
from orchestrator.records import layout
from orchestrator.records.events import Event, history
from orchestrator.redaction import scrub
from orchestrator.reproduction.latex import tabular
from orchestrator.reproduction.lines import Line, Networks
from orchestrator.settings import Settings
from orchestrator.spec.paper_table import PaperTable
from orchestrator.storage.store import Storage

SUMS = "SHA256SUMS"
_LONGEST_LOG = 2_000_000  # bytes, of its end


def require_free(file: Path) -> None:
    """Raise UsageError unless a bundle can be written there: asked before anything is trained."""
    if file.suffix != ".zip":
        raise UsageError(f"--bundle {file}: expected a name that ends in .zip")
    if file.exists():
        raise UsageError(f"--bundle {file}: is there already; give another name, or remove it")
    if not file.parent.is_dir():
        raise UsageError(f"--bundle {file}: {file.parent} is no folder")


def write_bundle(
    file: Path,
    name: str,
    table: PaperTable,
    lines: Sequence[Line],
    numbers: Sequence[str],
    networks: Networks,
    plan: Plan | None,
    settings: Settings,
    pages: Path,
    command: Sequence[str],
) -> Path:
    """Write the bundle; `pages` is the folder that `write_reproduction` wrote to. `numbers` is a line for each number;
    `networks` are files of checkpoints.

    Raises OSError where the file cannot be written; nothing is left of it then.
    """
    command = ["mcc", *command[1:]]
    environment = environment_record(command)
    files: dict[str, bytes] = {
        "table.tex": tabular(lines, table, numbers).encode(),
        "numbers.txt": "".join(f"{text}\n" for text in numbers or ["nothing was measured"]).encode(),
        "environment.json": _json(environment),
        "checkpoints.txt": "".join(
            f"{file_digest(path)}  {point}, seed {seed}\n" for (point, seed), path in sorted(networks.items())
        ).encode(),
    }
    for page in ("table.md", "table.html", "images/curves.png"):
        if (pages / page).is_file():
            files[page] = (pages / page).read_bytes()
    if plan is not None:
        files |= _trained(plan, settings)
    files["README.txt"] = _readme(name, table, numbers, environment, sorted(files)).encode()
    files = {
        one: content if one.endswith(".png") else _impersonal(scrub(content), file, settings)
        for one, content in files.items()
    }
    sums = "".join(f"{hashlib.sha256(content).hexdigest()}  {one}\n" for one, content in sorted(files.items()))
    files[SUMS] = sums.encode()
    partial = file.with_name(f".{file.name}.part")
    try:
        with zipfile.ZipFile(partial, "w", zipfile.ZIP_DEFLATED) as archive:
            for one, content in sorted(files.items()):
                archive.writestr(f"{file.stem}/{one}", content)
        partial.replace(file)
    finally:
        partial.unlink(missing_ok=True)
    return file


def _trained(plan: Plan, settings: Settings) -> dict[str, bytes]:
    storage = Storage(settings.storage)
    named = "".join(f"{trial.identity}  {trial.name}, seed {trial.seed}\n" for trial in plan.trials)
    files = {"plan.json": _json(plan_document(plan, [], None)), "trials.txt": named.encode()}
    for trial in plan.trials:
        folder = f"trials/{trial.identity}"
        content = {"name": trial.name, "seed": trial.seed} | trial.experiment.model_dump(mode="json")
        if trial.stage:  # of labels, the experiment is that of the network whose maps they are made of
            content |= {"stage": trial.stage, "inputs": list(trial.inputs), "refine": trial.refine}
        files[f"{folder}/experiment.yaml"] = yaml.safe_dump(content, sort_keys=False).encode()
        if storage.exists(layout.environment(trial.identity)):
            files[f"{folder}/environment.json"] = storage.read(layout.environment(trial.identity))
        events = history(storage, trial.identity)
        files[f"{folder}/curves.csv"] = _curves(events)
        files[f"{folder}/attempts.json"] = _attempts(events)
        for key in storage.list(layout.logs(trial.identity)):
            if printed := storage.read(key)[-_LONGEST_LOG:]:
                files[f"{folder}/logs/{key.rsplit('/', 1)[-1]}"] = printed
    return files


def _attempts(events: Sequence[Event]) -> bytes:
    """When and on what each attempt at a trial began, and how it ended; without names of machines."""
    told = []
    for event in events:
        if event["kind"] in ("start", "end"):
            when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(event["t"]))
            facts = dict(event.get("info") or {}) | {key: event[key] for key in ("status", "message") if key in event}
            kept = {key: value for key, value in facts.items() if key not in ("host", "pid")}
            told.append({"time": when, "what": event["kind"], "iteration": event["iteration"]} | kept)
    return _json(told)


def _impersonal(content: bytes, file: Path, settings: Settings) -> bytes:
    """A text without the folders of whoever made it."""
    folders = {file: file.name, settings.home: "MCC_HOME", Path.cwd(): ".", Path.home(): "~"}
    for folder, name in folders.items():
        if len(folder.parts) > 1:
            content = re.sub(re.escape(str(folder).encode()) + rb"(?![\w.-])", name.encode(), content)
    return content


def _curves(events: Sequence[Event]) -> bytes:
    """Every number of a trial by iteration, in long form."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["iteration", "metric", "value"])
    for event in events:
        if event["kind"] == "metrics":
            writer.writerows([event["iteration"], key, value] for key, value in event["metrics"].items())
    return text.getvalue().encode()


def _readme(
    name: str, table: PaperTable, numbers: Sequence[str], environment: Mapping[str, Any], files: Sequence[str]
) -> str:
    shown = [one for one in files if not one.startswith("trials/")]
    git = environment["git"]
    code = f", commit {git['commit']}{' with changes' if git['diff'] else ''}" if git else ""
    versions = f"mcc {environment['mcc']}{code}, Python {environment['python']}"
    versions += "".join(
        f", {package} {environment['packages'][package]}"
        for package in ("torch", "timm", "ray")
        if package in environment["packages"]
    )
    trials = ["a folder of each trial in trials/, named in trials.txt; "] if "trials.txt" in files else []
    return "\n".join(
        [
            f"{name}: {table.description}",
            f"made by: {shlex.join(environment['command'])}",
            f"with: {versions}",
            "",
            *(numbers or ["nothing was measured"]),
            "",
            f"files: {', '.join(shown)}; {''.join(trials)}check with: sha256sum -c {SUMS}",
            "Values of environment variables that hold credentials are masked (***).",
            "",
        ]
    )


def _json(content: object) -> bytes:
    return json.dumps(content, indent=1, default=str).encode()
