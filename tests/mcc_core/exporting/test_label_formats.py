"""Label maps in the formats of annotation tools and back: nothing lost, each mistake a line."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mcc_core.data.index import Item
from mcc_core.data.label_maps import LabelSet, LabelSetWriter, read_label_set
from mcc_core.errors import DataError, UsageError
from mcc_core.exporting.label_formats.base import Picture, Pictures, Reading
from mcc_core.exporting.label_formats.exchange import Corrected, corrected_labels, write_labels
from mcc_core.exporting.label_formats.formats import FORMATS, label_format
from mcc_core.exporting.label_formats.outlines import filled, outline, painted, regions

CLASSES = ("cat", "dog", "tree")
EACH = pytest.mark.parametrize("name", FORMATS)
LABEL = st.integers(1, 9).flatmap(
    lambda height: st.integers(1, 9).flatmap(
        lambda width: st.lists(
            st.sampled_from([0, 0, 1, 1, 2, 255]), min_size=height * width, max_size=height * width
        ).map(lambda values: np.array(values, np.uint8).reshape(height, width))
    )
)


def ring() -> np.ndarray:
    """A cat with a hole, in which a dog stands with open pixels; a tree whose parts meet at a corner."""
    label = np.zeros((14, 18), np.uint8)
    label[1:11, 1:11] = 1
    label[3:9, 3:9] = 0
    label[5:7, 5:8] = 2
    label[5, 5] = 255
    label[11:13, 12:14] = label[9:11, 14:16] = 3
    return label


@settings(max_examples=60, deadline=None)
@given(LABEL)
def test_outlines_give_exactly_their_regions(label: np.ndarray) -> None:
    shapes = []
    for region in regions(label, background=True):
        mask = filled(outline(region), *label.shape)
        height, width = region.mask.shape
        box = mask[region.top : region.top + height, region.left : region.left + width]
        assert (box == region.filled).all() and mask.sum() == region.filled.sum()
        shapes.append((region.label, mask))
    assert (painted(shapes, *label.shape) == label).all()


@EACH
@settings(max_examples=25, deadline=None)
@given(maps=st.lists(LABEL, min_size=1, max_size=3))
def test_nothing_is_lost_there_and_back(name: str, maps: list[np.ndarray]) -> None:
    pictures = [Picture(f"a{i}", f"a{i}.jpg", *label.shape) for i, label in enumerate(maps)]
    with tempfile.TemporaryDirectory() as folder:
        label_format(name).write(Path(folder), zip(pictures, maps, strict=True), CLASSES, "train")
        reading = Reading()
        back = {
            picture.name: label
            for picture, label in label_format(name).read(Path(folder), Pictures(pictures), CLASSES, reading)
        }
    assert not reading.problems
    for picture, label in zip(pictures, maps, strict=True):
        assert (back[picture.name] == label).all()


@pytest.fixture
def labels(tmp_path: Path) -> LabelSet:
    with LabelSetWriter(tmp_path / "labels", CLASSES, origin={"by": "hand"}) as writer:
        for number in range(3):
            writer.add(f"a{number}", np.roll(ring(), number, 1), np.full((14, 18), 0.6, np.float32))
        return writer.close()


@pytest.fixture
def items(tmp_path: Path) -> list[Item]:
    made = []
    for number in range(3):
        file = tmp_path / "photos" / ("x" if number else "y") / f"p{number}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((14, 18, 3), np.uint8)).save(file)
        made.append(Item(f"a{number}", file, (0,)))
    return made


def back(name: str, source: Path, labels: LabelSet, items: list[Item], out: Path, **more: Any) -> Corrected:
    return corrected_labels(source, label_format(name), out, classes=CLASSES, base=labels, items=items, **more)


def correct(name: str, folder: Path) -> None:
    """Call the cat of a1 a dog, in the form of each tool; of another image nothing is left in some."""
    if name == "voc":
        file = folder / "SegmentationClass" / "a1.png"
        with Image.open(file) as image:
            label = np.array(image)
        label[label == 1] = 2
        Image.fromarray(label, mode="L").save(file)
    elif name == "labelme":
        file = folder / "a1.json"
        content = json.loads(file.read_text())
        next(shape for shape in content["shapes"] if shape["label"] == "cat")["label"] = "dog"
        file.write_text(json.dumps(content))
        (folder / "a2.json").unlink()
    elif name == "coco":
        file = folder / "instances.json"
        content = json.loads(file.read_text())
        image = next(image["id"] for image in content["images"] if image["file_name"] == "x/p1.jpg")
        next(a for a in content["annotations"] if a["image_id"] == image and a["category_id"] == 1)["category_id"] = 2
        file.write_text(json.dumps(content))
    else:
        file = folder / "annotations.xml"
        tree = ElementTree.parse(file)
        shape = next(s for s in tree.iterfind("image[@name='x/p1.jpg']/mask") if s.get("label") == "cat")
        shape.set("label", "dog")
        tree.write(file)


@EACH
def test_what_was_corrected_is_what_differs(name: str, labels: LabelSet, items: list[Item], tmp_path: Path) -> None:
    written = write_labels(labels, items, label_format(name), tmp_path / "tool")
    assert written.images == 3 and written.notes and not written.without
    correct(name, tmp_path / "tool")
    made = back(name, tmp_path / "tool", labels, items, tmp_path / "new")
    cat = labels.label("a1") == 1
    assert made.changed == {"a1": int(cat.sum())} and made.same + made.kept == 2 and made.new == 0
    assert made.kept == (1 if name == "labelme" else 0)
    new = read_label_set(tmp_path / "new")
    assert (new.label("a1") == np.where(cat, 2, labels.label("a1"))).all()
    assert all((new.label(other) == labels.label(other)).all() for other in ("a0", "a2"))
    sure = new.confidence("a1")
    assert sure is not None and (sure[cat] == 1).all() and (abs(sure[~cat] - 0.6) < 0.01).all()
    assert new.identity != labels.identity and new.origin["of"] == labels.identity
    assert (new.origin["corrected"], new.origin["images"], new.supervision) == (name, 1, "weak")


def test_labels_of_images_alone_make_a_set(labels: LabelSet, items: list[Item], tmp_path: Path) -> None:
    write_labels(labels, items[:2], label_format("coco"), tmp_path / "tool")
    form = label_format("coco")
    made = corrected_labels(tmp_path / "tool", form, tmp_path / "new", classes=CLASSES, items=items, supervision="full")
    assert made.new == 2 and made.labels.supervision == "full" and set(made.labels.names) == {"a0", "a1"}
    with pytest.raises(UsageError, match="--of: is missing"):
        corrected_labels(tmp_path / "tool", form, tmp_path / "other", classes=CLASSES)


def spoil(name: str, folder: Path, how: str) -> None:
    """Make one mistake in an exported folder."""
    if name == "voc":
        file = folder / "SegmentationClass" / "a1.png"
        if how == "class":
            Image.fromarray(np.full((14, 18), 9, np.uint8)).save(file)
        elif how == "image":
            file.rename(file.with_name("b.png"))
            (folder / "ImageSets/Segmentation/train.txt").write_text("a0\nb\na2\n")
        elif how == "size":
            Image.fromarray(np.zeros((3, 4), np.uint8)).save(file)
        else:
            file.write_bytes(b"")
        return
    file = folder / {"labelme": "a1.json", "coco": "instances.json", "cvat": "annotations.xml"}[name]
    if how == "empty":
        file.write_bytes(b"")
        return
    text = file.read_text()
    changes = {
        "labelme": {
            "class": ('"cat"', '"cow"'),
            "image": ("p1.jpg", "b.jpg"),
            "size": ('"imageWidth": 18', '"imageWidth": 19'),
        },
        "coco": {"class": ('"cat"', '"cow"'), "image": ("p1.jpg", "b.jpg"), "size": ('"width": 18', '"width": 19')},
        "cvat": {
            "class": ('mask label="cat"', 'mask label="cow"'),
            "image": ("p1.jpg", "b.jpg"),
            "size": ('width="18" height="14"', 'width="19" height="14"'),
        },
    }[name][how]
    assert changes[0] in text
    if name == "labelme" and how == "image":
        file = file.rename(folder / "b.json")
    file.write_text(text.replace(*changes, 1))


SAID = {"class": "", "image": "no image of that name", "size": "14", "empty": "it is empty"}


@EACH
@pytest.mark.parametrize("how", SAID)
def test_each_mistake_is_one_line(name: str, how: str, labels: LabelSet, items: list[Item], tmp_path: Path) -> None:
    write_labels(labels, items, label_format(name), tmp_path / "tool")
    spoil(name, tmp_path / "tool", how)
    with pytest.raises(DataError) as error:
        back(name, tmp_path / "tool", labels, items, tmp_path / "new")
    said = str(error.value)
    assert "\n" not in said and str(tmp_path / "tool") in said and SAID[how] in said
    if how == "class":
        assert "expected one of cat, dog, tree" in said or "label 9 is out of range: there are 3 classes" in said
    assert not (tmp_path / "new").exists()
    if (name, how) in {("coco", "class"), ("coco", "empty"), ("cvat", "empty")}:
        return  # of the whole file
    made = back(name, tmp_path / "tool", labels, items, tmp_path / "new", skip_broken=True)
    assert len(made.problems) == 1 and made.kept == 1 and len(made.labels.names) == 3


def test_what_people_draw_is_read(items: list[Item], labels: LabelSet, tmp_path: Path) -> None:
    """Shapes that are not written but drawn: what has an area is, the rest is counted."""
    triangle = [[2.0, 2.0], [12.0, 2.0], [2.0, 12.0]]
    shapes = [
        {"label": "dog", "points": triangle, "shape_type": "polygon"},
        {"label": "tree", "points": [[0, 0], [2, 2]], "shape_type": "rectangle"},
        {"label": "tree", "points": [[15, 11], [17, 11]], "shape_type": "circle"},
        {"label": "cat", "points": [[0, 0], [9, 9]], "shape_type": "line"},
    ]
    content = {"shapes": shapes, "imagePath": "../photos/y/p0.jpg", "imageHeight": 14, "imageWidth": 18}
    (tmp_path / "tool").mkdir()
    (tmp_path / "tool" / "some.json").write_text(json.dumps(content))
    made = back("labelme", tmp_path / "tool", labels, items, tmp_path / "new")
    label = made.labels.label("a0")
    assert (label == 2).sum() == 45 and (label[:2, :2] == 3).all() and label[11, 16] == 3 and not (label == 1).any()
    (note,) = made.notes
    assert note.startswith("1 shapes left out, which cover no pixel of their image, such as ")
    assert note.endswith(f"{tmp_path / 'tool/some.json'}: shapes[3] (line)")
    xml = (
        "<annotations><image id='0' name='y/p0.jpg' width='18' height='14'>"
        "<box label='tree' xtl='0' ytl='0' xbr='6' ybr='4' z_order='1'/>"
        "<polygon label='dog' points='0,0;9,0;9,9;0,9' z_order='0'/>"
        "<polyline label='dog' points='0,0;9,0' z_order='0'/></image></annotations>"
    )
    (tmp_path / "drawn.xml").write_text(xml)
    made = back("cvat", tmp_path / "drawn.xml", labels, items, tmp_path / "cvat")
    label = made.labels.label("a0")
    assert (label[:4, :6] == 3).all() and (label == 2).sum() == 81 - 24
    assert made.notes[0].startswith("1 shapes left out, which cover no pixel")
    for folder in ("one", "two"):
        (tmp_path / "twice" / folder).mkdir(parents=True)
        Image.fromarray(ring()).save(tmp_path / "twice" / folder / "a0.png")
    with pytest.raises(DataError, match=r"two/a0.png: of the image a0, as .*/one/a0.png is: neither is read"):
        back("voc", tmp_path / "twice", labels, items, tmp_path / "newer")


def test_of_two_files_of_an_image_none_is_taken(items: list[Item], labels: LabelSet, tmp_path: Path) -> None:
    """Nobody can say which: a copy with an old state may come first."""
    write_labels(labels, items, label_format("labelme"), tmp_path / "tool")
    content = json.loads((tmp_path / "tool" / "a0.json").read_text())
    (tmp_path / "tool" / "a0 (copy).json").write_text(json.dumps(content | {"shapes": []}))
    made = back("labelme", tmp_path / "tool", labels, items, tmp_path / "new", skip_broken=True)
    assert len(made.problems) == 1 and made.kept == 1 and made.changed == {}
    assert (made.labels.label("a0") == labels.label("a0")).all()


def test_images_of_one_number_are_told_apart_by_their_names(
    items: list[Item], labels: LabelSet, tmp_path: Path
) -> None:
    """As where files of several tasks of CVAT are put together."""
    image = "<image id='0' name='{}' width='18' height='14'><box label='cat' xtl='0' ytl='0' xbr='2' ybr='2'/></image>"
    names = [item.image.name for item in items]
    text = "".join(image.format(name) for name in (names[0], names[1], names[0]))
    (tmp_path / "drawn.xml").write_text(f"<annotations>{text}</annotations>")
    made = back("cvat", tmp_path / "drawn.xml", labels, items, tmp_path / "new", skip_broken=True)
    assert set(made.changed) == {items[1].name} and len(made.problems) == 1 and made.kept == 2


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("labelme", {"label": "cat", "points": [[100, 100], [120, 100], [120, 120]]}),
        ("cvat", "<polygon label='cat' points='100,100;120,100;120,120'/>"),
        ("cvat", "<box label='cat' xtl='50' ytl='60' xbr='70' ybr='80'/>"),
        ("cvat", "<ellipse label='cat' cx='3' cy='3' rx='0' ry='0'/>"),
        ("coco", [[3, 3, 3, 3, 3, 3]]),
    ],
)
def test_a_shape_that_covers_no_pixel_is_counted(
    name: str, shape: Any, items: list[Item], labels: LabelSet, tmp_path: Path
) -> None:
    pytest.importorskip("pycocotools")
    if name == "cvat":
        (file := tmp_path / "drawn.xml").write_text(
            f"<annotations><image id='0' name='y/p0.jpg'>{shape}</image><track/></annotations>"
        )
    elif name == "labelme":
        (tmp_path / "tool").mkdir()
        (file := tmp_path / "tool" / "a0.JSON").write_text(json.dumps({"shapes": [shape], "imagePath": "y/p0.jpg"}))
    else:
        image = {"id": 1, "file_name": "y/p0.jpg", "width": 18, "height": 14}
        drawn = {"id": 7, "image_id": 1, "category_id": 1, "segmentation": shape, "bbox": [0, 0, 1, 1], "area": 1}
        content = {"images": [image], "annotations": [drawn | {"iscrowd": 0}], "categories": [{"id": 1, "name": "cat"}]}
        (file := tmp_path / "drawn.json").write_text(json.dumps(content))
    made = back(name, file.parent if name == "labelme" else file, labels, items, tmp_path / "new")
    assert not made.labels.label("a0").any()
    assert any(note.startswith("1 shapes left out, which cover no pixel of their image") for note in made.notes)
    assert name != "cvat" or made.notes[-1] == f"1 parts left out, which are no <image>, such as {file}: <track>"


def test_a_palette_that_is_numbered_anew_is_read_by_its_colours(
    items: list[Item], labels: LabelSet, tmp_path: Path
) -> None:
    write_labels(labels, items, label_format("voc"), tmp_path / "tool")
    file = tmp_path / "tool" / "SegmentationClass" / "a0.png"
    with Image.open(file) as image:
        numbers, shades = np.array(image), np.array(image.getpalette("RGB")).reshape(-1, 3)
    used = np.unique(numbers)[::-1]
    again = Image.fromarray(np.searchsorted(-used.astype(int), -numbers.astype(int)).astype(np.uint8), mode="P")
    again.putpalette(shades[used].ravel().tolist())
    again.save(file)
    made = back("voc", tmp_path / "tool", labels, items, tmp_path / "new")
    assert made.changed == {} and made.same == 3
    assert made.notes == (f"1 palettes read by their colours, whose numbers are others, such as {file}",)
    again.putpalette([*shades[used].ravel().tolist()[:-3], 1, 2, 3])  # one colour is of no class
    again.save(file)
    with pytest.raises(
        DataError, match=r"a0\.png: number \d+ has the colour of class \d+, and colour \(1, 2, 3\) is of"
    ):
        back("voc", tmp_path / "tool", labels, items, tmp_path / "newer")
    again.putpalette([value for value in range(256) for _ in range(3)])  # a grey ramp: by number
    again.save(file)
    if used.max() <= len(CLASSES):
        assert "a0" in back("voc", tmp_path / "tool", labels, items, tmp_path / "grey").changed


ODD_SHAPES: dict[str, tuple[dict[str, Any], str]] = {  # of LabelMe, and the line on it
    "far": ({"points": [[1e308, -1e308], [-1e308, 1e308], [3, 3]]}, "shapes\\[0\\]: a point that is no number, or far"),
    "nan": ({"points": [[float("nan"), 1], [2, 2], [3, 3]]}, r"points\[0\]\[0\]: nan: expected a finite number"),
    "kind": ({"points": [], "shape_type": "ellipse"}, r"shapes\[0\]\.shape_type: 'ellipse': expected 'polygon', "),
    "label": ({"points": [], "label": 3}, r"shapes\[0\]\.label: 3: expected text"),
}


@pytest.mark.parametrize("how", ODD_SHAPES)
def test_an_odd_shape_of_labelme_is_one_line(how: str, items: list[Item], labels: LabelSet, tmp_path: Path) -> None:
    shape, said = ODD_SHAPES[how]
    content = {"shapes": [{"label": "cat"} | shape], "imagePath": "y/p0.jpg"}
    (tmp_path / "a0.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=rf"^{tmp_path}/a0\.json: {said if how == 'far' else '.*' + said}") as error:
        back("labelme", tmp_path / "a0.json", labels, items, tmp_path / "new")
    assert "\n" not in str(error.value)


CORNERS = "ytl='0' xbr='4' ybr='4'"
BOX = "left='0' top='0' width='2' height='1'"


@pytest.mark.parametrize(
    ("shape", "said"),
    [
        (f"<box label='cat' xtl='nan' {CORNERS}/>", "<box>: xtl: 'nan': expected a number"),
        (f"<box label='cat' xtl='inf' {CORNERS}/>", "<box>: xtl: 'inf': expected a number"),
        (f"<box label='cat' xtl='0' {CORNERS} rotation='x'/>", "<box>: rotation: 'x': expected a number"),
        (f"<box label='cat' {CORNERS}/>", "<box>: lacks 'xtl'"),
        ("<ellipse label='cat' cx='1' cy='1' rx='1e300' ry='1'/>", "<ellipse>: a point that is no number, or far"),
        ("<polygon label='cat' points='1e308,-1e308;-1e308,1e308;3,3'/>", "<polygon>: a point that is no number, or"),
        ("<polygon label='cat' points='a,b;c,d;e,f'/>", "<polygon>: its points are not three or more x,y"),
        (f"<mask label='cat' rle='x' {BOX}/>", "<mask>: rle: 'x': expected whole numbers"),
        (f"<mask label='cat' rle='9' {BOX}/>", "<mask>: runs of 9 pixels, expected 2x1"),
        ("<mask label='cat' rle='1' left='inf' top='0' width='1' height='1'/>", "<mask>: left: 'inf': expected a"),
        ("<mask label='cat' rle='1' left='0' top='0' width='-1' height='-1'/>", "<mask>: its box reaches outside"),
        (
            "<mask label='cat' rle='0, 1000000000000' left='0' top='0' width='1000000' height='1000000'/>",
            "<mask>: its box reaches outside",
        ),
    ],
)
def test_an_odd_shape_of_cvat_is_one_line(
    shape: str, said: str, items: list[Item], labels: LabelSet, tmp_path: Path
) -> None:
    file = tmp_path / "drawn.xml"
    file.write_text(f"<annotations><image id='0' name='y/p0.jpg'>{shape}</image></annotations>")
    with pytest.raises(DataError, match=rf"drawn\.xml: image 0: {said}") as error:
        back("cvat", file, labels, items, tmp_path / "new")
    assert "\n" not in str(error.value)


def test_text_of_another_encoding_is_named(items: list[Item], labels: LabelSet, tmp_path: Path) -> None:
    xml = '<?xml version="1.0" encoding="utf-16"?><!DOCTYPE a [<!ENTITY x "y">]><annotations><image/></annotations>'
    (tmp_path / "drawn.xml").write_bytes(xml.encode("utf-16"))
    with pytest.raises(DataError, match=r"drawn\.xml: not UTF-8 text; expected CVAT's"):
        back("cvat", tmp_path / "drawn.xml", labels, items, tmp_path / "new")
    (tmp_path / "tool").mkdir()
    Image.fromarray(ring()).save(tmp_path / "tool" / "a0.png")
    (tmp_path / "tool" / "labelmap.txt").write_bytes(b"caf\xe9:1,2,3::\n")
    with pytest.raises(DataError, match=r"labelmap\.txt: not UTF-8 text"):
        back("voc", tmp_path / "tool", labels, items, tmp_path / "new")


def test_no_file_of_a_folder_is_dropped_in_silence(items: list[Item], labels: LabelSet, tmp_path: Path) -> None:
    folder = tmp_path / "tool"
    folder.mkdir()
    for name in ("a0.png", "a1.PNG", "a2.jpg"):
        Image.fromarray(np.zeros((14, 18), np.uint8)).save(folder / name)
    made = back("voc", folder, labels, items, tmp_path / "new")
    assert set(made.changed) == {"a0", "a1"} and made.kept == 1
    assert made.notes == (f"1 files left out, which are no PNG, such as {folder / 'a2.jpg'}",)
    Image.fromarray(np.zeros((14, 18), np.uint8)).save(folder / "a1.png")
    with pytest.raises(DataError, match=r"a1\.PNG: a second map of one image"):
        back("voc", folder, labels, items, tmp_path / "newer")
    with pytest.raises(DataError, match=r"a0\.png: is a file; expected a folder"):
        back("voc", folder / "a0.png", labels, items, tmp_path / "newer")


def test_corrected_masks_stay_masks(items: list[Item], tmp_path: Path) -> None:
    with LabelSetWriter(tmp_path / "labels", CLASSES, supervision="full") as writer:
        writer.add("a0", ring())
        full = writer.close()
    write_labels(full, items, label_format("voc"), tmp_path / "tool")
    with pytest.raises(UsageError, match=r"--supervision weak: .*labels was made of masks that people drew"):
        back("voc", tmp_path / "tool", full, items, tmp_path / "new", supervision="weak")
    assert not (tmp_path / "new").exists()


def test_colour_masks_of_cvat_are_read(items: list[Item], labels: LabelSet, tmp_path: Path) -> None:
    folder = tmp_path / "tool"
    (folder / "SegmentationClass").mkdir(parents=True)
    (folder / "labelmap.txt").write_text("# label:color_rgb:parts:actions\nbackground:0,0,0::\ndog:9,8,7::\n")
    pixels = np.zeros((14, 18, 3), np.uint8)
    pixels[2:4] = (9, 8, 7)
    Image.fromarray(pixels).save(folder / "SegmentationClass" / "a0.png")
    label = back("voc", folder, labels, items, tmp_path / "new").labels.label("a0")
    assert (label[2:4] == 2).all() and (label == 2).sum() == 36 and (label != 2).sum() == (label == 0).sum()
    pixels[0, 0] = 1
    Image.fromarray(pixels).save(folder / "SegmentationClass" / "a0.png")
    with pytest.raises(DataError, match=r"a0\.png: colour \(1, 1, 1\) is of no class"):
        back("voc", folder, labels, items, tmp_path / "newer")


def test_a_folder_that_is_in_use_and_a_class_called_as_none_is_are_refused(
    labels: LabelSet, items: list[Item], tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="photos: is there already"):
        write_labels(labels, items, label_format("voc"), tmp_path / "photos")
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=r"--out .*file/out: cannot be made a folder: File exists"):
        write_labels(labels, items, label_format("voc"), tmp_path / "file" / "out")
    with pytest.raises(UsageError, match="--format vocc: not one of voc, coco, labelme, cvat"):
        label_format("vocc")
    with LabelSetWriter(tmp_path / "odd", ("cat", "__ignore__")) as writer:
        writer.add("a0", ring().clip(max=1))
    with pytest.raises(DataError, match="class '__ignore__': has the name that tools give"):
        write_labels(read_label_set(tmp_path / "odd"), items, label_format("cvat"), tmp_path / "tool")
    assert not (tmp_path / "tool").exists() and not list(tmp_path.glob(".tool*"))
    notes = write_labels(labels, items, label_format("labelme"), tmp_path / "tool").notes
    assert f"labelme {tmp_path / 'tool'} --labels" in notes[1]
    content = json.loads((tmp_path / "tool" / "a1.json").read_text())
    assert (tmp_path / "tool" / content["imagePath"]).resolve() == items[1].image
