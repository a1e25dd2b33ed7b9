"""Reading splits, annotations, class files, images and masks, and what is said of those a user got wrong."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import small_voc
from PIL import Image

from mcc_core.data.pixels import read_mask, read_rgb
from mcc_core.data.voc import VOC_CLASSES, palette, read_class_file, read_labels, read_split
from mcc_core.errors import DataError


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return small_voc.write(tmp_path / "voc")


def _split(root: Path, text: str | bytes) -> None:
    path = root / "ImageSets" / "Segmentation" / "train.txt"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())


def test_palette_is_the_one_of_voc() -> None:
    colours = np.array(palette()).reshape(256, 3)
    assert colours[0].tolist() == [0, 0, 0]
    assert colours[1].tolist() == [128, 0, 0]  # aeroplane
    assert colours[15].tolist() == [192, 128, 128]  # person
    assert colours[20].tolist() == [0, 64, 128]  # tvmonitor
    assert colours[255].tolist() == [224, 224, 192]  # the border
    assert len({tuple(colour) for colour in colours}) == 256
    assert len(VOC_CLASSES) == 20


def test_split_ignores_blank_lines_byte_order_mark_and_line_ends(root: Path) -> None:
    _split(root, b"\xef\xbb\xbfa1\r\n\r\n  a2 \r\n")
    assert read_split(root, "train") == ["a1", "a2"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no ids in it"),
        ("\n\n", "no ids in it"),
        ("a1\na2\na1\n", "'a1': listed 2 times"),
        ("a1\n../b1\n", "line 2: '../b1'"),
        ("a1\n/etc/passwd\n", "line 2: '/etc/passwd'"),
        ("..\n", "line 1: '..'"),
        ("a\\b\n", "expected one id"),
        ("a\0b\n", "expected one id"),
        ("a1 1\n", "line 1: 'a1 1': expected one id"),
        ("a1.jpg\n", "expected the id without .jpg"),
        (b"\xff\xfe\x00", "cannot read the ids of split 'train'"),
    ],
)
def test_bad_split_is_named_with_its_line(root: Path, text: str | bytes, said: str) -> None:
    _split(root, text)
    with pytest.raises(DataError) as error:
        read_split(root, "train")
    assert said in str(error.value) and "train.txt" in str(error.value)
    assert "\n" not in str(error.value)


def test_missing_split_lists_those_there_are(root: Path) -> None:
    with pytest.raises(DataError, match=r"train_aug.txt: no such file.*splits there: train, val"):
        read_split(root, "train_aug")


@pytest.mark.parametrize("split", ["../val", "a/b", "", ".hidden"])
def test_split_names_cannot_leave_the_folder(root: Path, split: str) -> None:
    with pytest.raises(DataError, match="a split is a plain name"):
        read_split(root, split)


def test_labels_are_the_set_of_named_classes(root: Path) -> None:
    small_voc.annotate(root, "a1", ["tree", "cat", "tree", " dog\n"])
    assert read_labels(root, "a1", small_voc.CLASSES) == (0, 1, 2)
    assert read_labels(root, "a3", small_voc.CLASSES) == ()


def test_parts_of_an_object_are_not_objects(root: Path) -> None:
    xml = "<annotation><object><name>cat</name><part><name>head</name></part></object><source><name>x</name></source>"
    (root / "Annotations" / "a1.xml").write_text(xml + "</annotation>")
    assert read_labels(root, "a1", small_voc.CLASSES) == (0,)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"<annotation><object><name>cat</name></object>", "not valid XML"),
        (b"", "not valid XML"),
        (b"\xff\xd8\xff\xe0", "not valid XML"),
        (b"<annotation><object><name>horse</name></object></annotation>", "class 'horse' is not among data.classes"),
        (b"<annotation><object><name/></object></annotation>", "class '' is not among data.classes"),
        (
            b'<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]><annotation><object><name>&x;</name></object>'
            b"</annotation>",
            "document type declarations are not accepted",
        ),
        (b"<annotation>" + b" " * (1 << 20) + b"</annotation>", "larger than 1 MiB"),
    ],
)
def test_bad_annotation_is_named(root: Path, content: bytes, said: str) -> None:
    path = root / "Annotations" / "a1.xml"
    path.write_bytes(content)
    with pytest.raises(DataError) as error:
        read_labels(root, "a1", small_voc.CLASSES)
    assert str(error.value).startswith(f"{path}: ") and said in str(error.value)


def test_missing_annotation_says_what_it_is_for(root: Path) -> None:
    (root / "Annotations" / "a1.xml").unlink()
    with pytest.raises(DataError, match=r"a1.xml: No such file.*image-level labels"):
        read_labels(root, "a1", small_voc.CLASSES)


def test_class_file(tmp_path: Path) -> None:
    path = tmp_path / "classes.txt"
    path.write_bytes(b"\xef\xbb\xbfbackground\n\ncat\n dog \n")
    assert read_class_file(path) == ("cat", "dog")
    path.write_text("cat\ndog\ncat\n")
    with pytest.raises(DataError, match=r"classes.txt: expected 1 to 254 different class names"):
        read_class_file(path)
    path.write_text("background\n")
    with pytest.raises(DataError, match="found 0 names"):
        read_class_file(path)
    with pytest.raises(DataError, match=r"data.classes: .*nowhere.txt"):
        read_class_file(tmp_path / "nowhere.txt")


@pytest.mark.parametrize("mode", ["L", "CMYK", "RGB"])
def test_every_jpeg_mode_becomes_rgb(tmp_path: Path, mode: str) -> None:
    grey = Image.new("L", (20, 10), 100)
    grey.convert(mode).save(tmp_path / "x.jpg", quality=100)
    image = read_rgb(tmp_path / "x.jpg")
    assert image.shape == (10, 20, 3) and image.dtype == np.uint8
    assert np.abs(image.astype(int) - 100).max() <= 3


def test_exif_rotation_is_applied(tmp_path: Path) -> None:
    pixels = np.zeros((16, 32, 3), np.uint8)
    pixels[:, :16] = 255  # left half white
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned a quarter clockwise: the left half comes to the top
    Image.fromarray(pixels).save(tmp_path / "x.jpg", exif=exif, quality=100)
    image = read_rgb(tmp_path / "x.jpg")
    assert image.shape == (32, 16, 3)
    assert image[:14].min() > 200 and image[18:].max() < 50


def test_unreadable_image_is_named(tmp_path: Path) -> None:
    path = tmp_path / "x.jpg"
    for content in (b"", b"hello", b"\xff\xd8\xff\xe0 no more"):
        path.write_bytes(content)
        with pytest.raises(DataError) as error:
            read_rgb(path)
        assert str(error.value).startswith(f"{path}: cannot be read as an image: ")
        assert str(error.value).count(str(path)) == 1


def test_mask_keeps_labels_and_ignore(root: Path) -> None:
    mask = read_mask(root / "SegmentationClass" / "b1.png", 3)
    assert mask.shape == (30, 40) and mask.dtype == np.uint8
    assert (mask[0] == 255).all()
    assert (mask[1:, :5] == 1).all() and (mask[1:, 5:10] == 2).all() and (mask[1:, 10:] == 0).all()


def test_mask_of_the_wrong_kind(root: Path) -> None:
    path = root / "SegmentationClass" / "b1.png"
    with pytest.raises(DataError, match=r"b1.png: label 2 is out of range: there are 1 classes"):
        read_mask(path, 1)
    Image.new("RGB", (40, 30)).save(path)
    with pytest.raises(DataError, match=r"b1.png: colour; a mask is a palette or grey PNG of 8 bits"):
        read_mask(path, 3)
    path.write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"b1.png: cannot be read as a mask"):
        read_mask(path, 3)


def test_masks_of_four_bits_keep_their_numbers_and_jpeg_is_refused(tmp_path: Path) -> None:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 4, 1, 4, 0, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(b"\0\x01\x23"))
    (tmp_path / "m.png").write_bytes(b"\x89PNG\r\n\x1a\n" + head + pixels + chunk(b"IEND", b""))
    assert read_mask(tmp_path / "m.png", 20).tolist() == [[0, 1, 2, 3]]
    Image.new("L", (8, 8)).save(tmp_path / "j.png", format="JPEG")
    with pytest.raises(DataError, match=r"j.png: its content is JPEG, which changes class numbers"):
        read_mask(tmp_path / "j.png", 20)


def test_sixteen_bits_that_hold_few_values_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.full((4, 4), 200, np.uint16)).save(tmp_path / "x.png")
    with pytest.raises(DataError, match=r"x.png: 16 bits a pixel, but no value above 200"):
        read_rgb(tmp_path / "x.png")
