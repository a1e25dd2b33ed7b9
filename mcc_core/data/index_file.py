"""The index that `mcc data prepare` writes and training reads: names, labels, sizes, content of every image."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from pydantic import Field, PositiveInt, ValidationError

from mcc_core.config import Strict
from mcc_core.errors import DataError
from mcc_core.files import whole

INDEX = "index.json"
FORMAT = 1
HELD = ("val", "test")  # splits that are evaluated on
_PATH = r"^[^\x00]+$"


class IndexedImage(Strict):
    """One image. Paths are relative to the index's folder where they are below it, else absolute."""

    image: str = Field(pattern=_PATH)
    bytes: PositiveInt
    digest: str = Field(pattern="^[0-9a-f]{32}$", description="of the file's content (sha256, first half)")
    size: tuple[PositiveInt, PositiveInt] = Field(description="width, height after EXIF rotation")
    labels: tuple[int, ...] = Field((), description="foreground classes in it, from 0")
    mask: str | None = Field(None, pattern=_PATH)
    mask_digest: str = ""
    mask_classes: tuple[int, ...] | None = Field(None, description="foreground classes in the mask, from 0")
    mask_open: bool = Field(False, description="whether pixels of the mask are 255, which are not scored")
    scaled: bool = Field(False, description="more than 8 bits a channel, scaled to 8")
    pages: bool = Field(False, description="several pages or frames, of which the first is read")
    transparent: bool = Field(False, description="transparent pixels, whose stored colours are read")


class IndexFile(Strict):
    """A prepared dataset."""

    format: int = FORMAT
    source: str = Field(description="voc, coco or folder")
    classes: tuple[str, ...] = Field(min_length=1, max_length=254)
    splits: Mapping[str, tuple[str, ...]]
    images: Mapping[str, IndexedImage]


def write_index(index: IndexFile, folder: Path) -> Path:
    """Write `folder/index.json`, whole or not at all."""
    file = folder / INDEX
    with whole(file) as partial:
        partial.write_text(json.dumps(index.model_dump(mode="json"), separators=(",", ":")), encoding="utf-8")
    return file


def read_index(folder: Path) -> IndexFile:
    """Read and check `folder/index.json`. Raises DataError, one line."""
    file = folder / INDEX
    if not file.is_file():
        raise DataError(f"{file}: no such file; mcc data prepare writes it")
    try:
        index = IndexFile.model_validate_json(file.read_bytes())
    except OSError as error:
        raise DataError(f"{file}: {error.strerror or error}") from None
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise DataError(f"{file}: {where + ': ' if where else ''}{first['msg']}; mcc data prepare writes it") from None
    if index.format != FORMAT:
        raise DataError(f"{file}: format {index.format}, expected {FORMAT}; mcc data prepare writes it anew")
    for split, names in index.splits.items():
        if len(set(names)) < len(names):
            raise DataError(f"{file}: splits.{split}: {Counter(names).most_common(1)[0][0]} is there twice")
        if unknown := next((name for name in names if name not in index.images), None):
            raise DataError(f"{file}: splits.{split}: {unknown} is not among the images")
    for name, entry in index.images.items():
        if any(not 0 <= label < len(index.classes) for label in entry.labels):
            raise DataError(
                f"{file}: images.{name}: labels {list(entry.labels)}: there are {len(index.classes)} classes"
            )
    return index


def faults(index: IndexFile) -> list[tuple[str, str, str]]:
    """(split, image, what is wrong) of images that training or evaluation would refuse: those of a held-back split that
    are in another as well, by name or by content, and those without a mask where others of val have one."""
    problems = []
    held = {split: index.splits[split] for split in HELD if split in index.splits}
    for other, evaluated in held.items():
        names, contents = set(evaluated), {index.images[name].digest: name for name in evaluated}
        for split in (split for split in index.splits if split not in HELD):
            for name in index.splits[split]:
                file = index.images[name].image
                if name in names:
                    problems.append((split, name, f"{name}: in {split} and in {other}: {file}"))
                elif (same := contents.get(index.images[name].digest)) is not None:
                    files = f"{file} and {index.images[same].image}"
                    problems.append(
                        (split, name, f"{name} and {same}: the same picture in {split} and {other}: {files}")
                    )
    masked = [index.images[name].mask is not None for name in held.get("val", ())]
    if any(masked):
        for name, has in zip(held["val"], masked, strict=True):
            if not has:
                problems.append(
                    ("val", name, f"{name}: has no mask; others of val have one: {index.images[name].image}")
                )
    return problems
