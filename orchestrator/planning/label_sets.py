"""Label sets that experiments name by a path: checked against the data, packed, and named by identity from then on.

So a trial's record says what it was trained on and not where that lay, and any machine can fetch it.
"""

from __future__ import annotations

from pathlib import Path

from mcc_core.config import Experiment
from mcc_core.data.index import DataIndex
from mcc_core.data.label_maps import LabelSet, pack_label_set, read_label_set
from mcc_core.data.label_source import local_zip, stored_identity, stored_key, with_labels
from mcc_core.errors import UsageError
from mcc_core.methods.registry import method_of, supervision_of

FULL = " (full supervision)"  # what names of configurations end with that learn from masks that people drew


def labelled(experiment: Experiment, index: DataIndex, home: Path) -> tuple[Experiment, DataIndex]:
    """The experiment with the key of its label set in place of a path, and the dataset with the set.

    Both are as given where no label set is learned from, or one that is not made yet. Raises UsageError for a set that
    does not fit.
    """
    labels = method_of(experiment).labels(experiment)
    if labels is None:
        return experiment, index
    made = labels.source is not None and (identity := stored_identity(labels.source)) is not None
    if made and not local_zip(str(identity), home).is_file():
        return experiment, index
    index = with_labels(index, labels, home)
    assert index.labels is not None
    if made:
        return experiment, index
    _pack(index.labels, local_zip(index.labels.identity, home))
    changed = labels.model_copy(update={"source": stored_key(index.labels.identity)})
    return experiment.model_copy(update={"labels": changed}), index


def named(point: str, experiment: Experiment) -> str:
    """A configuration's name, which every table, run and report shows: it says so where supervision is full, or more
    than image-level labels."""
    if supervision_of(experiment) == "full":
        return point + FULL
    told = method_of(experiment).told
    return point if told == "I" else f"{point} ({told})"


def _pack(labels: LabelSet, file: Path) -> None:
    if not file.is_file():
        pack_label_set(labels, file)
    elif read_label_set(file).file.content != labels.file.content:
        raise UsageError(
            f"labels.source: {labels.path}: says that it is {labels.identity}, which was known with other maps; mcc "
            "data labels makes a set of changed maps"
        )
