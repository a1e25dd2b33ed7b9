"""`mcc report`: a sweep as one HTML file and as Markdown, from storage, on any machine."""

from __future__ import annotations

import time
from pathlib import Path

from mcc_core.errors import MCCError
from orchestrator import catalog
from orchestrator.document import pictures, to_html, to_markdown
from orchestrator.evidence import gather
from orchestrator.report_records import sweep_yaml
from orchestrator.report_sections import sections
from orchestrator.settings import Settings
from orchestrator.storage import Storage

_FOLDER = "report"  # of the artifacts in MLflow


def report_files(storage: Storage, sweep: catalog.Sweep) -> dict[str, bytes]:
    """The files of a sweep's report by name: report.html (whole in itself), report.md with its pictures, sweep.yaml."""
    evidence = gather(storage, sweep)
    made = sections(evidence)
    when = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
    lead = f"Sweep {sweep.id} in {storage.url}, as it stood on {when}."
    title = str(sweep.document["name"])
    files = {"report.html": to_html(title, lead, made).encode(), "report.md": to_markdown(title, lead, made).encode()}
    files |= {f"images/{picture.name}": picture.content for picture in pictures(made)}
    return files | {"sweep.yaml": sweep_yaml(evidence).encode()}


def write_report(settings: Settings, name: str | None, out: Path | None) -> tuple[list[Path], str]:
    """Write a sweep's report to a folder (default: reports/ID) and to its MLflow run.

    Returns the two pages and what kept MLflow from having them, or nothing. Raises UsageError for an unknown sweep.
    """
    storage = Storage(settings.storage)
    sweep = catalog.find(storage, name)
    folder = out or Path("reports") / sweep.id
    files = report_files(storage, sweep)
    for file, content in files.items():
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_bytes(content)
    from orchestrator.tracking import attach

    try:
        attach(settings, sweep.document, {f"{_FOLDER}/{file}": content for file, content in files.items()})
    except MCCError as error:
        return [folder / "report.html", folder / "report.md"], str(error)
    return [folder / "report.html", folder / "report.md"], ""
