"""Experiments and datasets by their public names."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mcc_core.config import Experiment
from mcc_core.data.index import DataIndex, build_index
from mcc_core.data.label_source import with_labels
from mcc_core.experiment_files import resolve
from mcc_core.methods.registry import method_of


def experiment(base: str | Path = "voc", changes: Mapping[str, Any] | None = None) -> Experiment:
    """The experiment of a preset (`tiny`, `voc`, ...) or of a YAML file, with dotted fields replaced.

    For example `experiment("tiny", {"mask.ratio": 0.5, "train.iterations": 100})`. Raises UsageError, a line per
    mistake.
    """
    return resolve(base, changes, source="changes")


def index(experiment: Experiment, home: str | Path | None = None) -> DataIndex:
    """The checked dataset of an experiment: its images, image-level labels, masks for evaluation, and its label set.

    Every image is decoded once; the result is remembered below `home` (default: `MCC_HOME`, or `./.mcc`), where
    generated shapes are written too. Raises DataError, which names the file.
    """
    folder = home_folder(home)
    return with_labels(build_index(experiment.data, folder), method_of(experiment).labels(experiment), folder)


def home_folder(home: str | Path | None) -> Path:
    """The folder for what is kept beside results, absolute."""
    return Path(home or os.environ.get("MCC_HOME") or ".mcc").expanduser().resolve()
