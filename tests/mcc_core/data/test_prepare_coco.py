"""Preparing COCO: masks follow their annotations alone, and every form that an annotation may not have is named."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import archives_mini as mini
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as rle

from mcc_core.config import DataConfig
from mcc_core.data.coco_outlines import Outline, OutlineError, is_empty, label_map, read_outline
from mcc_core.data.index import build_index
from mcc_core.data.pixels import read_mask
from mcc_core.data.prepare import Prepared, finish
from mcc_core.data.prepare_coco import draft_coco
from mcc_core.errors import DataError

WIDTH, HEIGHT = mini.SIZE
Content = dict[str, list[dict[str, Any]]]


def prepared(tmp_path: Path, source: str = "coco", *, skip_broken: bool = False) -> Prepared:
    draft = draft_coco([tmp_path / source], tmp_path / "out", skip_broken=skip_broken)
    return finish(draft, tmp_path / "out", skip_broken=skip_broken)


def instances(root: Path, split: str = "train") -> Path:
    return root / "annotations" / f"instances_{split}2014.json"


def changed(file: Path, change: Callable[[Content], object]) -> None:
    """Rewrite an instances file."""
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def mask_of(made: Prepared, name: str) -> np.ndarray:
    return read_mask(made.file.parent / str(made.index.images[name].mask), 254)


def test_masks_are_those_of_this_preparation_whatever_lies_there(tmp_path: Path) -> None:
    """Another preparation with the same file names, and annotations that are older than its masks."""
    first = prepared(tmp_path, str(mini.coco(tmp_path / "coco").name))
    name = first.index.splits["train"][0]
    other = mini.coco(tmp_path / "other")
    square = [[0, 0, 4, 0, 4, 4, 0, 4]]
    changed(instances(other), lambda c: [one.update(segmentation=square) for one in c["annotations"][:2]])
    os.utime(instances(other), (0, 0))
    second = prepared(tmp_path, "other")
    assert (mask_of(second, name) > 0).sum() == 16 and (mask_of(first, name) > 0).sum() == 644
    alone = finish(draft_coco([other], tmp_path / "alone"), tmp_path / "alone")
    assert [one.mask_digest for one in second.index.images.values()] == [
        one.mask_digest for one in alone.index.images.values()
    ]
    times = {file: file.stat().st_mtime_ns for file in (tmp_path / "out" / "masks").rglob("*.png")}
    prepared(tmp_path, "other")
    assert times == {file: file.stat().st_mtime_ns for file in (tmp_path / "out" / "masks").rglob("*.png")}


def test_another_dataset_in_the_folder_is_said(tmp_path: Path) -> None:
    mini.coco(tmp_path / "coco")
    assert not any("replaces" in note for note in prepared(tmp_path).notes)
    assert not any("replaces" in note for note in prepared(tmp_path).notes)
    for split in ("train", "val"):
        changed(instances(tmp_path / "coco", split), lambda c: c["categories"][0].update(name="robot"))
    assert (
        f"{tmp_path / 'out' / 'index.json'}: replaces one of coco with 4 images, 2 classes" in prepared(tmp_path).notes
    )


def test_classes_that_differ_in_case_are_said(tmp_path: Path) -> None:
    root = mini.coco(tmp_path / "coco")
    for split in ("train", "val"):
        changed(instances(root, split), lambda c: c["categories"].append({"id": 91, "name": "Tooth brush"}))
    assert "classes 'toothbrush' and 'Tooth brush' are two; is one of them a slip?" in prepared(tmp_path).notes


def renamed(root: Path, split: str, number: int, name: str) -> None:
    folder = root / f"{split}2014"
    (folder / name).parent.mkdir(exist_ok=True)
    content = json.loads(instances(root, split).read_text())
    (folder / content["images"][number]["file_name"]).rename(folder / name)
    content["images"][number]["file_name"] = name
    instances(root, split).write_text(json.dumps(content))


def test_files_of_one_name_are_kept_apart(tmp_path: Path) -> None:
    root = mini.coco(tmp_path / "coco")
    for split, number, name in (("train", 0, "a.png"), ("train", 1, "sub/a.jpg"), ("val", 0, "a.png")):
        renamed(root, split, number, name)
    made = prepared(tmp_path)
    assert made.index.splits["train"] == ("train-a-png", "train-sub-a-jpg")
    assert made.index.splits["val"] == ("val-a-png", "COCO_val2014_000000000002")
    assert (mask_of(made, "train-a-png") > 0).sum() == 644 and mask_of(made, "train-sub-a-jpg")[28, 5] == 1
    index = build_index(DataConfig(name="voc", root=tmp_path / "out", train_split="train"), tmp_path / "home")
    assert len({item.image for item in (*index.train, *index.val)}) == 4


def test_two_records_of_one_file_are_named(tmp_path: Path) -> None:
    root = mini.coco(tmp_path / "coco")
    changed(instances(root), lambda c: c["images"][1].update(file_name=c["images"][0]["file_name"]))
    with pytest.raises(DataError, match=r"instances_train2014.json: images 1 and 2 are both .*0001.jpg; --skip-broken"):
        prepared(tmp_path)


def test_the_same_picture_in_both_splits_is_named_with_both_paths(tmp_path: Path) -> None:
    root = mini.coco(tmp_path / "coco")
    val = root / "val2014" / "COCO_val2014_000000000001.jpg"
    (root / "train2014" / "COCO_train2014_000000000001.jpg").write_bytes(val.read_bytes())
    with pytest.raises(DataError, match=r"same picture in train and val: .*train2014_0+1.jpg and .*val2014_0+1.jpg"):
        prepared(tmp_path)
    made = prepared(tmp_path, skip_broken=True)
    assert made.index.splits["train"] == ("COCO_train2014_000000000002",) and len(made.index.splits["val"]) == 2


def test_two_instances_files_that_differ_are_refused(tmp_path: Path) -> None:
    for name in ("coco", "other"):
        mini.coco(tmp_path / name)
    sources = [tmp_path / "coco", tmp_path / "other"]
    assert any("images are those of" in note for note in draft_coco(sources, tmp_path / "out").notes)
    changed(instances(tmp_path / "other"), lambda c: c["annotations"].pop())
    with pytest.raises(DataError, match=r"coco/.*and .*other/.*: two instances_train2014.json that differ"):
        draft_coco(sources, tmp_path / "out")


def test_what_is_left_out_is_counted(tmp_path: Path) -> None:
    root = mini.coco(tmp_path / "coco")
    mini.picture(root / "train2014" / "more.jpg", "more")
    changed(instances(root), lambda c: c["annotations"][0].update(segmentation=[]))
    changed(instances(root), lambda c: c["annotations"][2].update(category_id=91))
    for split in ("train", "val"):
        changed(instances(root, split), lambda c: c["categories"].append({"id": 91, "name": "background"}))
    made = prepared(tmp_path)
    assert made.index.classes == ("person", "toothbrush")
    assert [made.index.images[name].labels for name in made.index.splits["train"]] == [(0,)]
    notes = "\n".join(made.notes)
    assert "left out 1 objects whose segmentation is empty, such as annotation 1" in notes
    assert "left out 1 objects of the category background, such as annotation 3" in notes
    assert "train: left out 2 images without an object, such as COCO_train2014_000000000002.jpg" in notes
    assert f"lacks, such as {root / 'train2014' / 'more.jpg'}" in notes and "train: left out 1 files" in notes


def test_boxes_alone_teach_no_masks(tmp_path: Path) -> None:
    root = mini.coco(tmp_path / "coco")
    changed(instances(root), lambda c: [one.update(segmentation=[]) for one in c["annotations"]])
    with pytest.raises(DataError, match=r"train2014.json: no image has an object with an outline: nothing to learn"):
        prepared(tmp_path)


def categories(count: int) -> Callable[[Content], object]:
    return lambda c: c["categories"].extend({"id": 100 + i, "name": f"c{i}"} for i in range(count - 2))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (categories(255), "categories: found 255, expected 1 to 254"),
        (lambda c: c.update(categories=[]), "categories: found 0, expected 1 to 254"),
        (lambda c: c["categories"][1].update(name="person"), "categories: name 'person' is there 2 times"),
        (lambda c: c["categories"][1].update(id=1), "categories: id 1 is there 2 times"),
        (lambda c: c["categories"][1].pop("name"), "category 90: name: missing; expected the name of a class"),
        (lambda c: c.pop("annotations"), "annotations: missing; expected a list"),
        (lambda c: c.update(images={}), "images: an object with nothing in it; expected a list"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_before_a_mask_is_drawn(
    tmp_path: Path, change: Callable[[Content], object], message: str
) -> None:
    changed(instances(mini.coco(tmp_path / "coco")), change)
    with pytest.raises(DataError, match=f"instances_train2014.json: {message}") as caught:
        prepared(tmp_path, skip_broken=True)
    assert len(str(caught.value).splitlines()) == 1
    assert not list((tmp_path / "out").rglob("*.png"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"line 1, column 1: not valid JSON \(it ends early\)"),
        ('{"images": [', r"line 1, column 13: not valid JSON \(it ends early\)"),
        ("<html>", "line 1, column 1: not valid JSON"),
        ('{"images": [],\n "categories": [], "images": []}', r"line 2: 'images' is there twice \(first in line 1\)"),
        ('{"images": ' + "9" * 5000 + "}", "a number of more than 4,300 digits"),
        ("[" * 100_000, "nested too deeply"),
    ],
)
def test_a_file_that_is_no_json_is_one_line(tmp_path: Path, text: str, message: str) -> None:
    instances(mini.coco(tmp_path / "coco")).write_text(text)
    with pytest.raises(DataError, match=f"instances_train2014.json: (not valid JSON: )?{message}") as caught:
        prepared(tmp_path)
    assert len(str(caught.value).splitlines()) == 1


RUNS = {"size": [HEIGHT, WIDTH], "counts": [HEIGHT * WIDTH - 9, 9]}


@pytest.mark.parametrize(
    ("kind", "field", "value", "message"),
    [
        ("images", "file_name", None, "image 1: file_name: missing; expected the name of a file"),
        ("images", "width", -4, "image 1: width: -4; expected a whole number of pixels"),
        ("images", "height", 1.5, "image 1: height: 1.5; expected a whole number"),
        ("images", "width", 10**7, "image 1: 10000000x30 pixels; at most 64,000,000 are read"),
        ("images", "id", 2, "image 2: the id is there twice"),
        ("images", "id", 77, "annotation 1: image_id: 1; expected the id of an image"),
        ("annotations", "id", "x", "annotation number 0 from 0: id: 'x'; expected a whole number"),
        ("annotations", "id", 2, "annotation 2: the id is there twice"),
        ("annotations", "area", None, "annotation 1: area: missing; expected a finite number"),
        ("annotations", "area", float("nan"), "annotation 1: area: nan; expected a finite number"),
        ("annotations", "category_id", 55, "annotation 1: category_id: 55; expected the id of a category"),
        ("annotations", "image_id", 55, "annotation 1: image_id: 55; expected the id of an image"),
        ("annotations", "segmentation", None, "annotation 1: segmentation: missing; expected the object's outline"),
        ("annotations", "segmentation", False, "annotation 1: segmentation: false; expected polygons"),
        ("annotations", "segmentation", 7, "annotation 1: segmentation: 7; expected polygons"),
        ("annotations", "segmentation", "abc", "annotation 1: segmentation: 'abc'; expected polygons"),
        ("annotations", "segmentation", [1, 2, 3, 4], "annotation 1: segmentation: four numbers, a box; expected"),
        ("annotations", "segmentation", [1, 2, 3, 4, 5, 6], "annotation 1: segmentation: 6 numbers in one list"),
        ("annotations", "segmentation", [[1, 2], [3, 4], [5, 6]], "segmentation: 3 pairs of points; expected"),
        ("annotations", "segmentation", [[[1, 2], [3, 4], [5, 6]]], "segmentation: a polygon of 3 pairs of points"),
        ("annotations", "segmentation", [[1, 2, 3, 4]], r"no part of three points or more \(4 numbers, a box\?\)"),
        ("annotations", "segmentation", [[1, 2, 3, 4, 5, 6, 7]], "a polygon of 7 numbers, which are no pairs"),
        ("annotations", "segmentation", [[1, 2, 3, 4, 5, "6"]], "segmentation: '6' in a polygon"),
        ("annotations", "segmentation", [[1, 2, 3, 4, 5, float("inf")]], "a polygon with inf as y in an image 30 high"),
        ("annotations", "segmentation", [[1, 2, 3, 4, 500, 6]], "a polygon with 500 as x in an image 40 wide"),
        ("annotations", "segmentation", {}, "segmentation: an object with nothing in it; expected"),
        ("annotations", "segmentation", RUNS | {"size": [30, 50]}, r"an RLE of 30x50 \(height x width\), .* 30x40"),
        ("annotations", "segmentation", RUNS | {"counts": [5]}, "an RLE whose counts are not those of 30x40 pixels"),
        ("annotations", "segmentation", RUNS | {"counts": [-1, 1201]}, "counts are not those of 30x40 pixels"),
        ("annotations", "segmentation", RUNS | {"counts": []}, "counts are not those of 30x40 pixels"),
        ("annotations", "segmentation", RUNS | {"counts": ""}, "counts are not those of 30x40 pixels"),
        ("annotations", "segmentation", RUNS | {"counts": "€"}, "an RLE whose counts are '€'"),
    ],
)
def test_a_broken_record_is_named_and_its_image_left_out(
    tmp_path: Path, kind: str, field: str, value: object, message: str
) -> None:
    file = instances(mini.coco(tmp_path / "coco"))
    changed(file, lambda c: c[kind][0].update({field: value}) if value is not None else c[kind][0].pop(field))
    with pytest.raises(DataError, match=message) as caught:
        prepared(tmp_path)
    assert all(line.startswith(f"{file}: ") for line in str(caught.value).splitlines() if not line.startswith("and "))
    assert str(caught.value).endswith("; --skip-broken leaves such images out")
    changed(file, lambda c: c["annotations"].append(c["annotations"][2] | {"id": 9, "image_id": 3}))
    made = prepared(tmp_path, skip_broken=True)
    assert made.problems and "COCO_train2014_000000000003" in made.index.splits["train"]
    build_index(DataConfig(name="voc", root=tmp_path / "out", train_split="train"), tmp_path / "home")


def test_a_part_that_encloses_nothing_is_left_out_alone(tmp_path: Path) -> None:
    file = instances(mini.coco(tmp_path / "coco"))
    whole = mask_of(prepared(tmp_path), "COCO_train2014_000000000001")
    changed(file, lambda c: c["annotations"][1]["segmentation"].append([1, 2, 30, 29]))
    made = prepared(tmp_path)
    assert np.array_equal(mask_of(made, "COCO_train2014_000000000001"), whole)
    assert "train: 1 parts of outlines have fewer than three points and are not drawn" in made.notes


numbers = st.integers(-(2**40), 2**40) | st.floats() | st.floats(-20, 60)
json_values = st.recursive(
    st.none() | st.booleans() | numbers | st.text(max_size=9),
    lambda inner: (
        st.lists(inner, max_size=8)
        | st.lists(st.lists(st.integers(0, 25), min_size=6, max_size=6), max_size=2)
        | st.dictionaries(st.sampled_from(["size", "counts", "x"]), inner | st.just([HEIGHT, WIDTH]), max_size=3)
    ),
    max_leaves=20,
)


@settings(deadline=None)
@given(json_values)
def test_any_segmentation_is_drawn_or_refused_in_a_line(segmentation: object) -> None:
    try:
        outline = read_outline(segmentation, HEIGHT, WIDTH)
    except OutlineError as error:
        assert str(error) and "\n" not in str(error)
        return
    assert label_map([(3, outline)], HEIGHT, WIDTH).shape == (HEIGHT, WIDTH)
    assert not is_empty(segmentation)


@settings(deadline=None)
@given(st.integers(1, 12), st.integers(1, 12), st.data())
def test_every_form_of_an_rle_draws_the_mask_that_it_encodes(height: int, width: int, data: st.DataObject) -> None:
    flat = data.draw(st.lists(st.booleans(), min_size=height * width, max_size=height * width))
    mask = np.asfortranarray(np.array(flat, np.uint8).reshape(height, width))
    packed = rle.encode(mask)["counts"].decode()
    edges = np.flatnonzero(np.diff(mask.ravel(order="F"), prepend=0, append=2 if mask.size else 0))
    runs = np.diff(np.concatenate([[0], edges])).tolist()
    outlines = [read_outline({"size": [height, width], "counts": c}, height, width) for c in (packed, runs)]
    assert outlines[0].counts == tuple(runs) and np.array_equal(label_map([(1, outlines[0])], height, width), mask)
    assert outlines[1] == outlines[0] != Outline()


def test_a_mask_of_another_size_than_its_picture_is_named(tmp_path: Path) -> None:
    root = mini.coco(tmp_path / "coco")
    Image.new("RGB", (20, 20)).save(root / "train2014" / "COCO_train2014_000000000001.jpg")
    with pytest.raises(DataError, match="40x30 pixels, its image has 20x20"):
        prepared(tmp_path)


def test_another_year_or_no_folder_is_named(tmp_path: Path) -> None:
    root = mini.coco(tmp_path / "coco")
    instances(root).rename(root / "annotations" / "instances_train2017.json")
    with pytest.raises(DataError, match=r"train2014.json: not found in .*\(there: .*instances_train2017.json"):
        prepared(tmp_path)
    (tmp_path / "file").touch()
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(DataError, match=r"--out .*file.*: (is a file|Not a directory); expected a folder"):
            draft_coco([root], out)


def test_nothing_left_says_why(tmp_path: Path) -> None:
    root = mini.coco(tmp_path / "coco")
    changed(instances(root), lambda c: [one.update(segmentation=[1, 2, 3, 4]) for one in c["annotations"]])
    with pytest.raises(DataError, match=r"annotation 1: .* a box(.|\n)*no readable image is left in train"):
        prepared(tmp_path, skip_broken=True)
