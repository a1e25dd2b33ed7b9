"""Label sets of the submitting machine are sent to storage, and named by their key from then on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml

from mcc_core.data.label_maps import LabelSet, LabelSetWriter, read_label_set
from mcc_core.errors import DataError, UsageError
from orchestrator.records import layout
from orchestrator.settings import Settings
from orchestrator.storage.store import Storage
from orchestrator.workflows.remote_labels import with_sent_labels


def label_set(folder: Path, value: int, identity: str | None = None) -> LabelSet:
    with LabelSetWriter(folder, ("cat", "dog"), identity=identity) as writer:
        writer.add("a", np.full((4, 5), value, np.uint8))
        return writer.close()


def sweep(folder: Path, **stages: object) -> Path:
    file = folder / "s.yaml"
    file.write_text(yaml.safe_dump({"name": "s", "stages": stages}))
    return file


def test_sets_of_options_and_stages_are_sent_once(settings_of_each_kind: Settings, tmp_path: Path) -> None:
    storage = Storage(settings_of_each_kind.storage)
    one, two = label_set(tmp_path / "one", 1), label_set(tmp_path / "two", 2)
    (tmp_path / "own.yaml").write_text(f"labels: {{source: {tmp_path / 'one'}}}\n")
    file = sweep(
        tmp_path,
        d={"base": str(tmp_path / "own.yaml")},
        e={"base": str(tmp_path / "own.yaml"), "of": "a"},  # which makes the labels that it trains on
        a={"base": "x", "set": {"labels.source": str(tmp_path / "two")}},
        b={"base": "x", "set": {"labels.source": str(tmp_path / "nowhere")}},
        c={"base": "x", "set": {"labels.source": f"labels/{one.identity}"}},
    )
    changes = ["loss.mcc=0", f"c.labels.source={tmp_path / 'one'}"]
    for _ in range(2):
        told = with_sent_labels(file, changes, storage)
        assert told == [
            "loss.mcc=0",
            f"a.labels.source=labels/{two.identity}",
            f"c.labels.source=labels/{one.identity}",
            f"d.labels.source=labels/{one.identity}",
        ]
    storage.download(layout.label_set(two.identity), tmp_path / "got.zip")
    assert read_label_set(tmp_path / "got.zip").file == two.file
    assert with_sent_labels(file, [f"labels.source={tmp_path / 'one'}"], storage) == [
        f"labels.source=labels/{one.identity}"
    ]


def test_what_cannot_be_sent_is_one_line(settings: Settings, tmp_path: Path) -> None:
    storage = Storage(settings.storage)
    label_set(tmp_path / "one", 1, "0" * 16)
    label_set(tmp_path / "two", 2, "0" * 16)
    file = sweep(tmp_path, a={"base": "tiny"})
    with_sent_labels(file, [f"a.labels.source={tmp_path / 'one'}"], storage)
    with pytest.raises(UsageError, match="says that it is 0000000000000000, which storage has with other maps"):
        with_sent_labels(file, [f"a.labels.source={tmp_path / 'two'}"], storage)
    (tmp_path / "two" / "maps" / "a.png").unlink()
    with pytest.raises(DataError, match=r"a\.png: no such file"):
        with_sent_labels(file, [f"a.labels.source={tmp_path / 'two'}"], storage)
