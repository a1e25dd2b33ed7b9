"""From what a dataset came as to an index: every file looked at once, in parallel, and what is wrong named."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from pydantic import ValidationError

from mcc_core.data.index_file import HELD, INDEX, IndexedImage, IndexFile, faults, read_index, write_index
from mcc_core.data.mask_checks import mask_notes
from mcc_core.data.pixels import READING, SIMPLIFIED, image_size, read_mask, simplification_notes, simplified
from mcc_core.errors import DataError
from mcc_core.files import file_digest, file_stamp
from mcc_core.parallel import each

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
    make_folder(out)
    problems = list(draft.problems)
    entries = [draft.entries[name] for name in dict.fromkeys(n for names in draft.splits.values() for n in names)]
    with closing(_Journal(out / ".examined.jsonl", len(draft.classes))) as journal:
        known = {entry.name: journal.found(entry) for entry in entries}
        new = [entry for entry in entries if known[entry.name] is None]
        looked = each(partial(_examined, classes=len(draft.classes)), new)
        for done, (entry, examined) in enumerate(zip(new, looked, strict=True), start=len(entries) - len(new) + 1):
            progress("looking at images", done, len(entries))
            if isinstance(examined, str):
                problems.append(examined)
            else:
                journal.add(entry, examined)
                known[entry.name] = examined
    indexed: dict[str, IndexedImage] = {}
    for entry in entries:
        if (image := known[entry.name]) is not None:
            paths = {"image": _relative(entry.image, out), "mask": entry.mask and _relative(entry.mask, out)}
            indexed[entry.name] = image.model_copy(update={**paths, "labels": entry.labels})
    splits = {split: tuple(name for name in names if name in indexed) for split, names in draft.splits.items()}
    refused = faults(IndexFile(source=draft.source, classes=draft.classes, splits=splits, images=indexed))
    problems += [line for _, _, line in refused]
    if not skip_broken:
        refuse(problems)
    for split, name, _ in refused:
        splits[split] = tuple(other for other in splits[split] if other != name)
    if empty := [split for split, names in splits.items() if not names]:
        raise DataError("\n".join([*_shown(problems), f"{draft.source}: no readable image is left in {empty[0]}"]))
    for split in (split for split in splits if split not in HELD):
        if not any(indexed[name].labels for name in splits[split]):
            raise DataError(f"{draft.source}: no image of {split} has a class: nothing to learn")
    used = {name for names in splits.values() for name in names}
    images = {name: image for name, image in indexed.items() if name in used}
    index = IndexFile(source=draft.source, classes=draft.classes, splits=splits, images=images)
    notes = [*draft.notes, *_alike(draft.classes), *mask_notes(index), *_simplified(index), *_replaced(index, out)]
    return Prepared(index, write_index(index, out), tuple(problems), tuple(notes))


def make_folder(out: Path) -> None:
    """Make the folder for what is prepared. Raises DataError where there cannot be one."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = "is a file" if out.is_file() else error.strerror or error
        raise DataError(f"--out {out}: {reason}; expected a folder that can be written to") from None
    if not os.access(out, os.W_OK):
        raise DataError(f"--out {out}: not yours to write to; expected a folder that can be written to")


def refuse(problems: Sequence[str]) -> None:
    """Raise DataError where there are problems."""
    if problems:
        raise DataError("\n".join(_shown(problems)) + "; --skip-broken leaves such images out")


def _alike(classes: Sequence[str]) -> list[str]:
    """A note for each class whose name is another's but for case and spaces."""
    first: dict[str, str] = {}
    pairs = []
    for name in classes:
        other = first.setdefault("".join(name.casefold().split()), name)
        if other != name:
            pairs.append(f"classes {other!r} and {name!r} are two; is one of them a slip?")
    return pairs


def _simplified(index: IndexFile) -> list[str]:
    """A note for each kind of thing that reading leaves out of images."""
    return simplification_notes(
        {name: [kind for kind in SIMPLIFIED if getattr(image, kind)] for name, image in index.images.items()}
    )


def _replaced(index: IndexFile, out: Path) -> list[str]:
    """A note where the folder holds the index of another dataset."""
    try:
        before = read_index(out)
    except DataError:
        return []  # none, or none that can be read
    if (before.source, before.classes, set(before.images)) == (index.source, index.classes, set(index.images)):
        return []
    size = f"{len(before.images)} images, {len(before.classes)} classes"
    return [f"{out / INDEX}: replaces one of {before.source} with {size}"]


def changed_files(index: IndexFile, folder: Path, progress: Progress = lambda *_: None) -> list[str]:
    """What no longer is as the index says: a line for each missing, changed or broken file. Reads every file."""

    changes: list[str] = []
    entries = list(index.images.values())
    for done, lines in enumerate(each(partial(_changes, folder), entries), start=1):
        changes += lines
        progress("reading files", done, len(entries))
    return changes


def _changes(folder: Path, entry: IndexedImage) -> list[str]:
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


def fingerprint(file: Path) -> str:
    """Of a file's content, as the index has it: 32 hexadecimal digits. Raises OSError."""
    return file_digest(file)[:32]


class _Journal:
    """What was found of files that have not changed since, line by line, so that a killed run loses nothing."""

    def __init__(self, file: Path, classes: int) -> None:
        self._classes = classes
        self._known: dict[str, IndexedImage] = {}
        if file.is_file():
            for line in file.read_bytes().splitlines():
                try:
                    entry = json.loads(line)
                    self._known[entry["key"]] = IndexedImage.model_validate(entry["found"])
                except (ValidationError, ValueError, KeyError, TypeError):
                    continue  # the half line of a killed run, or not of ours
        self._stream = file.open("a", encoding="utf-8")

    def found(self, entry: Entry) -> IndexedImage | None:
        """What was found of an entry whose files are still as they were."""
        try:
            return self._known.get(self._key(entry))
        except OSError:
            return None  # not there any more: looked at again, which says so

    def add(self, entry: Entry, image: IndexedImage) -> None:
        self._stream.write(json.dumps({"key": self._key(entry), "found": image.model_dump(mode="json")}) + "\n")
        self._stream.flush()

    def close(self) -> None:
        self._stream.close()

    def _key(self, entry: Entry) -> str:
        files = (file_stamp(path) for path in (entry.image, entry.mask) if path is not None)
        return " ".join([str(READING), str(self._classes), *files])


def _examined(entry: Entry, classes: int) -> IndexedImage | str:
    """An image's line of the index, or what is wrong with it."""
    try:
        size = image_size(entry.image)
        facts: dict[str, object] = {
            "bytes": entry.image.stat().st_size,
            "digest": fingerprint(entry.image),
            "size": size,
        }
        facts |= dict.fromkeys(simplified(entry.image), True)
        if entry.mask is not None:
            mask = read_mask(entry.mask, classes)
            height, width = mask.shape
            numbers = np.unique(mask)
            facts["mask_classes"] = [int(number) - 1 for number in numbers if number not in (0, 255)]
            facts["mask_open"] = bool((numbers == 255).any())
            if (width, height) != size:
                return f"{entry.mask}: {width}x{height} pixels, its image has {size[0]}x{size[1]}"
            facts["mask_digest"] = fingerprint(entry.mask)
    except OSError as error:
        return f"{error.filename or entry.image}: {error.strerror or error}"
    except DataError as error:
        return str(error)
    return IndexedImage.model_validate({**facts, "image": str(entry.image)})


def _relative(path: Path, out: Path) -> str:
    resolved, base = path.resolve(), out.resolve()
    return str(resolved.relative_to(base)) if resolved.is_relative_to(base) else str(resolved)


def _shown(problems: Sequence[str]) -> list[str]:
    return [*problems[:20], *([f"and {len(problems) - 20} more"] if len(problems) > 20 else [])]
