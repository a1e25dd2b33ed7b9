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
from collections.abc import Mapping, Sequence
from pathlib import Path

from mcc_core.data.prepare import Draft, Entry
from mcc_core.data.voc import IMAGE_SUFFIXES, valid_classes
from mcc_core.errors import DataError


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
    so that more images leave the drawn ones where they are.

    Raises DataError for a table that cannot be read or names no image, or when a split gets no image.
    """
    if not images.is_dir():
        raise DataError(f"{images}: no such folder")
    labels = _table(table) if table else _subfolders(images)
    if not labels:
        raise DataError(f"{table or images}: no images with labels in it")
    names = valid_classes(
        list(classes or sorted({label for found in labels.values() for label in found})), "the labels"
    )
    numbers = {name: number for number, name in enumerate(names)}
    draft = Draft("folder", names, {"train": [], "val": []}, {})
    for path, found in labels.items():
        name = path.rsplit(".", 1)[0].replace("/", "-").replace("\\", "-")
        unknown = [label for label in found if label not in numbers]
        if unknown:
            draft.problems.append(f"{table or images}: {path}: class {unknown[0]!r} is not among {', '.join(names)}")
        elif not (images / path).is_file():
            draft.problems.append(f"{images / path}: no such file")
        elif name in draft.entries:
            draft.problems.append(f"{images / path}: and {draft.entries[name].image}: both would be called {name}")
        else:
            mask = next((m for m in _places(masks, path, name) if m.is_file()), None)
            draft.entries[name] = Entry(name, images / path, tuple(sorted(numbers[label] for label in found)), mask)
    able = [name for name, entry in draft.entries.items() if entry.mask is not None] or list(draft.entries)
    held = {name for name in able if _drawn(name, seed) < val_share}
    for name in draft.entries:
        draft.splits["val" if name in held else "train"].append(name)
    if empty := [split for split, names in draft.splits.items() if not names]:
        raise DataError(
            f"{images}: no image is left for {empty[0]}: {len(held)} of the {len(able)} that can be held back are, "
            f"by --val-share {val_share}"
        )
    if not any(entry.mask for entry in draft.entries.values()):
        draft.notes.append("no masks: training will score classes alone; --masks FOLDER gives mIoU")
    return draft


def _places(masks: Path | None, path: str, name: str) -> list[Path]:
    return [] if masks is None else [(masks / path).with_suffix(".png"), masks / f"{name}.png"]


def _drawn(name: str, seed: int) -> float:
    return int.from_bytes(hashlib.sha256(f"{seed}:{name}".encode()).digest()[:4], "big") / 2**32


def _subfolders(images: Path) -> Mapping[str, tuple[str, ...]]:
    files = sorted(p for p in images.glob("*/*") if p.suffix.lower() in IMAGE_SUFFIXES and not p.name.startswith("."))
    return {p.relative_to(images).as_posix(): (p.parent.name,) for p in files}


def _table(file: Path) -> dict[str, tuple[str, ...]]:
    found: dict[str, tuple[str, ...]] = {}
    try:
        with file.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream, strict=True)
            if not {"image", "labels"} <= set(reader.fieldnames or ()):
                raise DataError(f"{file}: line 1: expected the columns image and labels, with a comma between")
            for row in reader:
                image, labels = row["image"], row["labels"]
                where = f"{file}: line {reader.line_num}"
                if not image or labels is None or row.get(None):
                    raise DataError(f"{where}: expected an image and its labels, with `;` between several labels")
                if Path(image).is_absolute() or ".." in Path(image).parts or "\0" in image:
                    raise DataError(f"{where}: {image!r}: expected a path inside the images' folder")
                if image in found:
                    raise DataError(f"{where}: {image} is there twice")
                found[image] = tuple(dict.fromkeys(part.strip() for part in labels.split(";") if part.strip()))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{file}: cannot be read as CSV: {error}") from None
    return found
