"""The checked list of images, labels and masks of a dataset, and the guard between training and masks."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from mcc_core.config import DataConfig
from mcc_core.data import shapes
from mcc_core.data.voc import VOC_CLASSES, read_class_file, read_labels, read_split
from mcc_core.errors import DataError


@dataclass(frozen=True)
class Item:
    """An image and its image-level labels. It has no mask: what trains gets only this."""

    name: str
    image: Path
    labels: tuple[int, ...]  # 0-based foreground class indices


@dataclass(frozen=True)
class DataIndex:
    """A checked dataset."""

    classes: tuple[str, ...]  # foreground names
    train: tuple[Item, ...]
    val: tuple[Item, ...]
    masks: Mapping[str, Path]  # masks of val items and of the train items that have one, for evaluation only
    skipped: tuple[str, ...]  # `path: reason` of images left out
    fingerprint: str  # of names, labels and image contents; the folder does not matter


def build_index(config: DataConfig, home: Path) -> DataIndex:
    """Check a dataset and list it; shapes are generated first where they are not there yet.

    Every image is decoded once; the result is remembered in `home/index` by path, size and time of change. Raises
    DataError for what is missing, broken, or in both splits.
    """
    root = shapes.ensure(config, home) if config.name == "shapes" else config.root
    if root is None:
        raise DataError("data.root: not set: give the dataset folder, --set data.root=FOLDER")
    if not root.is_dir():
        raise DataError(f"data.root: {root}: no such folder")
    classes = _classes(config)
    train_names, val_names = read_split(root, config.train_split), read_split(root, config.val_split)
    both = set(train_names) & set(val_names)
    if both:
        raise DataError(
            f"{root}: {sorted(both)[0]!r} and {len(both) - 1} more ids are in both {config.train_split} and "
            f"{config.val_split}: evaluation images must not be trained on"
        )
    checked = _checked([root / "JPEGImages" / f"{name}.jpg" for name in train_names + val_names], home)
    broken = tuple(f"{path}: {reason}" for path, (_, reason) in checked.items() if reason)
    if broken and config.on_corrupt == "stop":
        more = f" (and {len(broken) - 1} more images)" if len(broken) > 1 else ""
        raise DataError(f"{broken[0]}{more}; --set data.on_corrupt=skip leaves such images out")

    def items(names: Sequence[str]) -> tuple[Item, ...]:
        paths = [(name, root / "JPEGImages" / f"{name}.jpg") for name in names]
        return tuple(Item(n, p, read_labels(root, n, classes)) for n, p in paths if not checked[p][1])

    train, val = items(train_names), items(val_names)
    if not train or not val:
        raise DataError(f"{root}: no readable image is left in {config.train_split if not train else config.val_split}")
    masks = {i.name: root / "SegmentationClass" / f"{i.name}.png" for i in (*train, *val)}
    masks = {name: path for name, path in masks.items() if path.is_file()}
    for item in val:
        if item.name not in masks:
            raise DataError(f"{root / 'SegmentationClass' / item.name}.png: no such mask; {config.val_split} needs it")
    digests = {path: digest for path, (digest, _) in checked.items()}
    return DataIndex(classes, train, val, masks, broken, _fingerprint(classes, train, val, digests))


def supervision_certificate(index: DataIndex) -> dict[str, Any]:
    """Facts that show what training could see: recorded with each trial."""
    train, val = {i.name for i in index.train}, {i.name for i in index.val}
    return {
        "training_images": len(train),
        "validation_images": len(val),
        "images_in_both": len(train & val),
        "training_reads_masks": False,  # an Item has no mask path
        "skipped_images": list(index.skipped),
        "data_fingerprint": index.fingerprint,
    }


def _classes(config: DataConfig) -> tuple[str, ...]:
    if config.classes is None:
        return shapes.CLASSES if config.name == "shapes" else VOC_CLASSES
    return config.classes if isinstance(config.classes, tuple) else read_class_file(config.classes)


def _fingerprint(
    classes: Sequence[str], train: Iterable[Item], val: Iterable[Item], digests: Mapping[Path, str]
) -> str:
    digest = hashlib.sha256(json.dumps(list(classes)).encode())
    for split in (train, val):
        for item in split:
            digest.update(f"{item.name} {item.labels} {digests[item.image]}\n".encode())
        digest.update(b"--\n")
    return digest.hexdigest()


def _checked(paths: Sequence[Path], home: Path) -> dict[Path, tuple[str, str]]:
    """Content digest and, if the image cannot be decoded, the reason, for each path."""
    cache_file = (
        home / "index" / f"{hashlib.sha256(os.fspath(paths[0].parent.resolve()).encode()).hexdigest()[:16]}.json"
    )
    try:
        cache: dict[str, list[Any]] = json.loads(cache_file.read_text())
    except (OSError, ValueError):
        cache = {}
    found: dict[Path, tuple[str, str]] = {}
    fresh: dict[Path, str] = {}
    for path in paths:
        try:
            stat = path.stat()
        except OSError as error:
            found[path] = ("", error.strerror or "cannot be read")
            continue
        key = f"{path.name} {stat.st_size} {stat.st_mtime_ns}"
        if key in cache:
            found[path] = (cache[key][0], cache[key][1])
        else:
            fresh[path] = key
    if fresh:
        with ThreadPoolExecutor() as pool:
            for path, result in zip(fresh, pool.map(_check, fresh), strict=True):
                found[path] = result
                cache[fresh[path]] = list(result)
        cache_file.parent.mkdir(parents=True, exist_ok=True)
        partial = cache_file.with_suffix(f".{os.getpid()}.part")
        partial.write_text(json.dumps(cache))
        partial.replace(cache_file)
    return {path: found[path] for path in paths}


def _check(path: Path) -> tuple[str, str]:
    try:
        content = path.read_bytes()
        with Image.open(path) as image:
            image.draft(
                "RGB", (image.width // 8, image.height // 8)
            )  # JPEG: decodes all of it, at an eighth of the size
            image.load()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        return "", f"cannot be read as an image: {str(error).replace(str(path), path.name)}"
    return hashlib.sha256(content).hexdigest()[:32], ""
