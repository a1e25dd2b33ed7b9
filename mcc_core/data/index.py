"""The checked list of images, labels and masks of a dataset, and the guard between training and masks."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import track

from mcc_core.config import DataConfig
from mcc_core.data import shapes
from mcc_core.data.index_file import INDEX, read_index
from mcc_core.data.mask_checks import compared_masks, labelled_mask, mask_content
from mcc_core.data.pixels import READING, examined, simplification_notes
from mcc_core.data.voc import VOC_CLASSES, read_class_file, read_labels, read_split, valid_classes
from mcc_core.errors import DataError
from mcc_core.files import file_digest, file_stamp, whole
from mcc_core.parallel import each

if TYPE_CHECKING:
    from mcc_core.data.label_maps import LabelSet

_PROGRESS_FROM = 2000  # files to check before a progress bar is worth its line


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
    fingerprint: str  # of names, labels, image contents and val masks; the folder does not matter
    notes: tuple[str, ...] = ()  # about masks and labels that do not agree, and what is not read of images
    labels: LabelSet | None = None  # maps of the train items, for methods that learn from some

    @property
    def has_masks(self) -> bool:
        """Whether segmentation can be scored on val."""
        return any(item.name in self.masks for item in self.val)


def build_index(config: DataConfig, home: Path, *, blind: bool = False) -> DataIndex:
    """Check a dataset and list it; shapes are generated first where they are not there yet.

    Every image, and every mask of the val split, is decoded once; the result is remembered in `home/index` by path,
    size, times and number on the disk. Images without any label are kept. Raises DataError for what is missing,
    broken, or in both splits; with `on_corrupt: skip` a missing or broken image (of either split) is left out instead.
    Of val all or none have a mask. A `blind` val split, such as VOC's test, may lack some, and annotations; images
    without an annotation get no labels.
    """
    root = shapes.ensure(config, home) if config.name == "shapes" else config.root
    if root is None:
        raise DataError(
            "data.root: not set: --set data.root=FOLDER, one that mcc data prepare wrote or one in VOC layout"
        )
    if not root.is_dir():
        raise DataError(f"data.root: {root}: no such folder")
    if (root / INDEX).is_file():
        return _prepared(config, root, home, blind=blind)
    classes = _classes(config)
    train_names, val_names = read_split(root, config.train_split), read_split(root, config.val_split)
    _check_disjoint(root, config, train_names, val_names)
    paths = {name: root / "JPEGImages" / f"{name}.jpg" for name in train_names + val_names}
    images = _checked(list(paths.values()), home, "image", examined)
    broken = tuple(checked.problem for checked in images.values() if checked.problem)
    if broken and config.on_corrupt == "stop":
        more = f" (and {len(broken) - 1} more images)" if len(broken) > 1 else ""
        raise DataError(f"{broken[0]}{more}; --set data.on_corrupt=skip leaves such images out")

    def items(names: Sequence[str]) -> tuple[Item, ...]:
        kept = [name for name in names if not images[paths[name]].problem]
        return tuple(Item(name, paths[name], labels(name)) for name in kept)

    def labels(name: str) -> tuple[int, ...]:
        if blind and name in hidden and not (root / "Annotations" / f"{name}.xml").is_file():
            return ()
        return read_labels(root, name, classes)

    hidden = set(val_names)
    train, val = items(train_names), items(val_names)
    if not train or not val:
        raise DataError(f"{root}: no readable image is left in {config.train_split if not train else config.val_split}")
    if not any(item.labels for item in train):
        raise DataError(f"{root / 'Annotations'}: no image of {config.train_split} has an object: nothing to learn")
    masks = {i.name: root / "SegmentationClass" / f"{i.name}.png" for i in (*train, *val)}
    masks = {name: path for name, path in masks.items() if path.is_file()}
    if missing := _unscored(val, masks, blind=blind):
        file = root / "SegmentationClass" / f"{missing}.png"
        raise DataError(f"{file}: no such mask; others of {config.val_split} have one")
    truth = _checked(
        [masks[item.name] for item in val if item.name in masks],
        home,
        f"mask {len(classes)}",
        partial(mask_content, num_classes=len(classes)),
    )
    for checked in truth.values():
        if checked.problem:
            raise DataError(checked.problem)
    digests = {path: checked.digest for path, checked in (images | truth).items()}
    _check_content(train, val, digests)
    scored = [labelled_mask(masks[i.name], i.labels, truth[masks[i.name]].detail) for i in val if i.name in masks]
    notes = compared_masks(scored, classes, str(root), own=True)
    notes += simplification_notes({i.image.name: images[i.image].detail.split() for i in (*train, *val)})
    fingerprint = _fingerprint(classes, train, val, masks, digests)
    return DataIndex(classes, train, val, masks, broken, fingerprint, tuple(notes))


def _prepared(config: DataConfig, root: Path, home: Path, *, blind: bool) -> DataIndex:
    """A dataset by the index that `mcc data prepare` wrote: of its files, only those touched since are read again."""
    file = read_index(root)
    for split in (config.train_split, config.val_split):
        if split not in file.splits:
            there = ", ".join(file.splits)
            raise DataError(f"{root / INDEX}: has no split {split!r}: data.train_split, data.val_split: one of {there}")
    if config.classes is not None and _classes(config) != file.classes:
        raise DataError(f"data.classes: not the classes of {root / INDEX}; leave it out")
    names = {split: file.splits[split] for split in (config.train_split, config.val_split)}
    _check_disjoint(root, config, names[config.train_split], names[config.val_split])
    expected: dict[Path, str] = {}
    for name in (*names[config.train_split], *names[config.val_split]):
        path = root / file.images[name].image
        try:
            size = path.stat().st_size
        except OSError as error:
            raise DataError(f"{path}: {error.strerror or error}; mcc data check {root} names all such files") from None
        if size != file.images[name].bytes:
            raise DataError(f"{path}: has changed since the index was made; mcc data prepare again")
        expected[path] = file.images[name].digest
    train, val = (
        tuple(Item(name, root / file.images[name].image, file.images[name].labels) for name in names[split])
        for split in (config.train_split, config.val_split)
    )
    masks = {i.name: root / mask for i in (*train, *val) if (mask := file.images[i.name].mask) is not None}
    if missing := _unscored(val, masks, blind=blind):
        raise DataError(f"{root / INDEX}: {missing} has no mask; others of {config.val_split} have one")
    if not any(item.labels for item in train):
        raise DataError(f"{root / INDEX}: no image of {config.train_split} has a class: nothing to learn")
    _check_content(train, val, expected)
    digests = expected | {masks[i.name]: file.images[i.name].mask_digest for i in (*train, *val) if i.name in masks}
    _check_touched(root / INDEX, digests, home)
    return DataIndex(file.classes, train, val, masks, (), _fingerprint(file.classes, train, val, masks, digests))


def _check_touched(index: Path, digests: Mapping[Path, str], home: Path) -> None:
    """Raise DataError where a file that was touched after the index was written has another content."""
    since = index.stat().st_mtime_ns
    touched: dict[Path, list[Path]] = defaultdict(list)
    for path in digests:
        try:
            stat = path.stat()
        except OSError as error:
            raise DataError(f"{path}: {error.strerror or error}; mcc data check names all such files") from None
        if max(stat.st_mtime_ns, stat.st_ctime_ns) >= since:
            touched[path.parent].append(path)
    for paths in touched.values():
        for path, checked in _checked(paths, home, "content", os.fspath).items():
            if checked.problem or checked.digest != digests[path]:
                raise DataError(f"{path}: its content has changed since the index was made; mcc data prepare again")


def _unscored(val: Sequence[Item], masks: Mapping[str, Path], *, blind: bool) -> str | None:
    """The first val item without a mask where others have one."""
    without = [item.name for item in val if item.name not in masks]
    return without[0] if without and len(without) < len(val) and not blind else None


def _check_content(train: Sequence[Item], val: Sequence[Item], digests: Mapping[Path, str]) -> None:
    """Raise DataError where a training image is an evaluation image under another name."""
    known = {digests[item.image]: item.image for item in train}
    for item in val:
        if (same := known.get(digests[item.image])) is not None:
            raise DataError(
                f"{item.image}: the same picture as {same}, which is trained on: evaluation images must not be"
            )


def supervision_certificate(index: DataIndex) -> dict[str, Any]:
    """Facts about what training can see, computed from the index: recorded with each trial."""
    train, val = {i.name for i in index.train}, {i.name for i in index.val}
    files, masks = {i.image for i in index.train}, set(index.masks.values())
    full = index.labels is not None and index.labels.supervision == "full"
    facts: dict[str, Any] = {
        "training_images": len(train),
        "validation_images": len(val),
        "images_in_both": len(train & val),
        "training_reads_masks": full or bool(files & masks),  # the only files that an Item leads to
        "skipped_images": list(index.skipped),
        "data_fingerprint": index.fingerprint,
    }
    if index.labels is not None:
        facts["label_maps"] = {
            "identity": index.labels.identity,
            "content": index.labels.file.content,
            "supervision": index.labels.supervision,
            "origin": dict(index.labels.origin),
        }
    return facts


def _classes(config: DataConfig) -> tuple[str, ...]:
    if config.classes is None:
        return shapes.CLASSES if config.name == "shapes" else VOC_CLASSES
    if isinstance(config.classes, tuple):
        return valid_classes(config.classes, ", ".join(config.classes))
    return read_class_file(config.classes)


def _check_disjoint(root: Path, config: DataConfig, train: Sequence[str], val: Sequence[str]) -> None:
    both = sorted(set(train) & set(val))
    if both:
        more = f" and {len(both) - 1} more ids are" if len(both) > 1 else " is"
        raise DataError(
            f"{root}: {both[0]!r}{more} in both {config.train_split} and {config.val_split}: "
            "evaluation images must not be trained on"
        )


def _fingerprint(
    classes: Sequence[str],
    train: Iterable[Item],
    val: Iterable[Item],
    masks: Mapping[str, Path],
    digests: Mapping[Path, str],
) -> str:
    digest = hashlib.sha256(json.dumps(list(classes)).encode())
    for item in train:
        digest.update(f"{item.name} {item.labels} {digests[item.image]}\n".encode())
    digest.update(b"--\n")
    for item in val:
        mask = digests[masks[item.name]] if item.name in masks else "none"
        digest.update(f"{item.name} {item.labels} {digests[item.image]} {mask}\n".encode())
    return digest.hexdigest()


@dataclass(frozen=True)
class _Found:
    digest: str  # of the content
    problem: str  # one line naming the file, or nothing
    detail: str = ""  # what the check says of the content, where it says something


def _checked(paths: Sequence[Path], home: Path, kind: str, check: Callable[[Path], object]) -> dict[Path, _Found]:
    """What `check`, which raises DataError, finds in each file of one folder; remembered per folder and `kind`."""
    if not paths:
        return {}
    folder = os.fspath(paths[0].parent.resolve())
    cache_file = home / "index" / f"{hashlib.sha256(f'{READING} {kind}:{folder}'.encode()).hexdigest()[:16]}.json"
    cache = _remembered(cache_file)
    results: dict[Path, _Found] = {}
    fresh: dict[Path, str] = {}
    for path in paths:
        try:
            key = file_stamp(path)
        except OSError as error:
            results[path] = _Found("", f"{path}: {error.strerror or error}")
            continue
        if key in cache:
            digest, reason, detail = cache[key]
            results[path] = _Found(digest, f"{path}: {reason}" if reason else "", detail)
        else:
            fresh[path] = key
    if fresh:
        for path, result in zip(fresh, _examine(list(fresh), kind, check), strict=True):
            results[path] = result
            cache[fresh[path]] = [result.digest, result.problem.removeprefix(f"{path}: "), result.detail]
        with suppress(OSError), whole(cache_file) as partly:  # without it the next index takes longer, nothing else
            partly.write_text(json.dumps(cache))
    return {path: results[path] for path in paths}


def _remembered(cache_file: Path) -> dict[str, list[str]]:
    try:
        cache = json.loads(cache_file.read_text())
        return {str(key): [str(part) for part in (first, two, three)] for key, (first, two, three) in cache.items()}
    except (OSError, ValueError, AttributeError, TypeError):  # not there yet, or not what was written
        return {}


def _examine(paths: Sequence[Path], kind: str, check: Callable[[Path], object]) -> Iterable[_Found]:
    quiet = len(paths) < _PROGRESS_FROM or not sys.stderr.isatty()
    yield from track(
        each(partial(_examined, check), paths),
        f"checking {kind.split()[0]}s",
        total=len(paths),
        console=Console(stderr=True),
        transient=True,
        disable=quiet,
    )


def _examined(check: Callable[[Path], object], path: Path) -> _Found:
    try:
        said = check(path)
        return _Found(file_digest(path)[:32], "", said if isinstance(said, str) else "")
    except OSError as error:
        return _Found("", f"{path}: {error.strerror or error}")
    except DataError as error:
        return _Found("", str(error))
