"""Label sets made of what is there: a dataset's own masks, or a folder of label maps."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from mcc_core.config import DataConfig
from mcc_core.data.index import DataIndex, Item
from mcc_core.data.label_maps import DATASET, LabelSet, LabelSetWriter, Supervision
from mcc_core.data.pixels import decode_bytes, read_mask, stored_size
from mcc_core.errors import DataError

Progress = Callable[[str, int, int], None]


def label_set_of_masks(
    index: DataIndex,
    out: Path,
    *,
    dataset: DataConfig | None = None,
    progress: Progress = lambda what, done, total: None,
) -> tuple[LabelSet, tuple[str, ...]]:
    """A label set of the dataset's masks of its training images, and the names of those that have none.

    The set's origin says which `dataset` that is. Its supervision is full: what it trains is an upper bound. Raises
    DataError where no training image has a mask.
    """
    masked = [item for item in index.train if item.name in index.masks]
    if not masked:
        raise DataError("data: no training image has a mask; a folder of label maps is given as FOLDER")
    origin = {"masks": index.fingerprint} | _recorded(dataset)
    with LabelSetWriter(out, index.classes, supervision="full", origin=origin) as writer:
        for number, item in enumerate(masked):
            progress("masks", number, len(masked))
            writer.add(item.name, read_mask(index.masks[item.name], len(index.classes)))
        return writer.close(), tuple(item.name for item in index.train if item.name not in index.masks)


def label_set_of_folder(
    index: DataIndex,
    maps: Path,
    out: Path,
    *,
    confidence: Path | None = None,
    supervision: Supervision = "weak",
    dataset: DataConfig | None = None,
    progress: Progress = lambda what, done, total: None,
) -> tuple[LabelSet, tuple[str, ...]]:
    """A label set of `maps/<image>.png` (0..C, 255 ignored) and `confidence/<image>.png` (grey, 255 for 1.0), and the
    names of the training images that have no map. Its origin says of which `dataset` they are.

    Raises DataError for a file that is no map of a training image, or of another size or range than may be.
    """
    if not maps.is_dir():
        raise DataError(f"{maps}: no such folder; expected one of label maps, <image>.png")
    if confidence is not None and not confidence.is_dir():
        raise DataError(f"{confidence}: no such folder; expected one of confidence maps, <image>.png")
    items = {item.name: item for item in index.train}
    found, sure = (_maps(folder, items) for folder in (maps, confidence))
    if strange := next((name for name in sure if name not in found), None):
        raise DataError(f"{sure[strange]}: confidence of an image without a label map in {maps}")
    if not found:
        raise DataError(f"{maps}: no label maps here; expected PNG files such as {next(iter(items))}.png")
    origin = {"folder": maps.name} | _recorded(dataset)
    with LabelSetWriter(out, index.classes, supervision=supervision, origin=origin) as writer:
        for number, (name, file) in enumerate(found.items()):
            progress("label maps", number, len(found))
            label = _sized(read_mask(file, len(index.classes)), file, items[name])
            known = _sized(decode_bytes(sure[name], sure[name]), sure[name], items[name]) if name in sure else None
            writer.add(name, label, None if known is None else known.astype(np.float32) / 255)
        return writer.close(), tuple(name for name in items if name not in found)


def _recorded(dataset: DataConfig | None) -> dict[str, Any]:
    if dataset is None:
        return {}
    paths = {name: getattr(dataset, name) for name in ("root", "classes")}
    whole = {name: path.expanduser().resolve() for name, path in paths.items() if isinstance(path, Path)}
    return {DATASET: dataset.model_copy(update=whole).model_dump(mode="json")}


def _maps(folder: Path | None, items: dict[str, Item]) -> dict[str, Path]:
    """PNG files by the name of their image. Raises DataError for one of no training image."""
    if folder is None:
        return {}
    maps = [file for file in sorted(folder.rglob("*")) if file.suffix.lower() == ".png" and file.is_file()]
    files = {file.relative_to(folder).with_suffix("").as_posix(): file for file in maps}
    if twice := set(maps) - set(files.values()):
        raise DataError(f"{min(twice)}: a second map of one image; expected one PNG of each")
    if unknown := [name for name in files if name not in items]:
        more = f" ({len(unknown)} of {len(files)} files)" if len(unknown) > 1 else ""
        raise DataError(f"{files[unknown[0]]}: no training image of the dataset is called {unknown[0]}{more}")
    return files


def _sized(values: np.ndarray, file: Path, item: Item) -> np.ndarray:
    width, height = stored_size(item.image)
    if values.shape != (height, width):
        raise DataError(
            f"{file}: {values.shape[1]}x{values.shape[0]} pixels; its image {item.image} has {width}x{height}"
        )
    return values
