"""Label sets of seeds: every image refined, decided, scored where it has a mask, and written."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from mcc_core.data.index import DataIndex, Item
from mcc_core.data.label_maps import LabelSet, LabelSetWriter
from mcc_core.data.pixels import read_mask, read_rgb
from mcc_core.errors import DataError, UsageError
from mcc_core.evaluation.metrics import Metric
from mcc_core.evaluation.protocols import ProtocolName
from mcc_core.evaluation.scoring import Counts, counted, metrics, totals
from mcc_core.parallel import ahead, behind, worker_pool
from mcc_core.refinement.base import Picture, Refinement, refined
from mcc_core.refinement.kinds import STEPS
from mcc_core.refinement.progress import Done, Progress
from mcc_core.refinement.seeds import Seeds

Split = Literal["train", "val"]
_PLAIN = {"foreground": None, "confidence": 0.0, "kind": ("none",)}  # of seeds that are scored as they are


@dataclass(frozen=True)
class Refined:
    """A label set that was made, and how it and its seeds agree with the masks that there are."""

    labels: LabelSet
    seeds: dict[Split, list[Metric]] = field(default_factory=dict)  # of the splits with masks
    refined: dict[Split, list[Metric]] = field(default_factory=dict)
    scored: dict[Split, int] = field(default_factory=dict)  # images
    broken: tuple[str, ...] = ()  # a line for each image or mask that could not be read; such images have no map
    left_out: tuple[str, ...] = ()  # by the index


def refine(
    seeds: Seeds,
    refinement: Refinement,
    index: DataIndex,
    out: Path,
    *,
    splits: Sequence[Split] = ("train",),
    identity: str | None = None,
    limit: int | None = None,
    processes: int = 0,
    on_image: Callable[[int, int], None] = lambda done, total: None,
    goes_on: bool = False,
) -> Refined:
    """Make a label set, image by image; the masks of the index are for the scores alone.

    The same seeds, parameters and images give the same files, whatever the number of processes, and however often it
    was cut off and went on.

    Args:
        out: folder of the label set.
        splits: whose images get a map.
        identity: of the label set, where it is known before; default: by its content.
        limit: of each split, the first so many images.
        processes: for steps, counting and pictures; 0: this one.
        on_image: told how many images are done, of how many; with `goes_on` first of how many were done before.
        goes_on: keep in `out` what is made when the run ends early, and go on with what one of the same identity,
            seeds, parameters and images left there: maps whose digests are right are not made again.

    Raises UsageError where the classes are others than the index's; DataError where no image can be read.
    """
    if tuple(index.classes) != tuple(seeds.classes):
        raise UsageError(
            f"the seeds have {len(seeds.classes)} classes ({', '.join(seeds.classes[:3])}, ...), "
            f"the data has {len(index.classes)} ({', '.join(index.classes[:3])}, ...)"
        )
    split_of: dict[str, Split] = {item.name: split for split in splits for item in _items(index, split)[:limit]}
    items = [item for split in splits for item in _items(index, split)[:limit]]
    origin = {**seeds.origin, "refine": refinement.decisive(), "data": index.fingerprint, "splits": list(splits)}
    told: dict[str, tuple[str, ...]] = {}  # what is wrong, by image
    done: dict[str, Done] = {}
    kind = seeds.supervision
    progress = None
    if goes_on:
        progress = Progress(out, {"identity": identity, "supervision": kind, "origin": origin, "limit": limit})
    with (
        LabelSetWriter(
            out, seeds.classes, identity=identity, supervision=kind, origin=origin, goes_on=goes_on
        ) as writer,
        worker_pool(processes) as pool,
    ):
        if progress is not None:
            left = {name: entry for name, entry in progress.done.items() if name in split_of}
            whole = writer.adopt({name: entry.file for name, entry in left.items()})
            done = {name: entry for name, entry in left.items() if name in whole}
            on_image(len(done), len(items))
        to_do = [item for item in items if item.name not in done]
        tasks = (_task(made, index, refinement) for made in _pictures(seeds, to_do))
        for number, found in enumerate(behind(_made, tasks, pool, 2 * processes), start=len(done) + 1):
            told[found.name] = found.broken
            if found.label is not None:
                file = writer.add(found.name, found.label, found.sure)
                done[found.name] = Done(file, found.counts, found.broken)
                if progress is not None:
                    progress.add(found.name, done[found.name])
            on_image(number, len(items))
        told |= {name: entry.broken for name, entry in done.items()}
        broken = [line for item in items for line in told[item.name]]
        if not done:
            raise DataError("\n".join([*broken[:20], f"none of {len(items)} images can be refined"]))
        made = writer.close()
    counts: dict[Split, list[Mapping[str, Counts]]] = {split: [] for split in splits}
    for name, entry in done.items():
        if entry.counts:
            counts[split_of[name]].append(entry.counts)
    names: dict[str, ProtocolName] = {"seeds": seeds.protocol, "refined": "refined"}
    scores: dict[str, dict[Split, list[Metric]]] = {name: {} for name in names}
    for split, each in counts.items():
        for name, total in totals(each, len(index.classes) + 1).items():
            scores[name][split] = metrics(total, split, names[name], index.classes)
    scored = {split: len(each) for split, each in counts.items() if each}
    return Refined(made, scores["seeds"], scores["refined"], scored, tuple(broken), index.skipped)


def score_labels(
    labels: LabelSet, index: DataIndex, splits: Sequence[Split] = ("train", "val")
) -> dict[Split, list[Metric]]:
    """mIoU, pixel accuracy, coverage and IoU per class of a label set on the images with a mask, by split.

    Splits of which no image has a map and a mask are left out. Raises DataError for a mask that cannot be read.
    """
    found: dict[Split, list[Metric]] = {}
    mapped = set(labels.names)
    for split in splits:
        each = []
        for item in _items(index, split):
            if item.name in index.masks and item.name in mapped:
                truth = read_mask(index.masks[item.name], len(index.classes))
                each.append({"refined": counted(labels.label(item.name), truth, len(index.classes) + 1)})
        for total in totals(each, len(index.classes) + 1).values():
            found[split] = metrics(total, split, "refined", index.classes)
    return found


@dataclass(frozen=True)
class _Task:
    name: str
    picture: Picture | str  # or what is wrong with the image
    refinement: Refinement
    mask: Path | None
    num_classes: int


@dataclass(frozen=True)
class _Found:
    name: str
    label: np.ndarray | None = None
    sure: np.ndarray | None = None
    counts: dict[str, Counts] = field(default_factory=dict)
    broken: tuple[str, ...] = ()


def _items(index: DataIndex, split: Split) -> Sequence[Item]:
    return index.train if split == "train" else index.val


def _pictures(seeds: Seeds, items: Sequence[Item]) -> Iterator[tuple[Item, Picture | str]]:
    """Each item with what is known of it, or with what is wrong with its image; images are read ahead."""
    for item, image in ahead(_read, items):
        if isinstance(image, str):
            yield item, image
            continue
        try:
            yield item, seeds.picture(item, image)
        except DataError as error:
            yield item, str(error)


def _read(item: Item) -> tuple[Item, np.ndarray | str]:
    try:
        return item, read_rgb(item.image)
    except DataError as error:
        return item, str(error)


def _task(made: tuple[Item, Picture | str], index: DataIndex, refinement: Refinement) -> _Task:
    item, picture = made
    return _Task(item.name, picture, refinement, index.masks.get(item.name), len(index.classes))


def _made(task: _Task) -> _Found:
    """A label map, counted against the mask where there is one."""
    picture = task.picture
    if isinstance(picture, str):
        return _Found(task.name, broken=(picture,))
    label, sure = refined(picture, task.refinement, STEPS)
    kept = sure if task.refinement.keep_confidence else None
    if task.mask is None:
        return _Found(task.name, label, kept)
    try:
        truth = read_mask(task.mask, task.num_classes)
        if truth.shape != label.shape:
            raise DataError(f"{task.mask}: {truth.shape[1]}x{truth.shape[0]} pixels, its image has {_wide(label)}")
    except DataError as error:
        return _Found(task.name, label, kept, broken=(str(error),))
    plain, _ = refined(picture, task.refinement.model_copy(update=_PLAIN), {})
    several = {"seeds": plain, "refined": label}
    counts: dict[str, Any] = {name: counted(one, truth, task.num_classes + 1) for name, one in several.items()}
    return _Found(task.name, label, kept, counts)


def _wide(label: np.ndarray) -> str:
    return f"{label.shape[1]}x{label.shape[0]}"
