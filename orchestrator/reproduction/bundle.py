"""A reproduced table as one file, to attach to an issue or a paper: configuration, versions, logs, curves, tables in
Markdown and LaTeX, checksums, and a line beside each number that says what it is. Credentials are masked."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import zipfile
from collections.abc import Sequence
from pathlib import Path

import yaml

from mcc_core.errors import UsageError
from mcc_core.files import file_digest
from orchestrator.environment import environment_record
from orchestrator.planning.plan import Plan, plan_document
from orchestrator.records import layout
from orchestrator.records.events import history
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
    files: dict[str, bytes] = {
        "table.tex": tabular(lines, table, numbers).encode(),
        "numbers.txt": "".join(f"{text}\n" for text in numbers or ["nothing was measured"]).encode(),
        "environment.json": _json(environment_record(command)),
        "checkpoints.txt": "".join(
            f"{file_digest(path)}  {point}, seed {seed}\n" for (point, seed), path in sorted(networks.items())
        ).encode(),
    }
    for page in ("table.md", "table.html", "images/curves.png"):
        if (pages / page).is_file():
            files[page] = (pages / page).read_bytes()
    if plan is not None:
        files |= _trained(plan, settings)
    files = {one: content if one.endswith(".png") else scrub(content) for one, content in files.items()}
    files["README.txt"] = scrub(_readme(name, table, numbers, command, sorted(files)).encode())
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
    files = {"plan.json": _json(plan_document(plan, [], None))}
    for trial in plan.trials:
        folder = f"trials/{trial.identity}"
        content = {"name": trial.name, "seed": trial.seed} | trial.experiment.model_dump(mode="json")
        if trial.stage:  # of labels, the experiment is that of the network whose maps they are made of
            content |= {"stage": trial.stage, "inputs": list(trial.inputs), "refine": trial.refine}
        files[f"{folder}/experiment.yaml"] = yaml.safe_dump(content, sort_keys=False).encode()
        if storage.exists(layout.environment(trial.identity)):
            files[f"{folder}/environment.json"] = storage.read(layout.environment(trial.identity))
        files[f"{folder}/curves.csv"] = _curves(storage, trial.identity)
        for key in storage.list(layout.logs(trial.identity)):
            files[f"{folder}/logs/{key.rsplit('/', 1)[-1]}"] = storage.read(key)[-_LONGEST_LOG:]
    return files


def _curves(storage: Storage, identity: str) -> bytes:
    """Every number of a trial by iteration, in long form."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["iteration", "metric", "value"])
    for event in history(storage, identity):
        if event["kind"] == "metrics":
            writer.writerows([event["iteration"], key, value] for key, value in event["metrics"].items())
    return text.getvalue().encode()


def _readme(name: str, table: PaperTable, numbers: Sequence[str], command: Sequence[str], files: Sequence[str]) -> str:
    shown = [one for one in files if not one.startswith("trials/")]
    return "\n".join(
        [
            f"{name}: {table.description}",
            f"made by: {' '.join(command)}",
            "",
            *(numbers or ["nothing was measured"]),
            "",
            f"files: {', '.join(shown)}; a folder of each trial in trials/; check with: sha256sum -c {SUMS}",
            "Values of environment variables that hold credentials are masked (***).",
            "",
        ]
    )


def _json(content: object) -> bytes:
    return json.dumps(content, indent=1, default=str).encode()
