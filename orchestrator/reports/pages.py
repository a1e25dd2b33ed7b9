"""HTML pages from the templates that ship with the package."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from mcc_core.errors import UsageError

MARK = "<!-- made by mcc -->"  # in every page, so that none replaces a file of the user's


def render(template: str, **values: Any) -> str:
    """A page; every value is escaped. `percent` shows a share in percent, `points` a difference with its sign."""
    environment = Environment(
        loader=PackageLoader("orchestrator.reports"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters["percent"] = lambda value: "-" if value is None or value != value else f"{100 * value:.1f}"
    environment.filters["points"] = lambda value: "-" if value is None or value != value else f"{100 * value:+.1f}"
    return marked(environment.get_template(template).render(**values))


def marked(page: str) -> str:
    """A page, HTML or Markdown, that says who made it."""
    return f"{page.rstrip()}\n{MARK}\n"


def require_ours(folder: Path, names: Iterable[str], option: str = "--out") -> None:
    """Raise UsageError where a page would replace a file that no page of ours is, or where there is no folder."""
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{option} {folder}: is a file; expected a folder")
    for file in (folder / name for name in names):
        if file.is_file() and MARK not in file.read_text(encoding="utf-8", errors="replace"):
            raise UsageError(f"{option} {folder}: {file.name} in it was not made by mcc; give another folder")
