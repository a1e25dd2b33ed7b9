"""From `labels` of an experiment to a dataset with label maps: those of masks and of folders, the leak guard."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from trained import smallest

from mcc_core.config import LabelsConfig
from mcc_core.data.datasets import label_maps
from mcc_core.data.index import DataIndex, build_index, supervision_certificate
from mcc_core.data.label_maps import LabelSet, LabelSetWriter, pack_label_set
from mcc_core.data.label_source import labels_identity, local_zip, stored_identity, stored_key, with_labels
from mcc_core.data.make_labels import label_set_of_folder, label_set_of_masks
from mcc_core.data.pixels import read_mask, stored_size
from mcc_core.errors import DataError, UsageError


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> DataIndex:
    return build_index(smallest("segmentation").data, tmp_path_factory.mktemp("home"))


def section(source: Path, supervision: str = "weak") -> LabelsConfig:
    return LabelsConfig.model_validate({"source": source, "supervision": supervision})


def masks_as_maps(index: DataIndex, folder: Path, change: Callable[[np.ndarray], np.ndarray] = lambda x: x) -> Path:
    """A folder of label maps as a user has them."""
    folder.mkdir()
    for item in index.train:
        Image.fromarray(change(read_mask(index.masks[item.name], len(index.classes)))).save(folder / f"{item.name}.png")
    return folder


def shifted(index: DataIndex, out: Path, **options: object) -> LabelSet:
    """A weak set: the masks, a little off."""
    maps = masks_as_maps(index, out.with_name("shifted maps"), lambda mask: np.roll(mask, 2, 1))
    return label_set_of_folder(index, maps, out, **options)[0]  # type: ignore[arg-type]


def test_masks_become_a_set_that_must_be_asked_for(index: DataIndex, tmp_path: Path) -> None:
    made, without = label_set_of_masks(index, tmp_path / "set")
    assert made.supervision == "full" and without == () and set(made.names) == {item.name for item in index.train}
    with pytest.raises(UsageError, match=r"made of masks that people drew; --set labels\.supervision=full"):
        with_labels(index, section(made.path), tmp_path)
    found = with_labels(index, section(made.path, "full"), tmp_path)
    assert found.train == index.train and found.fingerprint == index.fingerprint and found.labels is not None
    facts = supervision_certificate(found)
    assert facts["training_reads_masks"] and facts["label_maps"]["supervision"] == "full"
    assert not supervision_certificate(index)["training_reads_masks"] and "label_maps" not in supervision_certificate(
        index
    )


def test_masks_that_say_weak_are_found_out(index: DataIndex, tmp_path: Path) -> None:
    made, _ = label_set_of_folder(index, masks_as_maps(index, tmp_path / "maps"), tmp_path / "set")
    with pytest.raises(UsageError, match="says weak, but 8 of its maps are masks of the dataset"):
        with_labels(index, section(made.path), tmp_path)
    weak = shifted(index, tmp_path / "weak")
    facts = supervision_certificate(with_labels(index, section(weak.path), tmp_path))
    assert facts["label_maps"]["identity"] == weak.identity and not facts["training_reads_masks"]
    with pytest.raises(UsageError, match=r"labels.supervision: full: .* was not made of masks; leave it out"):
        with_labels(index, section(weak.path, "full"), tmp_path)


def test_images_without_a_map_are_left_out_and_counted(index: DataIndex, tmp_path: Path) -> None:
    maps = masks_as_maps(index, tmp_path / "maps", lambda mask: np.roll(mask, 2, 1))
    names = [item.name for item in index.train]
    for name in names[3:]:
        (maps / f"{name}.png").unlink()
    made, without = label_set_of_folder(index, maps, tmp_path / "set")
    assert without == tuple(names[3:])
    found = with_labels(index, section(made.path), tmp_path)
    assert [item.name for item in found.train] == names[:3] and found.val == index.val
    assert found.notes == (f"5 of 8 training images have no label map and are left out: {names[3]} …",)


def test_a_key_of_storage_is_read_where_it_was_fetched(index: DataIndex, tmp_path: Path) -> None:
    made = shifted(index, tmp_path / "set")
    config = section(stored_key(made.identity))
    assert labels_identity(config) == labels_identity(section(made.path)) == made.identity
    with pytest.raises(UsageError, match="no such folder, and no label set of storage is at"):
        with_labels(index, config, tmp_path)
    pack_label_set(made, local_zip(made.identity, tmp_path))
    shutil.rmtree(made.path)
    found = with_labels(index, config, tmp_path)
    assert found.labels is not None and found.labels.names == made.names
    with pytest.raises(UsageError, match=r"labels\.source: is missing: the label set to train on"):
        with_labels(index, LabelsConfig(), tmp_path)


def test_a_key_is_one_where_storage_itself_is_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    key = stored_key("00112233445566aa")
    key.mkdir(parents=True)
    (key / "labels.zip").touch()
    assert stored_identity(key) == "00112233445566aa" and stored_identity(tmp_path / key) is None
    (key / "labels.json").touch()
    assert stored_identity(key) is None


def test_confidence_is_whole_where_an_image_has_none(index: DataIndex, tmp_path: Path) -> None:
    first, two = (item.name for item in index.train[:2])
    with LabelSetWriter(tmp_path / "set", index.classes) as writer:
        for name in (first, two):
            writer.add(name, np.zeros((48, 48), np.uint8), np.full((48, 48), 0.5) if name == first else None)
        made = writer.close()
    assert (label_maps(made, first)["confidence"] == 128).all() and (label_maps(made, two)["confidence"] == 255).all()


def test_what_is_no_folder_of_maps_is_one_line(index: DataIndex, tmp_path: Path) -> None:
    def refused(message: str, maps: Path, confidence: Path | None = None) -> None:
        with pytest.raises(DataError, match=message) as caught:
            label_set_of_folder(index, maps, tmp_path / "set", confidence=confidence)
        assert "\n" not in str(caught.value) and not (tmp_path / "set").exists()

    name = index.train[0].name
    maps = masks_as_maps(index, tmp_path / "maps")
    refused("nowhere: no such folder; expected one of label maps", tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    refused(rf"no label maps here; expected PNG files such as {name}\.png", tmp_path / "empty")
    refused("no such folder; expected one of confidence maps", maps, tmp_path / "nowhere")
    Image.new("L", (48, 48)).save(maps / "other.png")
    refused(r"other\.png: no training image of the dataset is called other", maps)
    (maps / "other.png").rename(tmp_path / "empty" / f"{name}.png")
    Image.new("L", (47, 48)).save(maps / f"{name}.png")
    refused(rf"{name}\.png: 47x48 pixels; its image .* has 48x48", maps)
    Image.new("L", (48, 48), 9).save(maps / f"{name}.png")
    refused(rf"{name}\.png: label 9 is out of range: there are 8 classes", maps)
    (maps / f"{name}.png").unlink()
    refused("confidence of an image without a label map", maps, tmp_path / "empty")
    blind = replace(index, masks={})
    with pytest.raises(DataError, match="no training image has a mask"):
        label_set_of_masks(blind, tmp_path / "set")


def test_the_stored_size_follows_the_rotation_of_a_photograph(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (30, 20)).save(tmp_path / "a.jpg", exif=exif)
    assert stored_size(tmp_path / "a.jpg") == (20, 30)


def test_two_maps_of_one_image_are_refused(index: DataIndex, tmp_path: Path) -> None:
    maps = masks_as_maps(index, tmp_path / "maps")
    name = index.train[0].name
    shutil.copy(maps / f"{name}.png", maps / f"{name}.PNG")
    with pytest.raises(DataError, match=rf"{name}\.PNG: a second map of one image"):
        label_set_of_folder(index, maps, tmp_path / "set")


def test_a_tilde_is_the_home_wherever_a_set_is_read(
    index: DataIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = shifted(index, tmp_path / "set")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert labels_identity(section(Path("~/set"))) == made.identity
