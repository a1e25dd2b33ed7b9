"""HTML pages from the templates that ship with the package."""

from __future__ import annotations

from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined


def render(template: str, **values: Any) -> str:
    """A page; every value is escaped. `percent` shows a share in percent, `points` a difference with its sign."""
    environment = Environment(
        loader=PackageLoader("orchestrator.reports"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters["percent"] = lambda value: "-" if value is None or value != value else f"{100 * value:.1f}"
    environment.filters["points"] = lambda value: "-" if value is None or value != value else f"{100 * value:+.1f}"
    return environment.get_template(template).render(**values)
