"""What the operating system says of processes."""

from __future__ import annotations

from pathlib import Path


def born(pid: int) -> str:
    """Start time of a process, which tells it from a later one of the same number; empty where it cannot be read."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[19]
    except (OSError, IndexError):
        return ""
