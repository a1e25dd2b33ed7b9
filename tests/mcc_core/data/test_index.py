"""The checked index of a dataset: user mistakes, broken files, the fingerprint, and the memory of earlier checks."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import small_voc
from PIL import Image

from mcc_core.config import DataConfig
from mcc_core.data.index import DataIndex, build_index, supervision_certificate
from mcc_core.errors import DataError


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return small_voc.write(tmp_path / "voc")


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


def _image(root: Path, name: str) -> Path:
    return root / "JPEGImages" / f"{name}.jpg"


def _truncate(path: Path, share: float = 0.6) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])


def test_lists_images_labels_and_masks(root: Path, home: Path) -> None:
    index = build_index(small_voc.config(root), home)
    assert index.classes == small_voc.CLASSES
    assert [(i.name, i.labels) for i in index.train] == [("a1", (0,)), ("a2", (1, 2)), ("a3", ())]
    assert [(i.name, i.labels) for i in index.val] == [("b1", (0, 1)), ("b2", (2,))]
    assert index.val[0].image == _image(root, "b1")
    assert set(index.masks) == {"a1", "a2", "a3", "b1", "b2"}
    assert index.skipped == ()


def test_training_images_need_no_masks(root: Path, home: Path) -> None:
    for name in small_voc.TRAIN:
        (root / "SegmentationClass" / f"{name}.png").unlink()
    index = build_index(small_voc.config(root), home)
    assert set(index.masks) == {"b1", "b2"} and len(index.train) == 3


def test_classes_as_a_list_and_their_order(root: Path, home: Path) -> None:
    index = build_index(small_voc.config(root, classes=["tree", "dog", "cat"]), home)
    assert index.train[1].labels == (0, 1)
    with pytest.raises(DataError, match="different class names"):
        build_index(small_voc.config(root, classes=["tree", "dog", "cat", "dog"]), home)


def test_root_must_be_given_and_be_there(root: Path, home: Path) -> None:
    with pytest.raises(DataError, match=r"data.root: not set"):
        build_index(DataConfig(name="voc"), home)
    with pytest.raises(DataError, match=r"data.root: .*nowhere: no such folder"):
        build_index(small_voc.config(root / "nowhere", classes=["cat"]), home)


def test_images_in_both_splits_are_refused(root: Path, home: Path) -> None:
    with (root / "ImageSets" / "Segmentation" / "train.txt").open("a") as file:
        file.write("b2\n")
    with pytest.raises(DataError, match=r"'b2' is in both train and val: evaluation images must not be trained on"):
        build_index(small_voc.config(root), home)
    with pytest.raises(DataError, match=r"'b1' and 1 more ids are in both val and val"):
        build_index(small_voc.config(root, train_split="val"), home)


def test_missing_val_mask_is_named(root: Path, home: Path) -> None:
    (root / "SegmentationClass" / "b2.png").unlink()
    with pytest.raises(DataError, match=r"b2.png: no such mask; others of val have one"):
        build_index(small_voc.config(root), home)


def test_broken_val_mask_is_found_before_training(root: Path, home: Path) -> None:
    _truncate(root / "SegmentationClass" / "b2.png")
    for _ in range(2):  # the second time from memory
        with pytest.raises(DataError, match=r"b2.png: cannot be read as a mask"):
            build_index(small_voc.config(root), home)


def test_val_mask_with_labels_of_other_classes_is_found(root: Path, home: Path) -> None:
    build_index(small_voc.config(root), home)
    for name, labels in {**small_voc.TRAIN, **small_voc.VAL}.items():
        small_voc.annotate(root, name, [label for label in labels if label != "tree"])
    with pytest.raises(DataError, match=r"b2.png: label 3 is out of range: there are 2 classes"):
        build_index(small_voc.config(root, classes=["cat", "dog"]), home)


def test_a_dataset_without_any_label_is_refused(root: Path, home: Path) -> None:
    for name in small_voc.TRAIN:
        small_voc.annotate(root, name, [])
    with pytest.raises(DataError, match="no image of train has an object"):
        build_index(small_voc.config(root), home)


BREAKAGES = {
    "truncated": lambda path: _truncate(path),
    "empty": lambda path: path.write_bytes(b""),
    "no image": lambda path: path.write_text("<html>404</html>"),
    "missing": lambda path: path.unlink(),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
}


@pytest.mark.parametrize("kind", BREAKAGES)
@pytest.mark.parametrize("name", ["a2", "b1"])
def test_broken_image_stops_or_is_skipped(root: Path, home: Path, kind: str, name: str) -> None:
    path = _image(root, name)
    BREAKAGES[kind](path)
    for _ in range(2):  # the second time from memory
        with pytest.raises(DataError) as error:
            build_index(small_voc.config(root), home)
        assert str(error.value).startswith(f"{path}: ") and "data.on_corrupt=skip" in str(error.value)
        index = build_index(small_voc.config(root, on_corrupt="skip"), home)
        assert len(index.skipped) == 1 and index.skipped[0].startswith(f"{path}: ")
        assert name not in {item.name for item in (*index.train, *index.val)}
        assert len(index.train) + len(index.val) == 4


def test_a_jpeg_cut_just_before_its_end_is_found(root: Path, home: Path) -> None:
    path = _image(root, "a1")
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (400, 500, 3), dtype=np.uint8)).save(path)
    _truncate(path, 0.97)
    with pytest.raises(DataError, match=r"a1.jpg: cannot be read as an image: it is cut short"):
        build_index(small_voc.config(root), home)


def test_tiny_and_png_content_images_are_accepted(root: Path, home: Path) -> None:
    Image.new("RGB", (1, 1)).save(_image(root, "a1"))
    Image.new("RGBA", (9, 9)).save(_image(root, "a2"), format="PNG")
    assert len(build_index(small_voc.config(root), home).train) == 3


def test_nothing_left_is_an_error_even_when_skipping(root: Path, home: Path) -> None:
    for name in small_voc.VAL:
        _truncate(_image(root, name))
    with pytest.raises(DataError, match="no readable image is left in val"):
        build_index(small_voc.config(root, on_corrupt="skip"), home)


def test_count_of_further_broken_images(root: Path, home: Path) -> None:
    for name in ("a1", "a2", "b1"):
        _truncate(_image(root, name))
    with pytest.raises(DataError, match=r"a1.jpg: .*\(and 2 more images\)"):
        build_index(small_voc.config(root), home)


# --- fingerprint -----------------------------------------------------------------------------------------------------


def _fingerprint(root: Path, home: Path) -> str:
    return build_index(small_voc.config(root), home).fingerprint


def test_fingerprint_depends_on_content_not_on_the_place(root: Path, home: Path, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere" / "copy"
    shutil.copytree(root, moved)
    for path in moved.rglob("*.jpg"):
        os.utime(path, (1, 1))
    assert _fingerprint(root, home) == _fingerprint(moved, tmp_path / "another home")


@pytest.mark.parametrize("change", ["image", "label", "split", "order", "mask", "classes"])
def test_fingerprint_follows_what_changes_numbers(root: Path, home: Path, change: str) -> None:
    before = _fingerprint(root, home)
    split = root / "ImageSets" / "Segmentation" / "train.txt"
    if change == "image":
        Image.new("RGB", (40, 30), "red").save(_image(root, "a1"))
    elif change == "label":
        small_voc.annotate(root, "a1", ["dog"])
    elif change == "split":
        split.write_text("a1\na2\n")
    elif change == "order":
        split.write_text("a2\na1\na3\n")
    elif change == "mask":
        small_voc.write_mask(root / "SegmentationClass" / "b1.png", ["dog", "cat"], (40, 30))
    else:
        (root / "classes.txt").write_text("cat\ndog\ntree\nhorse\n")
    assert _fingerprint(root, home) != before


def test_fingerprint_ignores_what_changes_nothing(root: Path, home: Path) -> None:
    before = _fingerprint(root, home)
    Image.new("RGB", (40, 30)).save(_image(root, "unlisted"))
    small_voc.write_mask(root / "SegmentationClass" / "a1.png", ["dog"], (40, 30))  # training never reads it
    assert _fingerprint(root, home) == before


# --- memory ----------------------------------------------------------------------------------------------------------


def test_second_index_decodes_nothing_and_a_change_is_noticed(
    root: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = build_index(small_voc.config(root), home)
    opened: list[Path] = []
    original = Image.open

    def spy(path: Path) -> Image.Image:
        opened.append(Path(path))
        return original(path)

    monkeypatch.setattr(Image, "open", spy)
    assert build_index(small_voc.config(root), home) == first
    assert opened == []
    _truncate(_image(root, "a2"))
    with pytest.raises(DataError, match=r"a2.jpg"):
        build_index(small_voc.config(root), home)
    assert opened == [_image(root, "a2")]


@pytest.mark.parametrize("content", ["", "[1, 2]", '{"a1.jpg 1 2": 3}', '{"x": ["a"]}', "\0\0", "{"])
def test_damaged_memory_is_made_again(root: Path, home: Path, content: str) -> None:
    first = build_index(small_voc.config(root), home)
    files = list((home / "index").iterdir())
    assert len(files) == 2  # of images and of masks
    for file in files:
        file.write_text(content)
    assert build_index(small_voc.config(root), home) == first
    assert all(json.loads(file.read_text()) for file in files)


def test_home_that_cannot_be_written_only_costs_time(root: Path, tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    assert len(build_index(small_voc.config(root), blocked).train) == 3


# --- supervision -----------------------------------------------------------------------------------------------------


def test_certificate_states_facts(root: Path, home: Path) -> None:
    index = build_index(small_voc.config(root), home)
    facts = supervision_certificate(index)
    assert facts == {
        "training_images": 3,
        "validation_images": 2,
        "images_in_both": 0,
        "training_reads_masks": False,
        "skipped_images": [],
        "data_fingerprint": index.fingerprint,
    }
    json.dumps(facts)


def test_certificate_would_tell_of_a_leak(root: Path, home: Path) -> None:
    index = build_index(small_voc.config(root), home)
    leaking = DataIndex(
        index.classes, (*index.train, index.val[0]), index.val, {"a1": _image(root, "a1")}, (), index.fingerprint
    )
    facts = supervision_certificate(leaking)
    assert facts["images_in_both"] == 1 and facts["training_reads_masks"] is True
