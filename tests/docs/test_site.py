"""The documentation as a site: it builds without a warning, is current, and fetches nothing from elsewhere."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import doc_commands as docs
import pytest

ROOT = docs.ROOT


def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs/generate.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "-d", str(folder)]
    env = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=env, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_it_builds_with_warnings_as_errors(site: Path) -> None:
    pages = {path.relative_to(site).as_posix() for path in site.rglob("*.html")}
    assert {"index.html", "tutorial.html", "reference/cli.html", "changelog.html", "contributing.html"} <= pages
    assert "make demo" in (site / "index.html").read_text()


def test_links_out_of_a_folder_hold(site: Path) -> None:
    assert '<a href="../concepts.html#files">' in (site / "reference/configuration.html").read_text()
    assert '<a href="index.html">README</a>' in (site / "tutorial.html").read_text()
    assert 'href="benchmarks' not in (site / "faults.html").read_text()


def test_pages_fetch_nothing_from_elsewhere(site: Path) -> None:
    for page in site.rglob("*.html"):
        fetched = re.findall(r"<(?:script|link|img|iframe)\b[^>]*\b(?:src|href)=\"(https?:[^\"]+)", page.read_text())
        assert fetched == [], page.name


def test_the_reference_is_current() -> None:
    made = generator()
    for name, text in made.texts().items():
        assert (made.PAGES / name).read_text() == text, f"docs/reference/{name}: make reference writes it again"


def test_every_module_says_what_it_is() -> None:
    assert [path for path, first in generator().modules() if not first.strip().endswith((".", "?"))] == []


def test_the_reference_has_every_field_and_command() -> None:
    from mcc_core.methods.mcc.config import Experiment
    from mcc_core.validation import field_names

    text = (ROOT / "docs/reference/configuration.md").read_text()
    names = field_names(Experiment)
    assert [n for n in names if not any(o.startswith(f"{n}.") for o in names) and f"| `{n}` |" not in text] == []
    commands = (ROOT / "docs/reference/cli.md").read_text()
    assert "## `mcc sweep`" in commands and "### `mcc sweep submit`" in commands


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 200
