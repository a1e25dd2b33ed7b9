"""What MkDocs does while it builds the site: pages from files at the top, and links that hold in both places."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
TOP = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
LINK = re.compile(r"\[([^\]]+)\]\((\.\./[^)#]+)[^)]*\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are files at the top of the repository."""
    for name, page in TOP.items():
        text = (ROOT / name).read_text(encoding="utf-8").replace("](docs/", "](")
        for other, to in TOP.items():
            text = text.replace(f"]({other})", f"]({to})")
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links to files at the top go to their pages; of links to source files the text alone stays."""

    def target(found: re.Match[str]) -> str:
        text, path = found.groups()
        here = posixpath.normpath(posixpath.join(posixpath.dirname(page.file.src_uri), path))
        if not here.startswith("../"):
            return found[0]
        name = here.removeprefix("../")
        return f"[{text}]({'../' * page.file.src_uri.count('/')}{TOP[name]})" if name in TOP else text

    return LINK.sub(target, markdown)
