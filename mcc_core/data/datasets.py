"""Training samples, evaluation samples, and which samples each iteration of each rank sees."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler
from torchvision.transforms.v2 import functional as TF

from mcc_core.data.colours import View, normalise
from mcc_core.data.index import Item
from mcc_core.data.label_maps import LabelSet
from mcc_core.data.pixels import read_mask, read_rgb
from mcc_core.errors import DataError

Augmentation = Callable[..., Mapping[str, Tensor | View]]
Draw = tuple[int, int]  # (number of the pass over the data, index)


class TrainingSet(Dataset[dict[str, Any]]):
    """Augmented views of images with image-level labels, and with label maps where there is a set. Has no way to a
    mask.

    A sample is a function of (seed, draw, index): the number of loader processes does not matter. Raises DataError
    naming an image that has become unreadable since the index was made.

    Args:
        labels: label maps of the items, which the augmentation gets with the image.
        finish: do the views' colours here; else a batch's are left to `finish_batch`.
    """

    def __init__(
        self,
        items: Sequence[Item],
        num_classes: int,
        augment: Augmentation,
        seed: int,
        *,
        labels: LabelSet | None = None,
        finish: bool = True,
    ) -> None:
        self.items, self.num_classes, self.augment, self.seed = items, num_classes, augment, seed
        self.finish, self.labels = finish, labels

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, key: Draw) -> dict[str, Any]:
        """The augmentation's views and `box`; `labels`: C; `name`."""
        draw, index = key
        item = self.items[index]
        generator = torch.Generator().manual_seed(_seed(self.seed, draw, index))
        views: dict[str, Tensor] = {}
        maps = {} if self.labels is None else label_maps(self.labels, item.name)
        for name, view in self.augment(_tensor(read_rgb(item.image)), generator, **maps).items():
            if not isinstance(view, View):
                views[name] = view
            elif self.finish:
                views[name] = view.finished()
            else:
                views |= view.unfinished(name)
        labels = torch.zeros(self.num_classes)
        labels[list(item.labels)] = 1
        return views | {"labels": labels, "name": item.name}


def label_maps(labels: LabelSet, name: str) -> dict[str, Tensor]:
    """`label` H,W uint8 of an image and, where any image of the set has one, `confidence` H,W uint8, 255 for 1.0."""
    label = torch.from_numpy(labels.label(name))
    if not labels.has_confidence:
        return {"label": label}
    sure = labels.confidence(name)
    whole = torch.full_like(label, 255)
    return {"label": label, "confidence": whole if sure is None else torch.from_numpy(sure).mul(255).round().byte()}


class EvaluationSet(Dataset[dict[str, Any]]):
    """Images squashed to one size, with the masks that there are at their own size."""

    def __init__(self, items: Sequence[Item], masks: Mapping[str, Path], num_classes: int, size: int) -> None:
        self.items, self.masks, self.num_classes, self.size = items, masks, num_classes, size

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """`image`: 3,S,S; `labels`: C; `mask`: H,W uint8, 255 = ignore, or None; `name`."""
        item = self.items[index]
        image = normalise(TF.resize(_tensor(read_rgb(item.image)), [self.size, self.size], antialias=False))
        labels = torch.zeros(self.num_classes)
        labels[list(item.labels)] = 1
        path = self.masks.get(item.name)
        mask = None if path is None else torch.from_numpy(read_mask(path, self.num_classes))
        return {"image": image, "labels": labels, "mask": mask, "name": item.name}


class TrainingBatches(Sampler[list[Draw]]):
    """The samples of iterations `start` to `end` of one rank, a function of (seed, iteration) alone.

    Each pass over the data is a new permutation; what does not fill a global batch at its end is left out. Ranks take
    turns within a global batch.
    """

    def __init__(
        self, size: int, batch_size: int, seed: int, *, start: int, end: int, rank: int = 0, world_size: int = 1
    ) -> None:
        self.batch_size, self.seed, self.start, self.end = batch_size, seed, start, end
        self.rank, self.world_size, self.size = rank, world_size, size
        self.per_pass = size // (batch_size * world_size)
        if not self.per_pass:
            raise DataError(f"{size} training images do not fill one batch of {batch_size} x {world_size} workers")

    def __len__(self) -> int:
        return self.end - self.start

    def __iter__(self) -> Iterator[list[Draw]]:
        draw, order = -1, torch.empty(0)
        for iteration in range(self.start, self.end):
            if iteration // self.per_pass != draw:
                draw = iteration // self.per_pass
                generator = torch.Generator().manual_seed(_seed(self.seed, draw, -1))
                order = torch.randperm(self.size, generator=generator)
            first = (iteration % self.per_pass) * self.batch_size * self.world_size
            chosen = order[first + self.rank : first + self.batch_size * self.world_size : self.world_size]
            yield [(draw, int(index)) for index in chosen]


class Turns(Sampler[list[Draw]]):
    """Batches of several samplers, one of each by turns."""

    def __init__(self, samplers: Sequence[TrainingBatches]) -> None:
        self.samplers = samplers

    def __len__(self) -> int:
        return sum(map(len, self.samplers))

    def __iter__(self) -> Iterator[list[Draw]]:
        for batches in zip(*self.samplers, strict=True):
            yield from batches


def _tensor(image: np.ndarray) -> Tensor:
    """H,W,3 to 3,H,W."""
    return torch.from_numpy(image).permute(2, 0, 1)


def _seed(seed: int, draw: int, index: int) -> int:
    return ((seed * 1_000_003 + draw) * 1_000_033 + index + 1) * 0x9E3779B97F4A7C15 % (1 << 63)
