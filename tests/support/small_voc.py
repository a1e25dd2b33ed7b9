"""A small folder in VOC layout, written by hand: what the reader must cope with can be done to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from mcc_core.config import DataConfig
from mcc_core.data.voc import palette

CLASSES = ("cat", "dog", "tree")
TRAIN = {"a1": ("cat",), "a2": ("dog", "tree"), "a3": ()}
VAL = {"b1": ("cat", "dog"), "b2": ("tree",)}


def write(
    root: Path,
    train: Mapping[str, Sequence[str]] = TRAIN,
    val: Mapping[str, Sequence[str]] = VAL,
    size: tuple[int, int] = (40, 30),
) -> Path:
    """Random images of `size` (width, height) with annotations, masks and the splits `train` and `val`."""
    for folder in ("JPEGImages", "SegmentationClass", "Annotations", "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    (root / "classes.txt").write_text("\n".join(("background", *CLASSES)) + "\n")
    rng = np.random.default_rng(0)
    for split, images in (("train", train), ("val", val)):
        (root / "ImageSets" / "Segmentation" / f"{split}.txt").write_text("".join(f"{name}\n" for name in images))
        for name, labels in images.items():
            pixels = rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / "JPEGImages" / f"{name}.jpg")
            annotate(root, name, labels)
            write_mask(root / "SegmentationClass" / f"{name}.png", labels, size)
    return root


def annotate(root: Path, name: str, labels: Sequence[str]) -> None:
    objects = "".join(f"<object><name>{label}</name><difficult>1</difficult></object>" for label in labels)
    (root / "Annotations" / f"{name}.xml").write_text(f"<annotation>{objects}</annotation>")


def write_mask(path: Path, labels: Sequence[str], size: tuple[int, int]) -> None:
    mask = np.zeros((size[1], size[0]), np.uint8)
    for column, label in enumerate(labels):
        mask[:, column * 5 : column * 5 + 5] = CLASSES.index(label) + 1
    mask[0] = 255
    image = Image.fromarray(mask, mode="P")
    image.putpalette(palette())
    image.save(path)


def config(root: Path, **changes: object) -> DataConfig:
    fields = {"name": "voc", "root": root, "classes": root / "classes.txt", "train_split": "train", **changes}
    return DataConfig.model_validate(fields)
