"""A user's own folder: every file is taken, or counted with the reason; masks and labels agree; bits are kept."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from mcc_core.config import DataConfig
from mcc_core.data.index import build_index
from mcc_core.data.pixels import read_mask, read_rgb
from mcc_core.data.prepare import Prepared, finish
from mcc_core.data.prepare_folder import draft_folder
from mcc_core.errors import DataError


def picture(path: Path, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (20, 24, 3), np.uint8)).save(path)
    return path


def table(folder: Path, text: str) -> Path:
    file = folder / "labels.csv"
    file.write_text("image,labels\n" + text)
    return file


def own(folder: Path, labels: Sequence[str], numbers: Sequence[int], **options: Any) -> Prepared:
    """Images `i.png` with labels, and masks of which a corner has the number."""
    rows = []
    for i, (label, number) in enumerate(zip(labels, numbers, strict=True)):
        picture(folder / "images" / f"{i}.png", i)
        mask = np.zeros((20, 24), np.uint8)
        mask[:5, :5] = number
        (folder / "masks").mkdir(exist_ok=True)
        Image.fromarray(mask).save(folder / "masks" / f"{i}.png")
        rows.append(f"{i}.png,{label}\n")
    made = draft_folder(
        folder / "images", table=table(folder, "".join(rows)), masks=folder / "masks", val_share=0.5, **options
    )
    return finish(made, folder / "out")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('a.png,"dog,bird"\n', "line 2: 'dog,bird': put `;` between several labels, not ','"),
        ("a.png,cat|dog\n", "line 2: 'cat|dog': put `;` between several labels, not '|'"),
        ("a.png,cat\n./a.png,dog\n", "line 3: a.png is there twice"),
        ("a.png,cat\nsub/../a.png,dog\n", "expected a path inside the images' folder"),
        ("sub\\\\a.png,cat\n", "expected `/` between a folder and a file"),
        ('a.png,"cat\n', "not CSV; is a quotation mark not closed?"),
    ],
)
def test_a_table_says_what_is_wrong_in_which_line(tmp_path: Path, text: str, expected: str) -> None:
    picture(tmp_path / "a.png")
    with pytest.raises(DataError) as caught:
        draft_folder(tmp_path, table=table(tmp_path, text))
    assert expected in str(caught.value) and "labels.csv" in str(caught.value)


def test_a_second_column_of_labels_is_refused(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    file = tmp_path / "t.csv"
    file.write_text("image,labels,labels\na.png,cat,dog\n")
    with pytest.raises(DataError, match="line 1: the column labels is there twice"):
        draft_folder(tmp_path, table=file)


def test_images_that_the_table_lacks_are_counted(tmp_path: Path) -> None:
    for i in range(8):
        picture(tmp_path / "images" / f"{i}.png", i)
    made = draft_folder(
        tmp_path / "images", table=table(tmp_path, "".join(f"{i}.png,cat\n" for i in range(6))), val_share=0.5
    )
    assert "left out: 2 files (not in labels.csv), such as 6.png" in made.notes


def test_everything_in_the_folders_is_taken_or_counted(tmp_path: Path) -> None:
    for i in range(8):
        picture(tmp_path / ("cat" if i % 2 else "dog") / f"{i}.png", i)
    picture(tmp_path / "loose.png")
    picture(tmp_path / "cat" / "deep" / "x.png")
    picture(tmp_path / "__MACOSX" / "cat" / "._1.png")
    for name in ("a.gif", "b.avif", "notes.txt"):
        (tmp_path / "dog" / name).write_bytes(b"x")
    shutil.copy(picture(tmp_path / "j.jpg", 9), tmp_path / "cat" / "j.jfif")
    made = draft_folder(tmp_path, val_share=0.5)
    assert made.classes == ("cat", "dog") and len(made.entries) == 9 and "cat-j" in made.entries
    notes = "\n".join(made.notes)
    assert "left out: 2 files (in no folder that names a class), such as j.jpg" in notes
    assert "left out: 1 files (in a folder within a class's folder), such as cat/deep/x.png" in notes
    assert "left out: 1 files (left by a system), such as __MACOSX/cat/._1.png" in notes
    assert "left out: 3 files (none of .jpg .jpeg .jfif" in notes and "such as dog/a.gif" in notes
    every = sum(1 for p in tmp_path.rglob("*") if p.is_file())
    assert every == len(made.entries) + 2 + 1 + 1 + 3


@pytest.mark.parametrize("inside", ["", "cat"])
def test_folders_of_splits_are_no_classes(tmp_path: Path, inside: str) -> None:
    for i, split in enumerate(("train", "val")):
        picture(tmp_path / split / inside / f"{i}.png", i)
    remedy = f"give one whose folders are classes, such as {tmp_path / 'train'}, or " if inside else "give "
    with pytest.raises(DataError) as caught:
        draft_folder(tmp_path)
    assert f"its folders are train, val: splits, not classes; {remedy}--labels TABLE.csv" in str(caught.value)


def test_masks_that_belong_to_no_image_are_refused(tmp_path: Path) -> None:
    for i in range(4):
        picture(tmp_path / "images" / "cat" / f"{i}.png", i)
    picture(tmp_path / "masks" / "other.png")
    with pytest.raises(
        DataError, match=r"no mask is named as an image is: expected cat-0.png and so on, found 1 files"
    ):
        draft_folder(tmp_path / "images", masks=tmp_path / "masks")
    with pytest.raises(DataError, match=r"--masks .*nowhere: no such folder"):
        draft_folder(tmp_path / "images", masks=tmp_path / "nowhere")


def test_foreground_of_255_is_no_foreground(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no mask has a class: all 6 have 0 and 255, which is not scored: foreground"):
        own(tmp_path, ["cat"] * 6, [255] * 6)


def test_masks_in_another_order_than_the_labels_are_refused_with_the_remedy(tmp_path: Path) -> None:
    labels = ["dog", "cat", "bird"] * 4
    numbers = [1, 2, 3] * 4  # dog, cat, bird; sorted they are bird, cat, dog
    with pytest.raises(DataError) as caught:
        own(tmp_path, labels, numbers)
    assert "8 of 12 masks have a class that their image is not labelled with" in str(caught.value)
    assert "1 is dog, not bird, 3 is bird, not dog; --classes FILE with dog, cat, bird" in str(caught.value)
    shutil.rmtree(tmp_path / "out", ignore_errors=True)
    made = own(tmp_path, labels, numbers, classes=["dog", "cat", "bird"])
    assert not [note for note in made.notes if "mask" in note]


def test_some_masks_that_contradict_their_labels_are_counted(tmp_path: Path) -> None:
    made = own(tmp_path, ["cat"] * 6 + ["dog"] * 6, [1] * 6 + [2] * 4 + [1, 0])
    notes = "\n".join(made.notes)
    assert "1 of 12 masks have a class that their image is not labelled with, such as cat in" in notes
    assert "1 masks of labelled images have no class, such as" in notes


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_sixteen_bits_are_scaled(tmp_path: Path, suffix: str) -> None:
    ramp = np.linspace(0, 65535, 24 * 20).reshape(20, 24).astype(np.uint16)
    Image.fromarray(ramp).save(tmp_path / f"x{suffix}")
    read = read_rgb(tmp_path / f"x{suffix}")
    assert np.abs(read.astype(int) - (ramp / 257.0)[..., None]).max() <= 0.5 and read.max() == 255 and read.min() == 0


def test_floating_point_is_scaled_from_one_or_refused(tmp_path: Path) -> None:
    ramp = np.linspace(0, 1, 24 * 20, dtype=np.float32).reshape(20, 24)
    Image.fromarray(ramp).save(tmp_path / "x.tif")
    assert np.abs(read_rgb(tmp_path / "x.tif").astype(int) - (ramp * 255)[..., None]).max() <= 0.5
    for wrong in (ramp * 300, ramp - 1, np.full_like(ramp, np.nan)):
        Image.fromarray(wrong).save(tmp_path / "x.tif")
        with pytest.raises(DataError, match=r"x.tif: floating point from .*; expected 0 to 1"):
            read_rgb(tmp_path / "x.tif")
    Image.fromarray(ramp.astype(np.int32)).save(tmp_path / "x.tif")
    with pytest.raises(DataError, match=r"x.tif: 32-bit whole numbers; expected 8 or 16 bits"):
        read_rgb(tmp_path / "x.tif")


def test_scaled_images_are_told_and_deep_masks_refused(tmp_path: Path) -> None:
    for i in range(8):
        ramp = np.random.default_rng(i).integers(0, 65535, (20, 24)).astype(np.uint16)
        (tmp_path / "images" / "cat").mkdir(parents=True, exist_ok=True)
        Image.fromarray(ramp).save(tmp_path / "images" / "cat" / f"{i}.png")
    made = finish(draft_folder(tmp_path / "images", val_share=0.5), tmp_path / "out")
    assert "8 images have more than 8 bits a channel, scaled to 8, such as cat-6" in made.notes
    with pytest.raises(DataError, match=r"0.png: 16-bit grey; a mask is a palette or grey PNG of 8 bits"):
        read_mask(tmp_path / "images" / "cat" / "0.png", 3)


def test_what_reading_leaves_out_of_images_is_told(tmp_path: Path) -> None:
    folder = tmp_path / "images" / "cat"
    for i in range(8):
        picture(folder / f"{i}.png", i)
    rgba = np.random.default_rng(9).integers(0, 255, (20, 24, 4), np.uint8)
    page = Image.fromarray(rgba[..., :3])
    page.save(folder / "pages.tif", save_all=True, append_images=[page.rotate(180)])
    Image.fromarray(rgba).save(folder / "clear.png")
    rgba[..., 3] = 255
    Image.fromarray(rgba).save(folder / "opaque.png")
    page.quantize(8).save(folder / "key.png", transparency=0)
    cv2.imwrite(str(folder / "deep.png"), rgba[..., :3].astype(np.uint16) * 257)
    made = finish(draft_folder(tmp_path / "images", val_share=0.5), tmp_path / "out")
    told = [note for note in made.notes if note[0].isdigit()]
    assert [note.rpartition(", such as ")[0] for note in told] == [
        "1 images have more than 8 bits a channel, scaled to 8",
        "1 images have several pages or frames, of which the first is read",
        "2 images have transparent pixels, whose stored colours are read",
    ]
    assert told[0].endswith("cat-deep") and told[1].endswith("cat-pages")
    assert np.array_equal(read_rgb(folder / "pages.tif"), np.array(page))
    again = finish(draft_folder(tmp_path / "images", val_share=0.5), tmp_path / "out")  # as it is remembered
    assert [note for note in again.notes if note[0].isdigit()] == told


def test_columns_of_a_table_that_are_not_read_are_told(tmp_path: Path) -> None:
    for i in range(8):
        picture(tmp_path / f"{i}.png", i)
    file = tmp_path / "t.csv"
    file.write_text("image,split,labels,\n" + "".join(f"{i}.png,train,cat,\n" for i in range(8)))
    made = draft_folder(tmp_path, table=file, val_share=0.5)
    assert made.notes[0] == "left out: 2 columns of t.csv (split, one without a name): image and labels are read"


@pytest.mark.parametrize(
    ("content", "expected"),
    [(b"<html>", "it is no image, or one of a kind that is not read"), (b"", "it is empty")],
)
def test_what_is_no_image_is_said_in_plain_words(tmp_path: Path, content: bytes, expected: str) -> None:
    (tmp_path / "x.png").write_bytes(content)
    with pytest.raises(DataError, match=expected):
        read_rgb(tmp_path / "x.png")


def test_class_folders_may_be_links_and_a_circle_ends(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for name in ("cat", "dog"):
        (tmp_path / "real" / name).mkdir(parents=True)
        for number in range(8):
            Image.new("RGB", (8, 8), (number, 0, 0)).save(tmp_path / "real" / name / f"{number}.png")
        (tmp_path / "images" / name).symlink_to(tmp_path / "real" / name)
    (tmp_path / "real" / "cat" / "again").symlink_to(tmp_path / "real" / "cat")
    draft = draft_folder(tmp_path / "images", val_share=0.5)
    assert draft.classes == ("cat", "dog") and len(draft.entries) == 16


def test_a_path_of_the_table_with_blanks_before_it_stays_inside(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("image,labels\n /etc/hostname,dog\n")
    with pytest.raises(DataError, match=r"t.csv: line 2: '/etc/hostname': expected a path inside"):
        draft_folder(tmp_path, table=tmp_path / "t.csv")


@pytest.mark.parametrize(
    ("numbers", "expected"),
    [((255, 255), "foreground seems to be 255"), ((2, 1), "1 is dog, not cat, 2 is cat, not dog")],
)
def test_a_folder_in_voc_layout_is_held_to_the_same(tmp_path: Path, numbers: tuple[int, int], expected: str) -> None:
    names = [f"{label}{i}" for i in range(4) for label in ("cat", "dog")]
    for i, name in enumerate(names):
        picture(tmp_path / "JPEGImages" / f"{name}.jpg", i)
        (tmp_path / "Annotations").mkdir(exist_ok=True)
        xml = f"<annotation><object><name>{name[:3]}</name></object></annotation>"
        (tmp_path / "Annotations" / f"{name}.xml").write_text(xml)
        mask = np.zeros((20, 24), np.uint8)
        mask[:5] = numbers[name.startswith("dog")]
        (tmp_path / "SegmentationClass").mkdir(exist_ok=True)
        Image.fromarray(mask).save(tmp_path / "SegmentationClass" / f"{name}.png")
    splits = tmp_path / "ImageSets" / "Segmentation"
    splits.mkdir(parents=True)
    (splits / "train.txt").write_text("\n".join(names[:2]))
    (splits / "val.txt").write_text("\n".join(names[2:]))
    config = DataConfig(name="voc", root=tmp_path, classes=("cat", "dog"), train_split="train", val_split="val")
    for _ in range(2):  # the second time by what was remembered
        with pytest.raises(DataError) as caught:
            build_index(config, tmp_path / "home")
        assert expected in str(caught.value)
