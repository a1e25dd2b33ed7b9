"""Image files of what a user names on the command line."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from glob import glob
from pathlib import Path
from typing import NamedTuple

from mcc_core.data.pixels import IMAGE_SUFFIXES
from mcc_core.errors import UsageError


class ImageFiles(NamedTuple):
    """What a user named, as files."""

    files: list[Path]
    left_out: list[str]  # one line for each folder of which something is not taken


def image_files(paths: Iterable[Path]) -> ImageFiles:
    """Image files of what a user names: files, folders, patterns such as `photos/*.jpg`, and `.txt` lists of files.

    Lines of a list are relative to its folder. Raises UsageError for what does not exist or holds no image.
    """
    files: list[Path] = []
    left_out: list[str] = []
    for path in paths:
        if path.is_dir():
            there = sorted(path.iterdir())
            inside = [p for p in there if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file() and p.name[0] != "."]
            if rest := [p for p in there if p not in set(inside)]:
                left_out.append(f"{path}: left out: {_counted(rest)}")
        elif path.suffix.lower() == ".txt" and path.is_file():
            inside = _listed(path)
        elif path.is_file():
            inside = [path]
        elif any(mark in str(path) for mark in "*?["):
            inside = [Path(name) for name in sorted(glob(str(path), recursive=True)) if Path(name).is_file()]
        else:
            raise UsageError(f"{path}: no such file or folder")
        if not inside:
            raise UsageError(f"{path}: no images here ({', '.join(IMAGE_SUFFIXES)})")
        files += inside
    return ImageFiles(files, left_out)


def _listed(path: Path) -> list[Path]:
    """The files that a list names. Raises UsageError."""
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except UnicodeDecodeError:
        raise UsageError(f"{path}: not a text file in UTF-8; it should list image files, one a line") from None
    files = [path.parent / line for line in lines if line]
    if missing := [file for file in files if not file.is_file()]:
        more = f" (and {len(missing) - 1} more lines)" if len(missing) > 1 else ""
        raise UsageError(f"{path}: {missing[0]}: no such file{more}")
    return files


def _counted(rest: Sequence[Path]) -> str:
    """`2 folders, such as a; 3 files that are no images, such as b.txt`."""
    folders = [p.name for p in rest if p.is_dir()]
    files = [p.name for p in rest if not p.is_dir()]
    parts = [f"{len(folders)} folders, such as {folders[0]}"] if folders else []
    parts += [f"{len(files)} files that are hidden or no images, such as {files[0]}"] if files else []
    return "; ".join(parts)
