"""A page never replaces a file that no page of ours is."""

from __future__ import annotations

from pathlib import Path

import pytest

from mcc_core.errors import UsageError
from orchestrator.reports.pages import marked, require_ours


def test_a_page_replaces_only_pages_of_ours(tmp_path: Path) -> None:
    require_ours(tmp_path / "new", ("report.md",))
    (tmp_path / "report.md").write_text(marked("# ours"))
    require_ours(tmp_path, ("report.md", "report.html"))
    (tmp_path / "report.md").write_text("# my notes")
    with pytest.raises(UsageError, match=r"--out .*: report.md in it was not made by mcc; give another folder"):
        require_ours(tmp_path, ("report.md",))
    with pytest.raises(UsageError, match=r"--gallery .*report.md: is a file; expected a folder"):
        require_ours(tmp_path / "report.md", ("index.html",), "--gallery")
