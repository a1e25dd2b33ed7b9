"""Preparing VOC: what lies in the output folder, and what archives and folders hold beside the dataset."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import archives_mini as mini
import numpy as np
import pytest
from scipy.io import savemat

from mcc_core.config import DataConfig
from mcc_core.data.index import build_index
from mcc_core.data.index_file import INDEX, faults, read_index
from mcc_core.data.pixels import READING, read_mask
from mcc_core.data.prepare import Prepared, finish
from mcc_core.data.prepare_voc import draft_voc
from mcc_core.errors import DataError, UsageError
from orchestrator.cli.data import check


def prepared(tmp_path: Path, **more: bool) -> Prepared:
    sources = [tmp_path / "a", tmp_path / "b"]
    return finish(draft_voc(sources, tmp_path / "out"), tmp_path / "out", **more)  # type: ignore[arg-type]


@pytest.fixture
def kit(tmp_path: Path) -> Path:
    """VOC2012 in `a`, SBD in `b`."""
    mini.sbd(tmp_path / "b")
    return mini.voc(tmp_path / "a")


def sbd_mask(file: Path, label: np.ndarray) -> None:
    content = np.empty((1, 1), np.dtype([("Segmentation", object)]))
    content[0, 0] = (label,)
    savemat(file, {"GTcls": content})


def test_masks_of_sbd_follow_their_source_whatever_its_time(tmp_path: Path, kit: Path) -> None:
    prepared(tmp_path)
    source = tmp_path / "b/benchmark_RELEASE/dataset/cls/s1.mat"
    sbd_mask(source, np.full((mini.SIZE[1], mini.SIZE[0]), 7, np.uint8))
    os.utime(source, (0, 0))
    made = prepared(tmp_path)
    assert np.all(read_mask(tmp_path / "out" / str(made.index.images["s1"].mask), 20) == 7)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a mask of SBD"),
        (b"<html>", "not a mask of SBD"),
        (np.full((30, 40), 300, np.uint16), r"GTcls.Segmentation: uint16 \(30, 40\); expected labels 0 to 255"),
        (np.full((30, 40), 0.5), "GTcls.Segmentation: float64"),
    ],
)
def test_a_broken_mask_of_sbd_is_named_and_the_others_are_done(
    tmp_path: Path, kit: Path, content: bytes | np.ndarray, message: str
) -> None:
    source = tmp_path / "b/benchmark_RELEASE/dataset/cls/s1.mat"
    if isinstance(content, bytes):
        source.write_bytes(content)
    else:
        sbd_mask(source, content)
    with pytest.raises(DataError, match=f"s1.mat: {message}") as caught:
        prepared(tmp_path)
    assert len(str(caught.value).splitlines()) == 1
    made = prepared(tmp_path, skip_broken=True)
    assert made.index.splits["train_aug"] == ("s2", "t1", "t2") and len(made.problems) == 1


def both_lists(kit: Path) -> None:
    mini.lists(kit, {"val": (*mini.VAL, "t1")})


def same_picture(kit: Path) -> None:
    shutil.copy(kit / "JPEGImages" / "v1.jpg", kit / "JPEGImages" / "t1.jpg")


def one_without_mask(kit: Path) -> None:
    (kit / "SegmentationClass" / "v2.png").unlink()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (both_lists, "t1: in train and in val: .*t1.jpg"),
        (same_picture, "t1 and v1: the same picture in train and val: .*t1.jpg and .*v1.jpg"),
        (one_without_mask, "v2: has no mask; others of val have one: .*v2.jpg"),
    ],
)
def test_what_training_would_refuse_is_refused_at_preparation(
    tmp_path: Path, kit: Path, spoil: Callable[[Path], None], message: str
) -> None:
    spoil(kit)
    with pytest.raises(DataError, match=message):
        prepared(tmp_path)
    prepared(tmp_path, skip_broken=True)
    config = DataConfig(name="voc", root=tmp_path / "out", train_split="train")
    assert build_index(config, tmp_path / "home").has_masks


def test_check_finds_what_training_would_refuse(tmp_path: Path, kit: Path) -> None:
    file = prepared(tmp_path).file
    content = json.loads(file.read_text())
    content["splits"]["train"].append("v1")
    content["images"]["v2"]["mask"] = None
    file.write_text(json.dumps(content))
    assert [(split, name) for split, name, _ in faults(read_index(tmp_path / "out"))] == [
        ("train", "v1"),
        ("val", "v2"),
    ]
    with pytest.raises(UsageError, match=r"v1: in train and in val(.|\n)*v2: has no mask; others of val have one"):
        check(tmp_path / "out")


def unlabelled(kit: Path) -> None:
    for file in (kit / "Annotations").iterdir():
        file.write_text("<annotation></annotation>")


def test_labels_that_are_all_empty_are_refused(tmp_path: Path, kit: Path) -> None:
    file = prepared(tmp_path).file
    content = json.loads(file.read_text())
    for image in content["images"].values():
        image["labels"] = []
    file.write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"index.json: no image of train_aug has a class: nothing to learn"):
        build_index(DataConfig(name="voc", root=tmp_path / "out"), tmp_path / "home")
    unlabelled(kit)
    with pytest.raises(DataError, match="no image of train has a class: nothing to learn"):
        prepared(tmp_path)


def test_two_training_sets_are_refused_and_stray_files_are_no_images(tmp_path: Path, kit: Path) -> None:
    for folder in ("JPEGImages", "SegmentationClass"):
        for file in list((kit / folder).iterdir()):
            file.with_name(f"._{file.name}").write_bytes(b"\0\5\26\7")  # as macOS puts beside each file
    (tmp_path / "b/benchmark_RELEASE/dataset/cls/._s1.mat").write_bytes(b"\0\5\26\7")
    mini.picture(kit / "JPEGImages" / "extra.jpg", "extra")
    made = prepared(tmp_path)
    assert set(made.index.images) == {"t1", "t2", "v1", "v2", "s1", "s2"}
    assert "JPEGImages: left out 1 images of no split, such as extra" in made.notes
    shutil.copytree(kit, kit.with_name("VOC2007"))
    with pytest.raises(DataError, match=r"VOC2007: and .*VOC2012: two training sets; give the folder of one"):
        prepared(tmp_path)


@pytest.mark.parametrize(
    ("xml", "message"),
    [
        ("<html><object><name>cat</name></object></html>", "<html>: expected <annotation>"),
        ("<annotation><object><bndbox/></object></annotation>", "class '' is not among"),
        ("<annotation>\n<object></annotation>", "line 2: not valid XML; expected an annotation in VOC's form"),
    ],
)
def test_an_annotation_of_another_form_is_named(tmp_path: Path, kit: Path, xml: str, message: str) -> None:
    (kit / "Annotations" / "t1.xml").write_text(xml)
    with pytest.raises(DataError, match=f"t1.xml: {message}"):
        prepared(tmp_path)


def swapped(file: Path) -> None:
    """Other content of the same size and time, as `cp -p` and `rsync -t` leave it."""
    before, content = file.stat(), bytearray(file.read_bytes())
    content[-3] ^= 1  # of a PNG's or JPEG's end, where readers do not look
    file.write_bytes(content)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize("name", ["JPEGImages/t1.jpg", "SegmentationClass/v1.png"])
def test_a_file_of_the_same_size_and_time_is_not_taken_for_the_one_before(tmp_path: Path, kit: Path, name: str) -> None:
    first = prepared(tmp_path)
    config, raw = DataConfig(name="voc", root=tmp_path / "out"), DataConfig(name="voc", root=kit, train_split="train")
    before = [build_index(one, tmp_path / "home").fingerprint for one in (config, raw)]
    swapped(kit / name)
    with pytest.raises(DataError, match=f"{Path(name).name}: its content has changed since the index was made"):
        build_index(config, tmp_path / "home")
    assert prepared(tmp_path).index != first.index
    assert all(a != build_index(b, tmp_path / "home").fingerprint for a, b in zip(before, (config, raw), strict=True))


def test_what_was_read_by_other_rules_is_read_again(tmp_path: Path, kit: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that an earlier version accepted is not accepted for it."""
    raw = DataConfig(name="voc", root=kit, train_split="train")
    prepared(tmp_path)
    build_index(raw, tmp_path / "home")
    for module in ("mcc_core.data.index", "mcc_core.data.prepare"):
        monkeypatch.setattr(f"{module}.READING", READING + 1)

    def refuse(*_: object) -> None:
        raise DataError("read again")

    monkeypatch.setattr("mcc_core.data.index.examined", refuse)
    monkeypatch.setattr("mcc_core.data.prepare.image_size", refuse)
    with pytest.raises(DataError, match="read again"):
        build_index(raw, tmp_path / "home")
    with pytest.raises(DataError, match="read again"):
        prepared(tmp_path)
    assert (tmp_path / "out" / INDEX).is_file()
