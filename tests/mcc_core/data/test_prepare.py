"""Preparing VOC, COCO and folders from miniatures of the official archives; what is broken is named."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import archives_mini as mini
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from mcc_core.config import DataConfig
from mcc_core.data.archives import unpack
from mcc_core.data.index import build_index
from mcc_core.data.index_file import INDEX, IndexFile, read_index
from mcc_core.data.pixels import read_mask, read_rgb
from mcc_core.data.prepare import Prepared, changed_files, finish
from mcc_core.data.prepare_coco import draft_coco
from mcc_core.data.prepare_folder import draft_folder
from mcc_core.data.prepare_voc import draft_voc
from mcc_core.errors import DataError, MCCError
from orchestrator.cli.data import check


def prepared_voc(tmp_path: Path, **more: Any) -> Prepared:
    sources = [mini.voc(tmp_path / "a"), mini.sbd(tmp_path / "b"), mini.voc_test(tmp_path / "c")]
    return finish(draft_voc(sources, tmp_path / "out"), tmp_path / "out", **more)


def test_voc_from_folders(tmp_path: Path) -> None:
    made = prepared_voc(tmp_path)
    assert made.index.splits == {
        "train": ("t1", "t2"), "val": ("v1", "v2"), "train_aug": ("s1", "s2", "t1", "t2"), "test": ("x1",)
    }  # fmt: skip
    classes = made.index.classes
    named = {name: [classes[i] for i in entry.labels] for name, entry in made.index.images.items()}
    assert named["t1"] == ["cat", "chair"]  # the chair is a difficult one
    assert named["s1"] == ["person"] and named["x1"] == []
    sbd = read_mask(tmp_path / "out" / str(made.index.images["s1"].mask), 20)
    assert sbd[4, 5] == 15 and sbd[0, 0] == 0
    assert made.index.images["t1"].mask == str((tmp_path / "a/VOCdevkit/VOC2012/SegmentationClass/t1.png").resolve())
    assert any("train_aug: 4 images; the official data has 10582" in note for note in made.notes)


def test_archives_give_what_folders_give_and_a_killed_run_goes_on(tmp_path: Path) -> None:
    by_folder = prepared_voc(tmp_path)
    archives = [
        mini.tar(tmp_path / "a", tmp_path / "VOCtrainval.tar"),
        mini.tar(tmp_path / "b", tmp_path / "benchmark.tgz"),
        mini.tar(tmp_path / "c", tmp_path / "VOC2012test.tar"),
    ]
    out = tmp_path / "new"
    made = finish(draft_voc(archives, out), out)
    digests = {name: (one.digest, one.labels, one.mask_digest) for name, one in by_folder.index.images.items()}
    assert digests == {name: (one.digest, one.labels, one.mask_digest) for name, one in made.index.images.items()}
    # Killed in the middle: a half file, a half line in the journal, a mask not converted.
    (unpacked,) = (out / "unpacked").glob("VOCtrainval-*")
    (unpacked / ".unpacked").unlink()
    jpeg = unpacked / "VOCdevkit/VOC2012/JPEGImages/t1.jpg"
    jpeg.write_bytes(jpeg.read_bytes()[:100])
    next((out / "masks").glob("s1-*.png")).unlink()
    journal = out / ".examined.jsonl"
    journal.write_bytes(journal.read_bytes()[:-30])
    kept = (unpacked / "VOCdevkit/VOC2012/JPEGImages/t2.jpg").stat().st_mtime_ns
    again = finish(draft_voc(archives, out), out)
    assert again.index == made.index
    assert (unpacked / "VOCdevkit/VOC2012/JPEGImages/t2.jpg").stat().st_mtime_ns == kept


def test_the_trainer_reads_the_index(tmp_path: Path) -> None:
    made = prepared_voc(tmp_path)
    config = DataConfig(name="voc", root=tmp_path / "out")
    index = build_index(config, tmp_path / "home")
    assert [i.name for i in index.train] == ["s1", "s2", "t1", "t2"]
    assert set(index.masks) == set(made.index.images) - {"x1"}
    shutil.move(str(tmp_path), str(tmp_path.with_name(tmp_path.name + "-moved")))
    moved = tmp_path.with_name(tmp_path.name + "-moved")
    with pytest.raises(DataError, match=r"s1.jpg: No such file .* mcc data check"):  # VOC itself lay elsewhere
        build_index(config.model_copy(update={"root": moved / "out"}), moved / "home")


def test_cheating_is_stopped(tmp_path: Path) -> None:
    """A val image in the training list; the same picture under another name; in an unpacked folder as well."""
    made = prepared_voc(tmp_path)
    config, file = DataConfig(name="voc", root=tmp_path / "out"), tmp_path / "out" / INDEX
    content = json.loads(file.read_text())
    cheat = json.loads(file.read_text())
    cheat["splits"]["train_aug"].append("v1")
    file.write_text(json.dumps(cheat))
    with pytest.raises(DataError, match="'v1' is in both train_aug and val"):
        build_index(config, tmp_path / "home")
    stolen = Path(shutil.copy(content["images"]["v1"]["image"], tmp_path / "innocent.jpg"))
    content["images"]["copy"] = content["images"]["v1"] | {"image": str(stolen), "mask": None}
    content["splits"]["train_aug"].append("copy")
    file.write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"v1.jpg: the same picture as .*innocent.jpg, which is trained on"):
        build_index(config, tmp_path / "home")
    root = tmp_path / "a" / "VOCdevkit" / "VOC2012"
    for folder, suffix in (("JPEGImages", "jpg"), ("Annotations", "xml")):
        shutil.copy(root / folder / f"v1.{suffix}", root / folder / f"t1.{suffix}")
    with pytest.raises(DataError, match=r"v1.jpg: the same picture as .*t1.jpg"):
        build_index(DataConfig(name="voc", root=root, train_split="train"), tmp_path / "home")
    assert made.problems == ()


@pytest.mark.parametrize(
    "line", ['{"key": "x"}', "[]", "null", '{"key": [1], "found": {}}', '{"key": "KEY", "found": {}}']
)
def test_a_journal_that_is_not_ours_is_read_past(tmp_path: Path, line: str) -> None:
    made = prepared_voc(tmp_path)
    journal = tmp_path / "out" / ".examined.jsonl"
    key = json.loads(journal.read_text().splitlines()[0])["key"]
    with journal.open("a") as stream:
        stream.write(line.replace("KEY", key) + "\n")
    sources = [tmp_path / "a", tmp_path / "b", tmp_path / "c"]
    assert finish(draft_voc(sources, tmp_path / "out"), tmp_path / "out").index == made.index


def test_check_names_what_changed(tmp_path: Path) -> None:
    made = prepared_voc(tmp_path)
    assert changed_files(made.index, tmp_path / "out") == []
    root = tmp_path / "a" / "VOCdevkit" / "VOC2012"
    mini.picture(root / "JPEGImages" / "t1.jpg", "other")
    (root / "SegmentationClass" / "t2.png").unlink()
    lines = changed_files(made.index, tmp_path / "out")
    assert len(lines) == 2 and "t1.jpg: its content has changed" in lines[0] and "t2.png: No such file" in lines[1]


def test_coco_from_folders_and_zips(tmp_path: Path) -> None:
    root = mini.coco(tmp_path / "coco")
    made = finish(draft_coco([root], tmp_path / "out"), tmp_path / "out")
    assert made.index.classes == ("person", "toothbrush")
    train = made.index.splits["train"]
    assert len(train) == 2 and len(made.index.splits["val"]) == 2  # the one without objects is not trained on
    assert [made.index.images[name].labels for name in train] == [(0, 1), (0,)]
    label = read_mask(tmp_path / "out" / str(made.index.images[train[0]].mask), 2)
    assert label[15, 15] == 2 and label[5, 5] == 1 and label[28, 5] == 0  # the smaller one on top
    crowd = read_mask(tmp_path / "out" / str(made.index.images[train[1]].mask), 2)
    assert crowd[28, 5] == 1 and crowd[5, 5] == 0
    zips = tmp_path / "zips"
    zips.mkdir()
    for name in ("train2014", "val2014", "annotations"):
        mini.zipped(root / name, zips / f"{name}.zip")
    packed = finish(draft_coco([zips], tmp_path / "out2"), tmp_path / "out2")
    assert [one.mask_digest for one in packed.index.images.values()] == [
        one.mask_digest for one in made.index.images.values()
    ]


def test_masks_are_drawn_again_when_annotations_change(tmp_path: Path) -> None:
    root = mini.coco(tmp_path / "coco")
    made = finish(draft_coco([root], tmp_path / "out"), tmp_path / "out")
    file = root / "annotations" / "instances_train2014.json"
    content = json.loads(file.read_text())
    for annotation in content["annotations"]:
        annotation["category_id"] = content["categories"][1]["id"]
    file.write_text(json.dumps(content))
    again = finish(draft_coco([root], tmp_path / "out"), tmp_path / "out")
    name = again.index.splits["train"][0]
    assert again.index.images[name].labels == (1,)
    assert set(np.unique(read_mask(tmp_path / "out" / str(again.index.images[name].mask), 2))) == {0, 2}
    val = made.index.splits["val"][0]
    assert again.index.images[val] == made.index.images[val]


def folder_of(tmp_path: Path, rows: dict[str, str]) -> tuple[Path, Path, Path]:
    images, masks, table = tmp_path / "images", tmp_path / "masks", tmp_path / "labels.csv"
    for name in rows:
        mini.picture(images / name, name)
        mini.mask((masks / name).with_suffix(".png"), 1)
    with table.open("w", newline="") as stream:
        csv.writer(stream).writerows([("image", "labels"), *rows.items()])
    return images, masks, table


def test_a_folder_by_table_and_by_subfolders(tmp_path: Path) -> None:
    rows = {f"{i % 3}/{i}.png": "a;b" if i % 2 else "b" for i in range(40)}
    images, masks, table = folder_of(tmp_path, rows)
    made = finish(draft_folder(images, table=table, masks=masks), tmp_path / "out")
    assert made.index.classes == ("a", "b")
    assert made.index.images["1-1"].labels == (0, 1) and made.index.images["0-0"].labels == (1,)
    train, val = map(set, (made.index.splits["train"], made.index.splits["val"]))
    assert not train & val and len(train | val) == 40 and 2 <= len(val) <= 16
    by_folder = draft_folder(images, masks=masks, seed=1)
    assert by_folder.classes == ("0", "1", "2") and by_folder.entries["1-1"].labels == (1,)
    assert set(by_folder.splits["val"]) != val
    unmasked = draft_folder(images, table=table)
    assert len(unmasked.splits["val"]) == len(val) and "no masks" in unmasked.notes[0]
    with pytest.raises(DataError, match=r"no image is left for val: 0 of the 40 that can be held back"):
        draft_folder(images, table=table, val_share=0)


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def huge(path: Path) -> None:
    Image.new("1", (9000, 8000)).save(path, format="PNG")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (truncated, "cannot be read as an image"),
        (lambda path: path.write_bytes(b""), r"is empty \(0 bytes\)"),
        (lambda path: path.write_text("text"), "cannot be read as an image"),
        (huge, "9000x8000 pixels; at most 64,000,000 are read"),
        (lambda path: path.unlink(), "no such file"),
        (lambda path: mini.picture(path, "x", (20, 20)), "40x30 pixels, its image has 20x20"),
    ],
)
def test_broken_images_are_named_or_left_out(tmp_path: Path, spoil: Callable[[Path], Any], message: str) -> None:
    images, masks, table = folder_of(tmp_path, {f"{i}.png": "a" for i in range(12)})
    spoil(images / "3.png")
    with pytest.raises(DataError, match=message) as caught:
        finish(draft_folder(images, table=table, masks=masks), tmp_path / "out")
    assert "3.png" in str(caught.value) and not (tmp_path / "out" / INDEX).exists()
    made = finish(draft_folder(images, table=table, masks=masks), tmp_path / "out", skip_broken=True)
    assert len(made.index.images) == 11 and len(made.problems) == 1


def test_modes_and_rotation_are_read(tmp_path: Path) -> None:
    images, masks, table = folder_of(tmp_path, {f"{i}.png": "a" for i in range(8)})
    for name, mode in (("0", "RGBA"), ("1", "P"), ("2", "L"), ("3", "LA")):
        Image.open(images / f"{name}.png").convert(mode).save(images / f"{name}.png")
    rows = [("image", "labels"), *((f"{i}.png", "a") for i in range(8)), ("cmyk.jpg", "a"), ("turned.jpg", "a")]
    Image.new("CMYK", mini.SIZE).save(images / "cmyk.jpg")
    turned = Image.new("RGB", mini.SIZE, "red")
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(images / "turned.jpg", exif=exif)
    with table.open("w", newline="") as stream:
        csv.writer(stream).writerows(rows)
    made = finish(draft_folder(images, table=table, masks=masks), tmp_path / "out")
    assert made.index.images["turned"].size == mini.SIZE[::-1]
    for entry in made.index.images.values():
        assert read_rgb(tmp_path / "out" / entry.image).shape == (entry.size[1], entry.size[0], 3)


def test_archives_cannot_write_elsewhere_and_cut_ones_are_named(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "evil.tar", "w") as archive:
        entry = tarfile.TarInfo("../../outside.txt")
        entry.size = 2
        archive.addfile(entry, io.BytesIO(b"hi"))
    with pytest.raises(DataError, match=r"outside.txt: would be written outside the folder"):
        unpack(tmp_path / "evil.tar", tmp_path / "deep" / "er")
    assert not list(tmp_path.rglob("outside.txt"))
    mini.voc(tmp_path / "a")
    for name in ("cut.tar", "cut.tgz"):
        truncated(mini.tar(tmp_path / "a", tmp_path / name))
        with pytest.raises(DataError, match=f"{name}: damaged or cut short"):
            unpack(tmp_path / name, tmp_path / "out")
    truncated(mini.zipped(tmp_path / "a", tmp_path / "cut.zip"))
    with pytest.raises(DataError, match=r"cut.zip: damaged or cut short"):
        unpack(tmp_path / "cut.zip", tmp_path / "out")


@pytest.mark.parametrize(
    ("sources", "message"),
    [
        ([], "no JPEGImages in it"),
        (["nothing"], "no such file or folder"),
        (["note.txt"], "neither a folder nor an archive"),
    ],
)
def test_wrong_sources_are_named(tmp_path: Path, sources: list[str], message: str) -> None:
    (tmp_path / "note.txt").write_text("no archive")
    with pytest.raises(DataError, match=message):
        draft_voc([tmp_path / name for name in sources] or [tmp_path], tmp_path / "out")


names = st.text("abcdef", min_size=1, max_size=6)
entries = st.fixed_dictionaries(
    {
        "image": names,
        "bytes": st.integers(1, 10**9),
        "digest": st.text("0123456789abcdef", min_size=32, max_size=32),
        "size": st.tuples(st.integers(1, 9999), st.integers(1, 9999)),
        "labels": st.lists(st.integers(0, 2), max_size=3),
    }
)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(names, entries, min_size=1, max_size=4), st.data())
def test_an_index_is_read_as_written_or_refused_in_a_line(
    tmp_path: Path, images: dict[str, Any], data: st.DataObject
) -> None:
    content = {"source": "folder", "classes": ["a", "b", "c"], "splits": {"train": list(images)}, "images": images}
    text = json.dumps(content)
    (tmp_path / INDEX).write_text(text)
    assert read_index(tmp_path) == IndexFile.model_validate(content)
    at = data.draw(st.integers(0, len(text) - 1))
    spoiled = text[:at] + data.draw(st.sampled_from(["", '"', "{", "9", "null", "\0", "-1"])) + text[at + 1 :]
    (tmp_path / INDEX).write_text(spoiled)
    try:
        read_index(tmp_path)
    except MCCError as error:
        assert str(error).startswith(str(tmp_path / INDEX)) and "\n" not in str(error)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(max_size=60) | st.binary(max_size=60))
def test_any_table_is_read_or_refused_in_a_line(tmp_path: Path, body: str | bytes) -> None:
    head = b"image,labels\n"
    (tmp_path / "t.csv").write_bytes(head + (body if isinstance(body, bytes) else body.encode("utf-8", "replace")))
    try:
        draft_folder(tmp_path, table=tmp_path / "t.csv")
    except DataError as error:
        assert len(str(error).splitlines()) == 1


def test_pixels_of_a_written_mask_are_the_label(tmp_path: Path) -> None:
    made = prepared_voc(tmp_path)
    with Image.open(tmp_path / "out" / str(made.index.images["s2"].mask)) as image:
        assert image.mode == "P" and np.unique(np.asarray(image)).tolist() == [0, 15]


@pytest.mark.parametrize(("file", "content"), [("JPEGImages/t1.jpg", None), ("Annotations/t1.xml", "<annotation")])
def test_what_voc_lacks_is_named_or_left_out(tmp_path: Path, file: str, content: str | None) -> None:
    spoiled = mini.voc(tmp_path / "a") / file
    spoiled.write_text(content) if content else spoiled.unlink()
    with pytest.raises(DataError, match=rf"{file}: (no such file|line 1: not valid XML)"):
        finish(draft_voc([tmp_path / "a"], tmp_path / "out"), tmp_path / "out")
    made = finish(draft_voc([tmp_path / "a"], tmp_path / "out"), tmp_path / "out", skip_broken=True)
    assert made.index.splits["train"] == ("t2",) and len(made.problems) == 1  # once, though it is in two splits


def test_the_test_archive_may_come_first(tmp_path: Path) -> None:
    sources = [mini.voc_test(tmp_path / "c"), mini.sbd(tmp_path / "b"), mini.voc(tmp_path / "a")]
    made = finish(draft_voc(sources, tmp_path / "out"), tmp_path / "out")
    assert made.index.splits["train_aug"] == ("s1", "s2", "t1", "t2") and made.index.splits["test"] == ("x1",)


def spoiled_bytes(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[40:50] = bytes(byte ^ 0xFF for byte in content[40:50])
    path.write_bytes(content)


def encrypted(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[6] |= 1
    content[content.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("names", "spoil", "message"),
    [
        (("a",), spoiled_bytes, "damaged or cut short"),
        (("a",), encrypted, "a: is encrypted"),
        (("a", "a/b"), lambda path: None, "a/b: is a file and a folder in it"),
    ],
)
def test_zips_that_cannot_be_unpacked_are_one_line(
    tmp_path: Path, names: tuple[str, ...], spoil: Callable[[Path], None], message: str
) -> None:
    file = tmp_path / "x.zip"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in names:
            archive.writestr(name, "hello world " * 1000)
    spoil(file)
    with pytest.raises(DataError, match=rf"^.*x.zip: {message}.*$"):
        unpack(file, tmp_path / "out")


def test_two_archives_of_one_name_are_not_mixed(tmp_path: Path) -> None:
    """Nor two states of one archive, which have one path, one size and one time."""
    file = tmp_path / "data.zip"
    for text in ("one", "two"):
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr(zipfile.ZipInfo("a.txt"), text)
        os.utime(file, ns=(10**18, 10**18))
        folder = unpack(file, tmp_path / "out")
        assert (folder / "a.txt").read_text() == text
        (folder / "mine.txt").touch()
        assert unpack(file, tmp_path / "out") == folder == unpack(copied(file, tmp_path / text), tmp_path / "out")
        assert (folder / "mine.txt").exists()
    assert len(list((tmp_path / "out").iterdir())) == 2


def copied(file: Path, folder: Path) -> Path:
    folder.mkdir()
    return Path(shutil.copy(file, folder))


def linked(archive: tarfile.TarFile) -> None:
    entry = tarfile.TarInfo("a.jpg")
    entry.type, entry.linkname = tarfile.SYMTYPE, "b.jpg"
    archive.addfile(entry)


def twice(archive: tarfile.TarFile) -> None:
    for text in (b"ab", b"cd"):
        entry = tarfile.TarInfo("a.jpg")
        entry.size = 2
        archive.addfile(entry, io.BytesIO(text))


@pytest.mark.parametrize(("fill", "message"), [(linked, "is a link"), (twice, "is in it twice")])
def test_what_an_archive_would_lose_is_named(
    tmp_path: Path, fill: Callable[[tarfile.TarFile], None], message: str
) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        fill(archive)
    with pytest.raises(DataError, match=f"x.tar: a.jpg: {message}; give its unpacked folder"):
        unpack(tmp_path / "x.tar", tmp_path / "out")


def test_an_index_with_a_path_that_no_file_has_is_refused(tmp_path: Path) -> None:
    prepared_voc(tmp_path)
    file = tmp_path / "out" / INDEX
    content = json.loads(file.read_text())
    content["images"]["t1"]["image"] = "a\0b"
    file.write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"index.json: images.t1.image: "):
        read_index(tmp_path / "out")


def test_check_of_an_index_of_other_splits(tmp_path: Path) -> None:
    prepared_voc(tmp_path)
    file = tmp_path / "out" / INDEX
    content = json.loads(file.read_text())
    content["splits"] = {"mine": ["t1", "v1"], "test": ["x1"]}
    file.write_text(json.dumps(content))
    check(tmp_path / "out")
    content["images"]["x1"] = content["images"]["t1"]
    file.write_text(json.dumps(content))
    with pytest.raises(MCCError, match="t1 and x1: the same picture in mine and test"):
        check(tmp_path / "out")
