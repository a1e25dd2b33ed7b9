"""Generated scenes in VOC layout: data for learning, tests and the demo that needs no download.

A scene has one to three objects on a cluttered, textured background, one occluding another now and then. An object is
a body and, for most classes, a small badge. Two classes share each body, so that only the badge tells them apart:
a class activation map that looks for what discriminates covers the badge and misses the body. Plain distractors
wear the colours of bodies, so that colour alone does not make an object.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.sax.saxutils import escape

import numpy as np
from PIL import Image

from mcc_core.config import DataConfig
from mcc_core.data.voc import check_split_name, palette
from mcc_core.errors import DataError
from mcc_core.files import json_digest

VERSION = 2  # of the scenes: a change to the generator that changes a pixel changes this

_RECORD = "shapes.json"  # in the folder: what it was made from

Grid = np.ndarray  # H,W float
Pattern = Callable[[Grid, Grid], Grid]  # object coordinates in units of its radius to a mix of two colours in [0, 1]


@dataclass(frozen=True)
class _Body:
    outline: Pattern  # below 1 inside
    texture: Pattern
    colours: tuple[tuple[int, int, int], tuple[int, int, int]]


@dataclass(frozen=True)
class _Badge:
    colours: tuple[tuple[int, int, int], tuple[int, int, int]]
    texture: Pattern


def _disc(x: Grid, y: Grid) -> Grid:
    return np.hypot(x, y)


def _square(x: Grid, y: Grid) -> Grid:
    return np.maximum(abs(x), abs(y)) / 0.85


def _triangle(x: Grid, y: Grid) -> Grid:
    return np.maximum(y / 0.7, abs(x) * 1.25 - (y - 0.1) * 0.75)


def _star(x: Grid, y: Grid) -> Grid:
    return np.hypot(x, y) / (0.82 + 0.2 * np.cos(5 * np.arctan2(y, x)))


def _stripes(x: Grid, y: Grid) -> Grid:
    return (np.sin(x * 11) > 0).astype(float)


def _checker(x: Grid, y: Grid) -> Grid:
    return ((np.sin(x * 9) > 0) ^ (np.sin(y * 9) > 0)).astype(float)


def _dots(x: Grid, y: Grid) -> Grid:
    return (np.cos(x * 12) + np.cos(y * 12) > 0.9).astype(float)


def _cross(x: Grid, y: Grid) -> Grid:
    return (np.minimum(abs(x), abs(y)) < 0.3).astype(float)


def _ring(x: Grid, y: Grid) -> Grid:
    return (abs(np.hypot(x, y) - 0.6) < 0.25).astype(float)


_ORANGE, _BLUE, _GREEN = ((226, 140, 50), (160, 80, 20)), ((70, 120, 210), (30, 55, 130)), ((90, 170, 80), (40, 95, 45))
_BODIES = {
    "disc": _Body(_disc, _stripes, _ORANGE),
    "square": _Body(_square, _checker, _BLUE),
    "triangle": _Body(_triangle, _dots, _GREEN),
    "star": _Body(_star, _stripes, ((200, 60, 160), (120, 20, 90))),
    "moon": _Body(_disc, _dots, ((230, 215, 120), (150, 130, 40))),
}
_WHITE_RED = _Badge(((250, 250, 250), (215, 20, 30)), _cross)
_BLACK_CYAN = _Badge(((20, 20, 20), (40, 230, 230)), _ring)

# class: (body, badge)
_CLASSES: dict[str, tuple[str, _Badge | None]] = {
    "cross_disc": ("disc", _WHITE_RED),
    "ring_disc": ("disc", _BLACK_CYAN),
    "cross_square": ("square", _WHITE_RED),
    "ring_square": ("square", _BLACK_CYAN),
    "cross_triangle": ("triangle", _WHITE_RED),
    "ring_triangle": ("triangle", _BLACK_CYAN),
    "star": ("star", None),
    "moon": ("moon", None),
}
CLASSES = tuple(_CLASSES)

BADGE_RADIUS = 0.42  # of the body's radius
RADIUS = (0.19, 0.32)  # of the scene's side
DISTRACTORS = (2, 5)
VISIBLE = 0.35  # share of an object's pixels that must stay visible
BADGE_VISIBLE = 0.5  # share of its badge's pixels, without which nobody could name its class
OBJECTS = {1: 0.35, 2: 0.45, 3: 0.2}  # objects in a scene: probability


def ensure(config: DataConfig, home: Path) -> Path:
    """The folder of the scenes that `config` describes, generated if it is not there yet; whole or not at all.

    Raises DataError when `data.root` holds something else, or the folder cannot be written.
    """
    for split in (config.train_split, config.val_split):
        check_split_name(split)
    made = {
        "generator": VERSION,
        "splits": {config.train_split: config.shapes_train, config.val_split: config.shapes_val},
        "size": config.shapes_size,
        "seed": config.shapes_seed,
    }
    root = config.root or home / "data" / f"shapes-{json_digest(made, 10)}"
    try:
        if not root.is_dir() or not any(root.iterdir()):
            _generate(config, root, made)
        record = json.loads((root / _RECORD).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(
            f"data.root: {root}: is in use and holds no generated shapes; give an empty folder, or with images of your "
            "own data.name=voc too"
        ) from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"{root}: the generated shapes cannot be written or read: {reason}") from None
    if record != made:
        raise DataError(f"data.root: {root}: holds other shapes ({record}, wanted {made}); give another folder")
    return root


def _generate(config: DataConfig, root: Path, made: dict[str, object]) -> None:
    root.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f".{root.name}-", dir=root.parent))
    try:
        _write(config, unfinished)
        (unfinished / _RECORD).write_text(json.dumps(made) + "\n", encoding="utf-8")
        os.rename(unfinished, root)  # onto nothing or an empty folder
    except OSError:
        if not (root / _RECORD).is_file():  # another process may have been first
            raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _write(config: DataConfig, root: Path) -> None:
    for folder in ("JPEGImages", "SegmentationClass", "Annotations", "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True)
    os.chmod(root, 0o755)
    (root / "classes.txt").write_text("\n".join(("background", *CLASSES)) + "\n")
    colours = palette()
    for part, (split, count) in enumerate(
        ((config.train_split, config.shapes_train), (config.val_split, config.shapes_val))
    ):
        names = [f"{split}_{i:05d}" for i in range(count)]
        for i, name in enumerate(names):
            image, mask = scene(config.shapes_size, np.random.default_rng([config.shapes_seed, part, i]))
            Image.fromarray(image).save(root / "JPEGImages" / f"{name}.jpg", quality=92)
            labels = Image.fromarray(mask, mode="P")
            labels.putpalette(colours)
            labels.save(root / "SegmentationClass" / f"{name}.png")
            objects = "".join(f"<object><name>{escape(CLASSES[c - 1])}</name></object>" for c in np.unique(mask) if c)
            (root / "Annotations" / f"{name}.xml").write_text(f"<annotation>{objects}</annotation>\n")
        (root / "ImageSets" / "Segmentation" / f"{split}.txt").write_text("\n".join(names) + "\n")


def scene(size: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """One scene: image size,size,3 uint8 and labels size,size uint8 (0 background, 1.. classes)."""
    canvas = _background(size, rng)
    for _ in range(rng.integers(*DISTRACTORS)):
        _distract(canvas, rng)
    mask = np.zeros((size, size), np.uint8)
    count = rng.choice(list(OBJECTS), p=list(OBJECTS.values()))
    drawn: list[_Drawn] = []
    for label in rng.choice(len(CLASSES), size=count, replace=False) + 1:
        for _ in range(20):
            image, new = _object(canvas, int(label), rng)
            after = np.where(new.region, label, mask)
            if _recognisable(after, drawn):
                canvas, mask = image, after.astype(np.uint8)
                drawn.append(new)
                break
    shade = 1 + 0.15 * _noise(size, 3, rng)[..., None]
    noisy = canvas * shade + rng.normal(0, 5, canvas.shape)
    return np.clip(noisy, 0, 255).astype(np.uint8), mask


@dataclass(frozen=True)
class _Drawn:
    label: int
    region: np.ndarray  # H,W bool
    badge: np.ndarray  # the part of it that is badge; the whole region where there is none


def _recognisable(mask: np.ndarray, drawn: Sequence[_Drawn]) -> bool:
    """Whether enough of every object, and of its badge, can still be seen."""
    for shape in drawn:
        here = mask == shape.label
        if here.sum() < VISIBLE * shape.region.sum() or (here & shape.badge).sum() < BADGE_VISIBLE * shape.badge.sum():
            return False
    return True


def _object(canvas: np.ndarray, label: int, rng: np.random.Generator) -> tuple[np.ndarray, _Drawn]:
    name, badge = _CLASSES[CLASSES[label - 1]]
    body = _BODIES[name]
    size = len(canvas)
    radius = rng.uniform(*RADIUS) * size
    x, y = _coordinates(size, rng.uniform(0.6 * radius, size - 0.6 * radius, 2), radius, rng.uniform(-0.6, 0.6), rng)
    region = marked = body.outline(x, y) < 1
    out = _painted(canvas, region, body.texture(x + rng.uniform(-1, 1), y), body.colours, rng)
    if badge is not None:
        angle, reach = rng.uniform(0, 2 * np.pi), rng.uniform(0.0, 0.35)
        bx, by = (x - reach * np.cos(angle)) / BADGE_RADIUS, (y - reach * np.sin(angle)) / BADGE_RADIUS
        marked = (np.hypot(bx, by) < 1) & region
        out = _painted(out, marked, badge.texture(bx, by), badge.colours, rng)
    return out, _Drawn(label, region, marked)


def _distract(canvas: np.ndarray, rng: np.random.Generator) -> None:
    """A plain patch in the dull colours of a body, with no texture of its class and no badge."""
    size = len(canvas)
    body = list(_BODIES.values())[rng.integers(len(_BODIES))]
    radius = rng.uniform(0.06, 0.16) * size
    x, y = _coordinates(size, rng.uniform(0, size, 2), radius, rng.uniform(-3, 3), rng)
    region = (_square if rng.random() < 0.5 else _disc)(x, y) < 1
    dull = np.mean(body.colours, axis=0) * 0.5 + 60
    canvas[region] = dull + rng.normal(0, 10, 3)


def _coordinates(
    size: int, centre: np.ndarray, radius: float, angle: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    rows, columns = np.mgrid[0:size, 0:size]
    dx, dy = (columns - centre[0]) / radius, (rows - centre[1]) / radius
    stretch = rng.uniform(0.85, 1.18)
    cosine, sine = np.cos(angle), np.sin(angle)
    return (cosine * dx + sine * dy) * stretch, (cosine * dy - sine * dx) / stretch


def _painted(
    canvas: np.ndarray,
    region: np.ndarray,
    mix: np.ndarray,
    colours: tuple[tuple[int, int, int], tuple[int, int, int]],
    rng: np.random.Generator,
) -> np.ndarray:
    a, b = (np.array(colour) + rng.normal(0, 12, 3) for colour in colours)
    return np.where(region[..., None], a + (b - a) * mix[..., None], canvas)


def _background(size: int, rng: np.random.Generator) -> np.ndarray:
    """Two muted colours mixed by cloudy noise, with a faint texture of stripes or squares in places."""
    base, other = (rng.uniform(70, 190) + rng.normal(0, 18, 3) for _ in range(2))
    clouds = 0.5 + 0.5 * _noise(size, 6, rng)[..., None]
    rows, columns = np.mgrid[0:size, 0:size] / size
    angle, frequency = rng.uniform(0, np.pi), rng.uniform(30, 90)
    wave = np.sin((rows * np.sin(angle) + columns * np.cos(angle)) * frequency)
    where = _noise(size, 4, rng) > rng.uniform(-0.3, 0.5)
    return base + (other - base) * clouds + (18 * np.sign(wave) * where)[..., None]


def _noise(size: int, cells: int, rng: np.random.Generator) -> np.ndarray:
    """Smooth noise in [-1, 1]: a few random cells enlarged bicubically."""
    coarse = Image.fromarray(rng.uniform(-1, 1, (cells, cells)).astype(np.float32))
    return np.clip(np.asarray(coarse.resize((size, size), Image.Resampling.BICUBIC)), -1, 1)
