"""The record of what a trial ran on: packages, Python, platform, code version, command. Never environment variables,
and never what they say is secret."""

from __future__ import annotations

import platform
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import mcc_core
from orchestrator.redaction import redact

_LONGEST_DIFF = 500_000  # characters


def environment_record(command: Sequence[str]) -> dict[str, Any]:
    """JSON content of `trials/<identity>/environment.json`."""
    return {
        "command": [redact(argument) for argument in command],
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "cpus": platform.processor() or platform.machine(),
        "mcc": mcc_core.__version__,
        "git": git_state(),
        "packages": dict(sorted((d.metadata["Name"], d.version) for d in distributions() if d.metadata["Name"])),
    }


def git_state() -> dict[str, str] | None:
    """Commit and uncommitted changes of the checkout that the package lies in; None when it does not lie in one."""
    package = Path(mcc_core.__file__).parent
    # Tracked, and not just installed somewhere below a repository of the user's.
    if _git(package, "ls-files", "--error-unmatch", "__init__.py") is None:
        return None
    commit = _git(package, "rev-parse", "HEAD")
    if commit is None:
        return None
    diff = _git(package.parent, "diff", "HEAD", "--no-color", "--no-ext-diff") or ""
    return {"commit": commit.strip(), "diff": redact(diff[:_LONGEST_DIFF])}


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments],
            capture_output=True,
            timeout=20,
            check=True,
            stdin=subprocess.DEVNULL,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.decode("utf-8", "replace")
