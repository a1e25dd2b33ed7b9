"""A user's own images with image-level labels: a table, or a folder per class.

- Table: CSV with the columns `image` (a path relative to the images' folder) and `labels` (class names `;` between, or
  nothing).
- Sub-folders: each image has the class that its folder is named after.
- Masks are optional: PNGs with class numbers (0 background, then the classes in the order of their names or of the
  classes file), named as the images are. Without any, evaluation has the scores of the classes alone.
"""

from __future__ import annotations

import csv
import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mcc_core.data.pixels import IMAGE_SUFFIXES
from mcc_core.data.prepare import Draft, Entry
from mcc_core.data.voc import valid_classes
from mcc_core.errors import DataError

_SPLITS = {"train", "training", "val", "valid", "validation", "test", "testing"}  # names of splits, not of classes
_JUNK = {"__macosx", "@eadir", "thumbs.db", "desktop.ini"}  # what systems leave beside files


@dataclass
class _Found:
    """Images with their labels, by path relative to the images' folder, and what is left out with the reason."""

    labels: dict[str, tuple[str, ...]]
    left_out: dict[str, list[str]] = field(default_factory=dict)
    spare: str = ""  # a line on what else a table has

    def leave(self, why: str, path: str) -> None:
        self.left_out.setdefault(why, []).append(path)

    def notes(self) -> list[str]:
        """A line for each reason: how many files, and one of them."""
        left = [f"left out: {len(paths)} files ({why}), such as {paths[0]}" for why, paths in self.left_out.items()]
        return [*([self.spare] if self.spare else []), *left]


def draft_folder(
    images: Path,
    *,
    table: Path | None = None,
    masks: Path | None = None,
    classes: Sequence[str] | None = None,
    val_share: float = 0.2,
    seed: int = 0,
) -> Draft:
    """Describe a folder of images.

    The val split is a share of the images that have masks, or of all where none has; drawn by a hash of name and seed,
    so that more images leave the drawn ones where they are. Files that are not taken are counted in the notes.

    Raises DataError for a table that cannot be read or names no image, folders that are splits and not classes, masks
    of which none belongs to an image, or when a split gets no image.
    """
    if not images.is_dir():
        raise DataError(f"{images}: no such folder")
    listing = _table(table, images, classes or ()) if table else _subfolders(images)
    if not listing.labels:
        raise DataError("\n".join([f"{table or images}: no images with labels in it", *listing.notes()]))
    given = classes or sorted({label for labels in listing.labels.values() for label in labels})
    names = valid_classes(list(given), "the labels")
    draft = Draft("folder", names, {"train": [], "val": []}, {}, notes=listing.notes())
    _add_entries(draft, listing, images, table, masks)
    if masks is not None:
        draft.notes += _mask_notes(draft, masks)
    else:
        draft.notes.append("no masks: training will score classes alone; --masks FOLDER gives mIoU")
    _split(draft, images, val_share, seed)
    return draft


def _add_entries(draft: Draft, listing: _Found, images: Path, table: Path | None, masks: Path | None) -> None:
    numbers = {name: number for number, name in enumerate(draft.classes)}
    for path, labels in listing.labels.items():
        name = path.rsplit(".", 1)[0].replace("/", "-").replace("\\", "-")
        unknown = [label for label in labels if label not in numbers]
        if unknown:
            known = ", ".join(draft.classes)
            draft.problems.append(f"{table or images}: {path}: class {unknown[0]!r} is not among {known}")
        elif not (images / path).is_file():
            draft.problems.append(f"{images / path}: no such file")
        elif name in draft.entries:
            draft.problems.append(f"{images / path}: and {draft.entries[name].image}: both would be called {name}")
        else:
            mask = next((m for m in _places(masks, path, name) if m.is_file()), None)
            draft.entries[name] = Entry(name, images / path, tuple(sorted(numbers[label] for label in labels)), mask)


def _split(draft: Draft, images: Path, val_share: float, seed: int) -> None:
    able = [name for name, entry in draft.entries.items() if entry.mask is not None] or list(draft.entries)
    held = {name for name in able if _drawn(name, seed) < val_share}
    for name in draft.entries:
        draft.splits["val" if name in held else "train"].append(name)
    if empty := [split for split, names in draft.splits.items() if not names]:
        raise DataError(
            f"{images}: no image is left for {empty[0]}: {len(held)} of the {len(able)} that can be held back are, "
            f"by --val-share {val_share}"
        )


def _mask_notes(draft: Draft, masks: Path) -> list[str]:
    """How the masks and the images match. Raises DataError where none does."""
    if not masks.is_dir():
        raise DataError(f"--masks {masks}: no such folder")
    used = {entry.mask for entry in draft.entries.values() if entry.mask is not None}
    there = sorted(path for path in _files(masks) if not path.name.startswith("."))
    if draft.entries and not used:
        name = next(iter(draft.entries))
        what = f"{len(there)} files, such as {there[0].relative_to(masks)}" if there else "nothing"
        raise DataError(
            f"--masks {masks}: no mask is named as an image is: expected {name}.png and so on, found {what}"
        )
    notes = []
    if spare := [path for path in there if path not in used]:
        notes.append(f"left out: {len(spare)} files of {masks} (no image of that name), such as {spare[0].name}")
    if lacking := [name for name, entry in draft.entries.items() if entry.mask is None]:
        notes.append(f"{len(lacking)} images have no mask, such as {lacking[0]}: they are only trained on")
    return notes


def _places(masks: Path | None, path: str, name: str) -> list[Path]:
    return [] if masks is None else [(masks / path).with_suffix(".png"), masks / f"{name}.png"]


def _drawn(name: str, seed: int) -> float:
    return int.from_bytes(hashlib.sha256(f"{seed}:{name}".encode()).digest()[:4], "big") / 2**32


def _files(folder: Path) -> Iterator[Path]:
    """Files below a folder, also in folders that are links. Raises DataError for a folder that cannot be read."""

    def refuse(error: OSError) -> None:
        raise DataError(f"{error.filename}: {error.strerror or error}; expected a folder that can be read")

    for place, folders, names in os.walk(folder, onerror=refuse, followlinks=True):
        here = Path(place).resolve()
        folders[:] = [name for name in folders if not here.is_relative_to((here / name).resolve())]  # no circles
        yield from (Path(place, name) for name in names)


def _subfolders(images: Path) -> _Found:
    """Images two levels deep, each of the class that its folder is named after."""
    listing = _Found({})
    for file in sorted(_files(images)):
        path = file.relative_to(images)
        if any(part.startswith(".") or part.casefold() in _JUNK for part in path.parts):
            listing.leave("left by a system", path.as_posix())
        elif file.suffix.lower() not in IMAGE_SUFFIXES:
            listing.leave(f"none of {' '.join(IMAGE_SUFFIXES)}", path.as_posix())
        elif len(path.parts) == 1:
            listing.leave("in no folder that names a class", path.as_posix())
        elif len(path.parts) > 2:
            listing.leave("in a folder within a class's folder", path.as_posix())
        else:
            listing.labels[path.as_posix()] = (path.parts[0],)
    tops = {label for labels in listing.labels.values() for label in labels}
    tops |= {path.split("/")[0] for path in listing.left_out.get("in a folder within a class's folder", ())}
    if tops and {top.casefold() for top in tops} <= _SPLITS:
        inside = next((top for top in sorted(tops) if any(p.is_dir() for p in (images / top).iterdir())), None)
        remedy = f"give one whose folders are classes, such as {images / inside}, or " if inside else "give "
        raise DataError(
            f"{images}: its folders are {', '.join(sorted(tops))}: splits, not classes; {remedy}--labels TABLE.csv"
        )
    return listing


def _table(file: Path, images: Path, classes: Sequence[str]) -> _Found:
    """Images and labels of a CSV file, and the images that it does not name."""
    listing = _Found({})
    try:
        with file.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream, strict=True)
            columns = [column.strip() for column in reader.fieldnames or ()]
            if not {"image", "labels"} <= set(columns):
                raise DataError(f"{file}: line 1: expected the columns image and labels, with a comma between")
            if twice := [column for column in columns if column and columns.count(column) > 1]:
                raise DataError(f"{file}: line 1: the column {twice[0]} is there twice; take one out")
            reader.fieldnames = columns
            if more := [column or "one without a name" for column in columns if column not in ("image", "labels")]:
                listing.spare = (
                    f"left out: {len(more)} columns of {file.name} ({', '.join(more[:5])}): image and labels are read"
                )
            for row in reader:
                path, labels = _row(row, f"{file}: line {reader.line_num}", classes)
                if path in listing.labels:
                    raise DataError(f"{file}: line {reader.line_num}: {path} is there twice")
                listing.labels[path] = labels
    except OSError as error:
        raise DataError(f"{file}: cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise DataError(f"{file}: cannot be read as CSV: not UTF-8 text") from None
    except csv.Error:
        raise DataError(f"{file}: line {reader.line_num}: not CSV; is a quotation mark not closed?") from None
    for spare in sorted(p for p in _files(images) if p.suffix.lower() in IMAGE_SUFFIXES):
        if (path := spare.relative_to(images).as_posix()) not in listing.labels:
            listing.leave(f"not in {file.name}", path)
    return listing


def _row(row: Mapping[str | None, str | None], where: str, classes: Sequence[str]) -> tuple[str, tuple[str, ...]]:
    """(path of an image, its labels) of a line of the table."""
    image, labels = (row["image"] or "").strip(), row["labels"]
    if not image or labels is None or row.get(None):
        raise DataError(f"{where}: expected an image and its labels, with `;` between several labels")
    if Path(image).is_absolute() or ".." in Path(image).parts or "\0" in image:
        raise DataError(f"{where}: {image!r}: expected a path inside the images' folder")
    if "\\" in image:
        raise DataError(f"{where}: {image!r}: expected `/` between a folder and a file")
    names = tuple(dict.fromkeys(part.strip() for part in labels.split(";") if part.strip()))
    for name in names:
        if name not in classes and (mark := next((mark for mark in ",|/\t" if mark in name), None)):
            raise DataError(f"{where}: {name!r}: put `;` between several labels, not {mark!r}; or name it in --classes")
    return Path(image).as_posix(), names
