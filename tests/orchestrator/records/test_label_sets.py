"""Label sets travel through storage under their identity, in a folder and in a bucket."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from trained import smallest

from mcc_core.config import LabelsConfig
from mcc_core.data.label_maps import LabelSetWriter, pack_label_set, read_label_set
from mcc_core.data.label_source import local_zip, stored_key
from mcc_core.errors import UsageError
from orchestrator.records.label_sets import fetch_labels, label_key, store_labels
from orchestrator.settings import Settings
from orchestrator.storage.store import Storage


def test_a_set_is_sent_from_one_home_and_fetched_into_another(settings_of_each_kind: Settings, tmp_path: Path) -> None:
    storage, here, there = Storage(settings_of_each_kind.storage), tmp_path / "here", tmp_path / "there"
    with LabelSetWriter(tmp_path / "set", ("square",)) as writer:
        writer.add("a", np.full((2, 3), 1, np.uint8))
        made = writer.close()
    plain = smallest("segmentation")
    experiment = plain.model_copy(update={"labels": LabelsConfig(source=stored_key(made.identity))})
    assert label_key(experiment) == made.identity and label_key(plain) is label_key(smallest("afa")) is None
    with pytest.raises(UsageError, match=rf"labels/{made.identity}: no such folder, and no label set "):
        fetch_labels(storage, experiment, there)
    store_labels(storage, experiment, here)  # a stage is to make it
    assert not storage.exists(f"labels/{made.identity}/labels.zip")
    pack_label_set(made, local_zip(made.identity, here))
    store_labels(storage, experiment, here)
    fetch_labels(storage, experiment, there)
    found = read_label_set(local_zip(made.identity, there))
    assert found.file == made.file and (found.label("a") == 1).all()
