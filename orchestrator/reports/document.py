"""A document of sections, written once and shown as one HTML file (pictures inside) or as Markdown."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from orchestrator.analysis.figures import markdown
from orchestrator.analysis.leaderboard import ABSENT
from orchestrator.reports.pages import render

_NUMBER = re.compile(rf"({ABSENT}|[-+=]?\d*\.?\d*(e[-+]?\d+)?( ?[%±\[].*)?)$")
_INTERVAL = re.compile(r"\[([-+])[\d.]+, ([-+])[\d.]+\]")


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    text: str


@dataclass(frozen=True)
class Grid:
    """A table: header and lines. With `signed`, differences whose interval leaves out 0 are coloured."""

    lines: Sequence[Sequence[str]]
    signed: bool = False

    @property
    def left(self) -> list[bool]:
        """Which columns hold words rather than numbers."""
        columns = zip(*self.lines[1:], strict=True)
        return [any(cell and not _NUMBER.match(cell) for cell in cells) for cells in columns] or [True] * len(
            self.lines[0]
        )

    def tone(self, cell: str) -> str:
        """`better` or `worse` for a difference with its interval, such as `+1.4 [+0.7, +2.2]`; else nothing."""
        interval = _INTERVAL.search(cell) if self.signed else None
        if interval is None or interval[1] != interval[2]:
            return ""
        return "better" if interval[1] == "+" else "worse"


@dataclass(frozen=True)
class Picture:
    """An image file with a caption."""

    name: str  # with its suffix: .png or .jpg
    content: bytes
    caption: str

    @property
    def uri(self) -> str:
        """The picture itself as an address."""
        kind = "jpeg" if self.name.endswith(".jpg") else "png"
        return f"data:image/{kind};base64,{base64.b64encode(self.content).decode()}"


@dataclass(frozen=True)
class Code:
    """Something to copy; one with a `title` is folded away in HTML."""

    text: str
    title: str = ""


Part = Text | Grid | Picture | Code


@dataclass(frozen=True)
class Section:
    """A heading and what is below it."""

    title: str
    parts: Sequence[Part]


def to_html(title: str, lead: str, sections: Sequence[Section]) -> str:
    """One self-contained page."""
    shown = [(s.title, [(type(part).__name__, part) for part in s.parts]) for s in sections]
    return render("report.html.j2", title=title, lead=lead, sections=shown)


def to_markdown(title: str, lead: str, sections: Sequence[Section]) -> str:
    """The same as Markdown; it names its pictures, which lie beside it in `images`."""

    def blocks() -> Iterator[str]:
        yield f"# {title}"
        yield lead
        for section in sections:
            yield f"## {section.title}"
            for part in section.parts:
                yield _block(part)

    return "\n\n".join(block.strip("\n") for block in blocks()) + "\n"


def pictures(sections: Sequence[Section]) -> list[Picture]:
    """All pictures, in order."""
    return [part for section in sections for part in section.parts if isinstance(part, Picture)]


def _block(part: Part) -> str:
    match part:
        case Text(text):
            return text
        case Grid(lines):
            return markdown([[cell.replace("\n", " ") for cell in line] for line in lines])
        case Picture(name, _, caption):
            return f"{caption}\n\n![{caption}](images/{name})"
        case Code(text, title):
            block = f"```\n{text.strip()}\n```"
            return f"<details><summary>{title}</summary>\n\n{block}\n\n</details>" if title else block
