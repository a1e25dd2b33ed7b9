"""From the section `labels` of an experiment to a dataset whose training images have label maps, and the leak guard.

A label set made of a dataset's masks is refused unless the experiment says so (`labels.supervision: full`), and so is
one that says of itself that it is weak while its maps are the masks.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np

from mcc_core.config import LabelsConfig
from mcc_core.data.index import DataIndex
from mcc_core.data.label_maps import LABELS, LabelSet, read_label_set
from mcc_core.data.pixels import read_mask
from mcc_core.errors import UsageError

_KEY = re.compile(r"labels/([0-9a-f]{16})")
_COMPARED = 32  # masks that maps are compared with
_FEWEST = 4  # maps that are masks, before one says that they are copies
_MOST = 0.5  # share of the compared


def stored_identity(source: Path) -> str | None:
    """The identity in a storage key `labels/<identity>`; None for a path, which a label set at that place is too."""
    match = _KEY.fullmatch(source.as_posix())
    return match[1] if match and not (source / LABELS).is_file() else None


def stored_key(identity: str) -> Path:
    """What `labels.source` is for a set in storage."""
    return Path("labels") / identity


def local_zip(identity: str, home: Path) -> Path:
    """Where a set of storage lies on this machine, once it was fetched."""
    return home / "label-sets" / f"{identity}.zip"


def labels_identity(config: LabelsConfig) -> str:
    """Identity of a label set, which need not be there yet where its key says it. Raises UsageError."""
    source = _source(config)
    return stored_identity(source) or read_label_set(source).identity


def read_labels(config: LabelsConfig, home: Path) -> LabelSet:
    """The label set of an experiment: at a path, or, of a key, as it was fetched below `home`. Raises UsageError."""
    source = _source(config)
    identity = stored_identity(source)
    if identity is None:
        return read_label_set(source)
    file = local_zip(identity, home)
    if not file.is_file():
        raise UsageError(f"labels.source: {source}: no such folder, and no label set of storage is at {file}")
    return read_label_set(file)


def with_labels(index: DataIndex, config: LabelsConfig | None, home: Path) -> DataIndex:
    """The dataset with the label set of an experiment: training images without a map are left out, and a note says so.

    Raises UsageError for what no set may be: missing, damaged, of other classes or sizes, of another supervision than
    the experiment says, or weak with the dataset's masks as maps. `config` None gives the dataset as it is.
    """
    if config is None:
        return index
    labels = read_labels(config, home)
    check_supervision(labels, config, index)
    items = labels.check(index.train, index.classes)
    notes = index.notes
    if left := len(index.train) - len(items):
        first = next(item.name for item in index.train if item.name not in labels.file.maps)
        notes = (*notes, f"{left} of {len(index.train)} training images have no label map and are left out: {first} …")
    return replace(index, train=items, labels=labels, notes=notes)


def check_supervision(labels: LabelSet, config: LabelsConfig, index: DataIndex) -> None:
    """Raise UsageError unless an experiment may train on a label set."""
    if labels.supervision != config.supervision:
        if labels.supervision == "full":
            raise UsageError(
                f"labels.source: {labels.path}: made of masks that people drew; --set labels.supervision=full allows "
                "it, and every table then says so"
            )
        raise UsageError(f"labels.supervision: full: {labels.path} was not made of masks; leave it out")
    refuse_copies(labels, index, "labels.source: ")


def refuse_copies(labels: LabelSet, index: DataIndex, named: str = "") -> None:
    """Raise UsageError, beginning with `named`, for a set that says weak while its maps are the dataset's masks."""
    if labels.supervision == "weak" and (copied := _copies(labels, index)):
        raise UsageError(
            f"{named}{labels.path}: says weak, but {copied} of its maps are masks of the dataset, pixel by pixel: make "
            "it with --supervision full and set labels.supervision: full"
        )


def _copies(labels: LabelSet, index: DataIndex) -> int:
    """How many of some maps are the dataset's masks, where they are too many for chance; else 0."""
    both = [item.name for item in index.train if item.name in labels.file.maps and item.name in index.masks]
    chosen = both[:: max(1, len(both) // _COMPARED)][:_COMPARED]
    same = 0
    for name in chosen:
        mask = read_mask(index.masks[name], len(index.classes))
        same += np.array_equal(labels.label(name), mask)
    return same if same >= _FEWEST and same > _MOST * len(chosen) else 0


def _source(config: LabelsConfig) -> Path:
    if config.source is None:
        raise UsageError(
            "labels.source: is missing: the label set to train on (--set labels.source=FOLDER); mcc data labels makes "
            "one"
        )
    return config.source.expanduser()
