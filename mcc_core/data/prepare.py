"""From what a dataset came as to an index: every file looked at once, in parallel, and what is wrong named."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image, ImageOps

from mcc_core.data.index_file import IndexedImage, IndexFile, write_index
from mcc_core.data.voc import IMAGE_ERRORS, MAX_PIXELS, read_mask
from mcc_core.errors import DataError
from mcc_core.files import file_digest

Progress = Callable[[str, int, int], None]  # what is done, how many, of how many


@dataclass(frozen=True)
class Entry:
    """An image as its dataset lists it, not yet looked at."""

    name: str
    image: Path
    labels: tuple[int, ...]
    mask: Path | None = None


@dataclass
class Draft:
    """A dataset as its own files describe it."""

    source: str
    classes: tuple[str, ...]
    splits: dict[str, list[str]]
    entries: dict[str, Entry]
    problems: list[str] = field(default_factory=list)  # what the description itself lacks
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Prepared:
    """What was written, and what was wrong."""

    index: IndexFile
    file: Path
    problems: tuple[str, ...]
    notes: tuple[str, ...]


def finish(draft: Draft, out: Path, *, skip_broken: bool = False, progress: Progress = lambda *_: None) -> Prepared:
    """Look at every file of a draft and write the index. Files looked at before are not read again.

    Raises DataError naming every missing or broken file, unless they are to be left out, and when nothing is left.
    """
    out.mkdir(parents=True, exist_ok=True)
    found: dict[str, IndexedImage] = {}
    problems = list(draft.problems)
    entries = [draft.entries[name] for name in dict.fromkeys(n for names in draft.splits.values() for n in names)]
    with closing(_Journal(out / ".examined.jsonl")) as journal, ThreadPoolExecutor() as pool:
        looked = pool.map(lambda entry: _examined(entry, len(draft.classes), out, journal), entries)
        for done, (entry, one) in enumerate(zip(entries, looked, strict=True), start=1):
            progress("looking at images", done, len(entries))
            if isinstance(one, str):
                problems.append(one)
            else:
                found[entry.name] = one
    if problems and not skip_broken:
        raise DataError("\n".join([*problems[:20], *_rest(problems)]))
    splits = {split: tuple(name for name in names if name in found) for split, names in draft.splits.items()}
    if empty := [split for split, names in splits.items() if not names]:
        raise DataError(f"{draft.source}: no readable image is left in {empty[0]}")
    index = IndexFile(source=draft.source, classes=draft.classes, splits=splits, images=found)
    return Prepared(index, write_index(index, out), tuple(problems), tuple(draft.notes))


def changed_files(index: IndexFile, folder: Path, progress: Progress = lambda *_: None) -> list[str]:
    """What no longer is as the index says: a line for each missing, changed or broken file. Reads every file."""

    def one(entry: IndexedImage) -> list[str]:
        lines = []
        for path, digest in ((entry.image, entry.digest), (entry.mask, entry.mask_digest)):
            if path is not None:
                file = folder / path
                try:
                    if fingerprint(file) != digest:
                        lines.append(f"{file}: its content has changed since the index was made")
                except OSError as error:
                    lines.append(f"{file}: {error.strerror or error}")
        return lines

    found: list[str] = []
    with ThreadPoolExecutor() as pool:
        for done, lines in enumerate(pool.map(one, index.images.values()), start=1):
            found += lines
            progress("reading files", done, len(index.images))
    return found


def same_content(index: IndexFile, first: str, second: str) -> list[tuple[str, str]]:
    """Pairs of images, of one split and the other, whose files are equal under different names."""
    known = {index.images[name].digest: name for name in index.splits[first]}
    return [(known[digest], name) for name in index.splits[second] if (digest := index.images[name].digest) in known]


def fingerprint(file: Path) -> str:
    """Of a file's content, as the index has it: 32 hexadecimal digits. Raises OSError."""
    return file_digest(file)[:32]


class _Journal:
    """What was found of files that have not changed since, line by line, so that a killed run loses nothing."""

    def __init__(self, file: Path) -> None:
        self.known: dict[str, dict[str, object]] = {}
        if file.is_file():
            for line in file.read_bytes().splitlines():
                try:
                    entry = json.loads(line)
                    self.known[entry["key"]] = entry["found"]
                except (ValueError, KeyError, TypeError):
                    continue  # the half line of a killed run
        self._stream = file.open("a", encoding="utf-8")
        self._lock = threading.Lock()

    def add(self, key: str, found: Mapping[str, object]) -> None:
        with self._lock:
            self._stream.write(json.dumps({"key": key, "found": found}) + "\n")
            self._stream.flush()

    def close(self) -> None:
        self._stream.close()


def _examined(entry: Entry, classes: int, out: Path, journal: _Journal) -> IndexedImage | str:
    """An image's line of the index, or what is wrong with it."""
    try:
        key = " ".join(_stamp(path) for path in (entry.image, entry.mask) if path is not None)
        found = journal.known.get(f"{classes} {key}")
        if found is None:
            found = _looked_at(entry, classes)
            journal.add(f"{classes} {key}", found)
    except OSError as error:
        return f"{error.filename or entry.image}: {error.strerror or error}"
    except DataError as error:
        return str(error)
    paths = {"image": _relative(entry.image, out), "mask": entry.mask and _relative(entry.mask, out)}
    return IndexedImage.model_validate({**found, **paths, "labels": entry.labels})


def _looked_at(entry: Entry, classes: int) -> dict[str, object]:
    size = image_size(entry.image)
    found: dict[str, object] = {"bytes": entry.image.stat().st_size, "digest": fingerprint(entry.image), "size": size}
    if entry.mask is not None:
        height, width = read_mask(entry.mask, classes).shape
        if (width, height) != size:
            raise DataError(f"{entry.mask}: {width}x{height} pixels, its image has {size[0]}x{size[1]}")
        found["mask_digest"] = fingerprint(entry.mask)
    return found


def image_size(path: Path) -> tuple[int, int]:
    """(width, height) of an image after decoding it whole. Raises DataError naming the file and what is wrong."""
    if path.stat().st_size == 0:
        raise DataError(f"{path}: is empty (0 bytes)")
    try:
        with Image.open(path) as image:
            if image.width * image.height > MAX_PIXELS:
                raise DataError(f"{path}: {image.width}x{image.height} pixels; at most {MAX_PIXELS:,} are read")
            turned = image.getexif().get(0x0112, 1) in (5, 6, 7, 8)
            size = (image.height, image.width) if turned else (image.width, image.height)
            image.draft("RGB", (max(1, image.width // 8), max(1, image.height // 8)))  # reads every byte, costs less
            ImageOps.exif_transpose(image).convert("RGB")
            return size
    except IMAGE_ERRORS as error:
        raise DataError(f"{path}: cannot be read as an image: {str(error).replace(str(path), path.name)}") from None


def _relative(path: Path, out: Path) -> str:
    resolved, base = path.resolve(), out.resolve()
    return str(resolved.relative_to(base)) if resolved.is_relative_to(base) else str(resolved)


def _stamp(path: Path) -> str:
    stat = os.stat(path)
    return f"{path.resolve()} {stat.st_size} {stat.st_mtime_ns}"


def _rest(problems: Sequence[str]) -> Iterable[str]:
    return [f"and {len(problems) - 20} more"] if len(problems) > 20 else []
