"""`mcc report`: a sweep as one HTML file and as Markdown, from storage, on any machine."""

from __future__ import annotations

import time
from pathlib import Path

from mcc_core.errors import MCCError
from orchestrator.records import layout
from orchestrator.records import sweeps as catalog
from orchestrator.records.plans import PlanRecord
from orchestrator.reports.document import pictures, to_html, to_markdown
from orchestrator.reports.evidence import gather
from orchestrator.reports.pages import marked, require_ours
from orchestrator.reports.provenance import sweep_yaml
from orchestrator.reports.results import sections
from orchestrator.settings import Settings
from orchestrator.storage.store import Storage

PAGE = "report.html"
_FOLDER = "report"  # of the artifacts in MLflow
_QUICK_TRIALS = 40  # up to so many on a disk the report takes about a second


def report_files(storage: Storage, sweep: catalog.Sweep) -> dict[str, bytes]:
    """The files of a sweep's report by name: report.html (whole in itself), report.md with its pictures, sweep.yaml."""
    evidence = gather(storage, sweep)
    made = sections(evidence)
    when = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
    lead = f"Sweep {sweep.id}, as it stood on {when}."
    title = str(sweep.document["name"])
    files = {PAGE: to_html(title, lead, made).encode(), "report.md": marked(to_markdown(title, lead, made)).encode()}
    files |= {f"images/{picture.name}": picture.content for picture in pictures(made)}
    return files | {"sweep.yaml": sweep_yaml(evidence).encode()}


def write_report(settings: Settings, name: str | None, out: Path | None) -> tuple[list[Path], str]:
    """Write a sweep's report to a folder (default: reports/ID) and to its MLflow run.

    Returns the two pages and what kept MLflow from having them, or nothing. Raises UsageError for an unknown sweep.
    """
    from orchestrator.tracking.rebuilding import attach

    storage = Storage(settings.storage)
    sweep = catalog.find(storage, name)
    folder = out or Path("reports") / sweep.id
    require_ours(folder, (PAGE, "report.md"))
    files = report_files(storage, sweep)
    for file, content in files.items():
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_bytes(content)
    try:
        attach(settings, sweep.document, {f"{_FOLDER}/{file}": content for file, content in files.items()})
    except MCCError as error:
        return [folder / PAGE, folder / "report.md"], str(error)
    return [folder / PAGE, folder / "report.md"], ""


def is_quick(storage: Storage, document: PlanRecord) -> bool:
    """Whether a sweep's report takes no time worth speaking of, so that every end of the sweep writes it."""
    return storage.local(layout.sweep(document["sweep"])) is not None and len(document["trials"]) <= _QUICK_TRIALS


def final_report(settings: Settings, storage: Storage, document: PlanRecord, *, track: bool) -> tuple[str, str]:
    """Write the page beside the sweep's summary, and to MLflow with `track`; returns (where, what went wrong)."""
    from orchestrator.tracking.rebuilding import attach

    key = f"{layout.sweep(document['sweep'])}/{PAGE}"
    try:
        # The plan on record: where nothing was left to run it is that of the launch that ran the trials.
        content = report_files(storage, catalog.recorded(storage, document["sweep"]))[PAGE]
        storage.write(key, content)
        if track:
            attach(settings, document, {f"{_FOLDER}/{PAGE}": content})
    except Exception as error:  # the results are safe: whatever a report comes up with does not fail the sweep
        return "", f"{type(error).__name__}: {error}"
    return storage.where(key), ""
