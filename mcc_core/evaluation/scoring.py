"""Scores of a network on a list of images by any protocols: one pass of the network, the rest in other processes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mcc_core.config import EvaluationConfig, Experiment
from mcc_core.data.index import Item
from mcc_core.data.pixels import read_mask, read_rgb
from mcc_core.data.voc import palette_png
from mcc_core.errors import UsageError
from mcc_core.evaluation.metrics import ConfusionMatrix, Metric, require_foreground
from mcc_core.evaluation.protocols import (
    PROTOCOLS,
    Maps,
    ProtocolName,
    label_map,
    needs_crf,
    network_config,
    network_maps,
    supported,
)
from mcc_core.methods.registry import method_of
from mcc_core.networks.base import Network
from mcc_core.parallel import ahead, behind, worker_pool
from mcc_core.precision import arithmetic
from mcc_core.pseudo_labels.crf import require_crf
from mcc_core.pseudo_labels.labels import IGNORE
from mcc_core.validation import validate

Counts = list[tuple[int, int, int]]  # truth, prediction (IGNORE: left open), pixels; only what occurs


@dataclass
class Total:
    """Pixels of many images."""

    matrix: ConfusionMatrix
    open: int = 0  # where the label map decides nothing, which only pseudo-labels do


@dataclass(frozen=True)
class Setting:
    """A protocol with its parameters, under a name of its own."""

    name: str
    protocol: ProtocolName
    config: EvaluationConfig


def protocol_settings(
    experiment: Experiment, num_classes: int, protocols: Sequence[ProtocolName], changes: Mapping[str, Any], source: str
) -> tuple[Setting, ...]:
    """The published parameters of each protocol with `changes` (nested) put in. Raises UsageError."""
    method = method_of(experiment)
    possible = supported(method.map_stages)
    if wrong := [name for name in protocols if name not in possible]:
        raise UsageError(f"{wrong[0]}: {method.title} has no such class map; its protocols are {', '.join(possible)}")
    config = method.evaluation(experiment, num_classes).model_dump()
    for name, value in changes.items():
        config[name] = config[name] | value if isinstance(value, Mapping) and name in config else value
    checked = validate(EvaluationConfig, config, source)
    return tuple(Setting(name, name, checked) for name in protocols)


@dataclass(frozen=True)
class ImageScore:
    """One image's pixel counts per setting, and its label maps as palette PNGs where they were asked for."""

    image: str
    counts: dict[str, Counts]
    masks: dict[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True)
class Task:
    """What is to be done with an image once the network has seen it."""

    item: Item
    mask: Path | None
    settings: tuple[Setting, ...]
    num_classes: int
    keep_masks: bool
    maps: Maps


class Scorer:
    """Scores images by settings, in order, whatever the number of processes.

    The network sees one image at a time at its protocol's size, so that no image's result depends on another's.
    Label maps, CRF and counting run in `processes` other processes, at most two images per process ahead; with 0 in
    this one. Use as a context manager.

    Raises UsageError at once when a setting needs a CRF and pydensecrf is not installed; DataError for an image or
    mask that cannot be read.
    """

    def __init__(
        self,
        model: Network,
        settings: Sequence[Setting],
        masks: Mapping[str, Path],
        device: torch.device,
        processes: int = 0,
        keep_masks: bool = False,
    ) -> None:
        if any(needs_crf(setting.protocol) for setting in settings):
            require_crf()
        self.model, self.settings, self.masks = model.eval(), tuple(settings), masks
        self.device, self.processes, self.keep_masks = device, processes, keep_masks
        self.config = network_config([setting.config for setting in settings])
        if self.config.crop < model.stride:
            raise UsageError(f"evaluation.crop: {self.config.crop}: below the network's patch of {model.stride}")
        self.protocols = tuple(dict.fromkeys(setting.protocol for setting in settings))
        self._pool: ProcessPoolExecutor | None = None
        self._open = ExitStack()

    def __enter__(self) -> Scorer:
        self._pool = self._open.enter_context(worker_pool(self.processes))
        return self

    def __exit__(self, *unused: object) -> None:
        self._open.close()

    def scores(
        self,
        items: Iterable[Item],
        maps_of: Callable[[Item, np.ndarray | None], Maps] | None = None,
        reads: Callable[[Item], bool] = lambda item: True,
    ) -> Iterator[ImageScore]:
        """A score for each image; images are read ahead while the network works.

        Args:
            maps_of: stands in for the network, as with cached maps; gets the image H,W,3 uint8 too.
            reads: whether an image is worth reading ahead.
        """
        read = ahead(lambda item: (item, read_rgb(item.image) if reads(item) else None), items)
        tasks = (
            Task(
                item,
                self.masks.get(item.name),
                self.settings,
                self.model.num_classes,
                self.keep_masks,
                (maps_of or self.maps)(item, image),
            )
            for item, image in read
        )
        yield from behind(score_image, tasks, self._pool, 2 * self.processes)

    def maps(self, item: Item, image: np.ndarray | None = None) -> Maps:
        """One image H,W,3 uint8 through the network; it is read where it is not given."""
        pixels = read_rgb(item.image) if image is None else image
        with arithmetic(self.model.precision, self.model.deterministic):
            return network_maps(self.model, pixels, item.labels, self.protocols, self.config, self.device)


def score_image(task: Task) -> ImageScore:
    """Label maps of an image by all settings, counted against its mask if it has one."""
    image = read_rgb(task.item.image)
    truth = None if task.mask is None else read_mask(task.mask, task.num_classes)
    counts, masks = {}, {}
    for setting in task.settings:
        label = label_map(task.maps, setting.protocol, setting.config, image)
        if truth is not None:
            counts[setting.name] = counted(label, truth, task.num_classes + 1)
        if task.keep_masks:
            masks[setting.name] = palette_png(label)
    return ImageScore(task.item.name, counts, masks)


def totals(scores: Iterable[Mapping[str, Counts]], num_labels: int) -> dict[str, Total]:
    """Sums of pixel counts per setting; exact, so that order and sharding do not matter."""
    sums: dict[str, Total] = {}
    for counts in scores:
        for name, entries in counts.items():
            total = sums.setdefault(name, Total(ConfusionMatrix(num_labels)))
            for truth, guess, pixels in entries:
                if guess == IGNORE:
                    total.open += pixels
                else:
                    total.matrix.counts[truth, guess] += pixels
    return sums


def metrics(total: Total, split: str, protocol: ProtocolName, classes: Sequence[str]) -> list[Metric]:
    """mIoU, pixel accuracy and IoU of every class that occurs, on the pixels that the label maps decide.

    Of `refined`, which leaves some open, also the share decided (`coverage`).
    """
    stage, how = PROTOCOLS[protocol]
    matrix = total.matrix
    if not total.open:  # else the foreground may be what is left open
        require_foreground(matrix, split)
    values = [
        Metric(split, stage, how, "miou", matrix.miou()),
        Metric(split, stage, how, "pixel_accuracy", matrix.pixel_accuracy()),
    ]
    if protocol == "refined":
        decided = int(matrix.counts.sum())
        values.append(Metric(split, stage, how, "coverage", decided / max(1, decided + total.open)))
    names = ("background", *classes)
    per_class = zip(names, matrix.iou().tolist(), strict=True)
    return values + [Metric(split, stage, how, f"iou/{name}", value) for name, value in per_class if value == value]


def counted(label: np.ndarray, truth: np.ndarray, num_labels: int) -> Counts:
    """Pixel counts of a label map against a mask, both H,W uint8; pixels of the mask that are 255 do not count."""
    matrix = ConfusionMatrix(num_labels)
    decided = label != IGNORE
    matrix.update(torch.from_numpy(label[decided]), torch.from_numpy(truth[decided]))
    counts = [(int(t), int(p), int(matrix.counts[t, p])) for t, p in matrix.counts.nonzero().tolist()]
    kinds, pixels = np.unique(truth[~decided & (truth != IGNORE)], return_counts=True)
    return counts + [(int(kind), IGNORE, int(number)) for kind, number in zip(kinds, pixels, strict=True)]
