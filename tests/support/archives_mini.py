"""Miniatures of the official archives: VOC 2012, SBD, COCO 2014, with the oddities of the real ones."""

from __future__ import annotations

import json
import tarfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from pycocotools import mask as rle
from scipy.io import savemat

from mcc_core.data.voc import palette

SIZE = (40, 30)  # width, height
TRAIN, VAL, TEST, SBD = ("t1", "t2"), ("v1", "v2"), ("x1",), ("s1", "s2", "v1")  # SBD holds one of VOC's val


def picture(path: Path, seed: str, size: tuple[int, int] = SIZE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(list(seed.encode()))
    small = Image.fromarray(rng.integers(0, 256, (5, 5, 3), dtype=np.uint8))
    small.resize(size).save(path)
    return path


def mask(path: Path, label: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = np.zeros((SIZE[1], SIZE[0]), np.uint8)
    content[5:20, 5:20], content[0] = label, 255
    image = Image.fromarray(content, mode="P")
    image.putpalette(palette())
    image.save(path)


def voc(root: Path) -> Path:
    """`VOCdevkit/VOC2012` of trainval, SBD's images and annotations in it, as in the real one."""
    home = root / "VOCdevkit" / "VOC2012"
    names = {**dict.fromkeys(TRAIN, "cat"), **dict.fromkeys(VAL, "dog"), **dict.fromkeys(SBD[:2], "person")}
    for name, label in names.items():
        picture(home / "JPEGImages" / f"{name}.jpg", name)
        second = "<object><name>chair</name><difficult>1</difficult></object>" if name == "t1" else ""
        xml = f"<annotation><object><name>{label}</name><difficult>0</difficult></object>{second}</annotation>"
        (home / "Annotations").mkdir(exist_ok=True)
        (home / "Annotations" / f"{name}.xml").write_text(xml)
    for name in (*TRAIN, *VAL):
        mask(home / "SegmentationClass" / f"{name}.png", 8)
    lists(home, {"train": TRAIN, "val": VAL})
    return home


def voc_test(root: Path) -> Path:
    """The test archive: images and the list alone."""
    home = root / "VOCdevkit" / "VOC2012"
    for name in TEST:
        picture(home / "JPEGImages" / f"{name}.jpg", name)
    lists(home, {"test": TEST})
    return home


def lists(home: Path, splits: dict[str, Sequence[str]]) -> None:
    folder = home / "ImageSets" / "Segmentation"
    folder.mkdir(parents=True, exist_ok=True)
    for split, names in splits.items():
        (folder / f"{split}.txt").write_text("".join(f"{name}\n" for name in names))


def sbd(root: Path) -> Path:
    """`benchmark_RELEASE/dataset/cls/*.mat`."""
    folder = root / "benchmark_RELEASE" / "dataset" / "cls"
    folder.mkdir(parents=True)
    for name in SBD:
        label = np.zeros((SIZE[1], SIZE[0]), np.uint8)
        label[3:9, 4:30] = 15
        kind = np.dtype([("Boundaries", object), ("Segmentation", object), ("CategoriesPresent", object)])
        content = np.empty((1, 1), kind)
        content[0, 0] = (np.zeros(1), label, np.array([15]))
        savemat(folder / f"{name}.mat", {"GTcls": content})
    return root / "benchmark_RELEASE"


def coco(root: Path) -> Path:
    """Two training images with objects, one without, two of val; a polygon in a polygon, a crowd as RLE."""
    categories = [{"id": 1, "name": "person"}, {"id": 90, "name": "toothbrush"}]
    width, height = SIZE
    outer, inner = [[2, 2, 30, 2, 30, 25, 2, 25]], [[10, 10, 20, 10, 20, 20, 10, 20]]
    crowd = np.zeros((height, width), np.uint8)
    crowd[26:, :] = 1
    packed = rle.encode(np.asfortranarray(crowd))
    runs = {"size": packed["size"], "counts": packed["counts"].decode()}
    for split, count in (("train", 3), ("val", 2)):
        images = [
            {"id": i, "file_name": f"COCO_{split}2014_{i:012d}.jpg", "width": width, "height": height}
            for i in range(1, count + 1)
        ]
        annotations = [
            {"id": 1, "image_id": 1, "category_id": 90, "segmentation": inner, "area": 100, "iscrowd": 0},
            {"id": 2, "image_id": 1, "category_id": 1, "segmentation": outer, "area": 644, "iscrowd": 0},
            {"id": 3, "image_id": 2, "category_id": 1, "segmentation": runs, "area": 160, "iscrowd": 1},
        ]
        for one in annotations:
            one["bbox"] = [0, 0, 1, 1]
        for image in images:
            picture(root / f"{split}2014" / str(image["file_name"]), f"{split}{image['id']}")
        (root / "annotations").mkdir(exist_ok=True)
        content = {"images": images, "annotations": annotations, "categories": categories}
        (root / "annotations" / f"instances_{split}2014.json").write_text(json.dumps(content))
    return root


def tar(folder: Path, target: Path) -> Path:
    """An archive of what is in a folder."""
    with tarfile.open(target, "w:gz" if target.suffix in {".tgz", ".gz"} else "w") as archive:
        for path in sorted(folder.iterdir()):
            archive.add(path, path.name)
    return target


def zipped(folder: Path, target: Path) -> Path:
    """A zip file that holds a folder."""
    with zipfile.ZipFile(target, "w") as archive:
        for path in sorted(folder.rglob("*")):
            archive.write(path, path.relative_to(folder.parent))
    return target
