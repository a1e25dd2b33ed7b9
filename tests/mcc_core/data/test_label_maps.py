"""Label sets: what is written is read again, whole; every fault is one clear line."""

from __future__ import annotations

import json
import pickle
import shutil
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

from mcc_core.data import label_maps
from mcc_core.data.index import Item
from mcc_core.data.label_maps import LabelSet, LabelSetWriter, pack_label_set, read_label_set
from mcc_core.errors import DataError, UsageError

CLASSES = ("square", "disc")
SIZES = st.tuples(st.integers(1, 9), st.integers(1, 9))
LABELS = SIZES.flatmap(lambda size: arrays.arrays(np.uint8, size, elements=st.sampled_from([0, 1, 2, 255])))
NAMES = st.text(st.characters(codec="utf-8", exclude_characters="/\\\0", exclude_categories=["Cs", "Cc"]), min_size=1)


def written(folder: Path, **options: object) -> LabelSet:
    """Two maps of 6x4 pixels, the second with confidence."""
    label = np.tile(np.array([0, 1, 2, 255], np.uint8), (6, 1))
    with LabelSetWriter(folder, CLASSES, **options) as writer:  # type: ignore[arg-type]
        writer.add("a", label)
        writer.add("deep/b", label, np.full(label.shape, 0.25, np.float32))
        return writer.close()


@settings(max_examples=25, deadline=None)
@given(
    maps=st.dictionaries(NAMES.filter(lambda n: n not in {".", ".."} and len(n.encode()) < 60), LABELS, min_size=1),
    sure=st.floats(0, 1),
    zipped=st.booleans(),
)
def test_what_is_written_is_read_again(maps: dict[str, np.ndarray], sure: float, zipped: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        with LabelSetWriter(Path(folder) / "set", CLASSES, origin={"by": "test"}) as writer:
            for name, label in maps.items():
                writer.add(name, label, np.full(label.shape, sure))
            made = writer.close()
        path = pack_label_set(made, Path(folder) / "set.zip") if zipped else made.path
        read = pickle.loads(pickle.dumps(read_label_set(path)))
        assert (read.identity, read.classes, read.supervision) == (made.identity, CLASSES, "weak")
        assert read.origin == {"by": "test"} and set(read.names) == set(maps)
        for name, label in maps.items():
            np.testing.assert_array_equal(read.label(name), label)
            np.testing.assert_allclose(read.confidence(name), sure, atol=0.5 / 255 + 1e-6)


def test_identity_is_that_of_the_content_unless_one_is_given(tmp_path: Path) -> None:
    one, same = written(tmp_path / "one"), written(tmp_path / "two", origin={"by": "another"})
    assert one.identity == same.identity != written(tmp_path / "three", supervision="full").identity
    staged = written(tmp_path / "four", identity="0123456789abcdef")
    assert staged.identity == "0123456789abcdef" and staged.file.content == one.identity
    assert one.confidence("a") is None and one.has_confidence


def test_equal_sets_are_equal_zips(tmp_path: Path) -> None:
    files = [pack_label_set(written(tmp_path / name), tmp_path / f"{name}.zip") for name in ("one", "two")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_a_set_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), LabelSetWriter(tmp_path / "set", CLASSES) as writer:
        writer.add("a", np.zeros((2, 2), np.uint8))
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []
    written(tmp_path / "set")
    with pytest.raises(UsageError, match="set: is there already"):
        LabelSetWriter(tmp_path / "set", CLASSES)
    with pytest.raises(UsageError, match="no label map was made"):
        LabelSetWriter(tmp_path / "empty", CLASSES).close()
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


@pytest.mark.parametrize("name", ["../a", "/a", "a/../b", "a//b", "", ".", "a/", "a"])
def test_names_that_would_leave_the_folder_or_are_there_twice_are_refused(name: str, tmp_path: Path) -> None:
    writer = LabelSetWriter(tmp_path / "set", CLASSES)
    writer.add("a", np.zeros((2, 2), np.uint8))
    with pytest.raises(ValueError, match=r"name of an image|added twice"):
        writer.add(name, np.zeros((2, 2), np.uint8))
    writer.discard()


@pytest.mark.parametrize(
    ("label", "confidence"),
    [
        (np.full((2, 2), 3, np.uint8), None),
        (np.zeros((2, 2, 3), np.uint8), None),
        (np.zeros((0, 2), np.uint8), None),
        (np.full((2, 2), -2), None),
        (np.full((2, 2), 0.5), None),
        (np.zeros((2, 2), np.uint8), np.zeros((2, 3))),
        (np.zeros((2, 2), np.uint8), np.full((2, 2), 1.1)),
        (np.zeros((2, 2), np.uint8), np.full((2, 2), np.nan)),
    ],
)
def test_what_is_no_label_map_is_refused(label: np.ndarray, confidence: np.ndarray | None, tmp_path: Path) -> None:
    with LabelSetWriter(tmp_path / "set", CLASSES) as writer:
        writer.add("good", np.zeros((2, 2), np.uint8))
        with pytest.raises(ValueError, match=r"^bad: .*expected"):
            writer.add("bad", label, confidence)


def _edit(folder: Path, **fields: object) -> None:
    file = folder / "labels.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


def _swap(folder: Path) -> None:
    Image.fromarray(np.zeros((6, 4), np.uint8)).save(folder / "maps" / "a.png")


FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "no such folder": (shutil.rmtree, "set: no such folder or file; expected a label set"),
    "no labels.json": (lambda f: (f / "labels.json").unlink(), "labels.json: no such file; a label set is"),
    "a missing map": (lambda f: (f / "maps/deep/b.png").unlink(), "maps/deep/b.png: no such file"),
    "a missing confidence": (lambda f: (f / "confidence/deep/b.png").unlink(), "confidence/deep/b.png: no such file"),
    "a further map": (lambda f: shutil.copy(f / "maps/a.png", f / "maps/c.png"), "maps/c.png: .* does not list it"),
    "a changed map": (_swap, "maps/a.png: has changed since labels.json was written"),
    "another supervision": (lambda f: _edit(f, supervision="full"), "labels.json: has been changed by hand"),
    "other classes": (lambda f: _edit(f, classes=["disc", "square"]), "labels.json: has been changed by hand"),
    "a wrong field": (lambda f: _edit(f, supervision="some"), "labels.json: supervision: 'some': expected 'weak' or"),
    "a wrong identity": (lambda f: _edit(f, identity="ab"), "labels.json: identity: 'ab': has a character"),
    "a later format": (lambda f: _edit(f, format=9), "labels.json: format 9, expected 1"),
    "not json": (lambda f: (f / "labels.json").write_text("{"), "labels.json: line 1, column 2: not valid JSON"),
    "a list": (lambda f: (f / "labels.json").write_text("[]"), "labels.json: expected a mapping of fields"),
    "not text": (lambda f: (f / "labels.json").write_bytes(b"\xff\xfe\xfd"), "labels.json: not UTF-8 text"),
    "a name that leaves": (lambda f: _edit(f, maps={"../a": {"sha256": "0" * 64}}), "maps: '../a': not the name"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_is_one_line(fault: str, tmp_path: Path) -> None:
    folder = tmp_path / "set"
    written(folder)
    change, message = FAULTS[fault]
    change(folder)
    with pytest.raises(UsageError, match=message) as caught:
        read_label_set(folder)
    assert "\n" not in str(caught.value)


def test_a_damaged_zip_is_named(tmp_path: Path) -> None:
    file = pack_label_set(written(tmp_path / "set"), tmp_path / "set.zip")
    content = bytearray(file.read_bytes())
    content[content.index(b"\x89PNG") + 30] ^= 255
    file.write_bytes(content)
    with pytest.raises(DataError, match=r"set\.zip/maps/a\.png: cannot be read: the zip is damaged"):
        read_label_set(file)
    file.write_bytes(b"PK no zip")
    with pytest.raises(DataError, match=r"set\.zip: neither a folder nor a zip"):
        read_label_set(file)


@pytest.mark.parametrize("packed", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_zip_packed_by_others_is_read_and_named_where_it_is_damaged(packed: int, tmp_path: Path) -> None:
    labels, file = written(tmp_path / "set"), tmp_path / "other.zip"
    with zipfile.ZipFile(file, "w", packed) as archive:
        for path in sorted((tmp_path / "set").rglob("*")):
            archive.write(path, path.relative_to(tmp_path / "set").as_posix())
        place = archive.getinfo("maps/a.png")
    assert read_label_set(file).identity == labels.identity
    content = bytearray(file.read_bytes())
    begin = place.header_offset + 30 + len(place.filename)
    for at in range(begin + 5, begin + 15):
        content[at] ^= 255
    file.write_bytes(content)
    with pytest.raises(DataError, match=r"other\.zip/maps/a\.png: cannot be read: the zip is damaged") as caught:
        read_label_set(file)
    assert "\n" not in str(caught.value)


def test_a_zip_that_grows_without_bound_is_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = pack_label_set(written(tmp_path / "set"), tmp_path / "set.zip")
    monkeypatch.setattr(label_maps, "_MOST_BYTES", 100)
    with pytest.raises(DataError, match=r"set\.zip/labels\.json: .* bytes; at most 100 are read"):
        read_label_set(file)


def test_the_folder_may_be_the_one_that_one_is_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    made = written(Path("."))
    assert read_label_set(tmp_path / "here").identity == made.identity
    assert [path.name for path in tmp_path.iterdir()] == ["here"]


def test_images_are_compared_with_their_maps(tmp_path: Path) -> None:
    labels = written(tmp_path / "set")
    items = []
    for name in ("a", "b"):
        Image.new("RGB", (4, 6)).save(tmp_path / f"{name}.png")
        items.append(Item(name, tmp_path / f"{name}.png", (0,)))
    assert [item.name for item in labels.check(items, CLASSES)] == ["a"]
    with pytest.raises(DataError, match="no map of a training image: it has a, the first of the split is b"):
        labels.check(items[1:], CLASSES)
    Image.new("RGB", (6, 4)).save(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"maps/a\.png: 4x6 pixels; its image .*a\.png has 6x4"):
        labels.check(items, CLASSES)
    for classes, said in (
        (("disc", "square"), "in another order"),
        (("square", "ring"), "disc is no class of the dataset"),
        ((*CLASSES, "ring"), "ring, a class of the dataset, is not among them"),
    ):
        with pytest.raises(DataError, match=f"classes: .*{said}"):
            labels.check(items, classes)
