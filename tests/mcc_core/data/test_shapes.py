"""Generated scenes: reproducible to the byte, whole or absent, with exact masks and what makes them hard."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from mcc_core.config import DataConfig
from mcc_core.data import shapes
from mcc_core.data.index import build_index
from mcc_core.data.pixels import read_mask
from mcc_core.data.voc import read_labels, read_split
from mcc_core.errors import DataError


def _config(**changes: object) -> DataConfig:
    fields = {"name": "shapes", "train_split": "train", "shapes_train": 8, "shapes_val": 4, "shapes_size": 64}
    return DataConfig.model_validate({**fields, **changes})


def _bytes(root: Path) -> dict[str, str]:
    files = sorted(path for path in root.rglob("*") if path.is_file())
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_same_seed_same_bytes_in_any_folder(tmp_path: Path) -> None:
    first, second = shapes.ensure(_config(), tmp_path / "a"), shapes.ensure(_config(), tmp_path / "b")
    assert first != second and first.name == second.name
    assert _bytes(first) == _bytes(second)
    assert len(_bytes(first)) == 3 * 12 + 4  # images, masks, annotations; two splits, class names, the record


def test_a_scene_is_a_function_of_seed_and_number_alone(tmp_path: Path) -> None:
    few = _bytes(shapes.ensure(_config(), tmp_path))
    more = _bytes(shapes.ensure(_config(shapes_train=10), tmp_path))
    other = _bytes(shapes.ensure(_config(shapes_seed=1), tmp_path))
    images = [name for name in few if name.endswith(".jpg")]
    assert all(few[name] == more[name] for name in images)
    assert all(few[name] != other[name] for name in images)
    assert len(set(few[name] for name in images)) == len(images)


def test_it_is_read_as_a_voc_folder_and_labels_agree_with_masks(tmp_path: Path) -> None:
    index = build_index(_config(shapes_train=30), tmp_path)
    assert index.classes == shapes.CLASSES and len(index.classes) >= 6
    assert (len(index.train), len(index.val)) == (30, 4)
    root = index.train[0].image.parents[1]
    assert (root / "classes.txt").read_text().split() == ["background", *shapes.CLASSES]
    for item in (*index.train, *index.val):
        mask = read_mask(index.masks[item.name], len(index.classes))
        assert mask.shape == (64, 64)
        assert set(np.unique(mask).tolist()) - {0} == {label + 1 for label in item.labels}
        assert 1 <= len(item.labels) <= 3


def test_generated_once(tmp_path: Path) -> None:
    root = shapes.ensure(_config(), tmp_path)
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    assert shapes.ensure(_config(), tmp_path) == root
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before


def test_a_folder_of_ones_own(tmp_path: Path) -> None:
    own = tmp_path / "mine"
    own.mkdir()
    assert shapes.ensure(_config(root=own), tmp_path / "home") == own
    assert read_split(own, "train") == [f"train_{i:05d}" for i in range(8)]
    assert not (tmp_path / "home").exists()
    with pytest.raises(DataError, match=r"mine: holds other shapes .*give another folder"):
        shapes.ensure(_config(root=own, shapes_seed=3), tmp_path / "home")


def test_other_split_names_make_another_folder(tmp_path: Path) -> None:
    plain, named = shapes.ensure(_config(), tmp_path), shapes.ensure(_config(train_split="train_aug"), tmp_path)
    assert plain != named and len(read_split(named, "train_aug")) == 8
    with pytest.raises(DataError, match="a split is a plain name"):
        shapes.ensure(_config(train_split="../outside"), tmp_path)


def test_a_folder_in_use_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_text("mine")
    with pytest.raises(DataError, match=r"data.root: .*photos: is in use and holds no generated shapes"):
        shapes.ensure(_config(root=tmp_path / "photos"), tmp_path)
    assert [path.name for path in (tmp_path / "photos").iterdir()] == ["cat.jpg"]
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"file: the generated shapes cannot be written or read"):
        shapes.ensure(_config(root=tmp_path / "file"), tmp_path)


def test_a_killed_run_leaves_no_half_written_folder(tmp_path: Path) -> None:
    """Killed in the middle for real, then run again."""
    fields = _config(shapes_train=5000).model_dump_json()
    script = (
        "import sys; from pathlib import Path; from mcc_core.config import DataConfig; "
        "from mcc_core.data import shapes; "
        f"shapes.ensure(DataConfig.model_validate_json({fields!r}), Path(sys.argv[1]))"
    )
    process = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], cwd=Path(__file__).parents[3])
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("data/.shapes-*/JPEGImages/train_00003.jpg")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not list(tmp_path.glob("data/shapes-*"))
    root = shapes.ensure(_config(), tmp_path)
    assert len(read_split(root, "train")) == 8


def test_two_at_once_agree(tmp_path: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        roots = set(pool.map(lambda _: shapes.ensure(_config(), tmp_path), range(4)))
    assert len(roots) == 1
    assert os.listdir(tmp_path / "data") == [roots.pop().name]  # what the slower ones made is gone


def test_record_says_what_it_was_made_from(tmp_path: Path) -> None:
    record = json.loads((shapes.ensure(_config(), tmp_path) / "shapes.json").read_text())
    assert record == {"generator": shapes.VERSION, "splits": {"train": 8, "val": 4}, "size": 64, "seed": 0}


# --- what makes the scenes worth segmenting --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def scenes() -> list[tuple[np.ndarray, np.ndarray]]:
    return [shapes.scene(128, np.random.default_rng([0, 0, i])) for i in range(100)]


def test_sizes_and_class_balance(scenes: list[tuple[np.ndarray, np.ndarray]]) -> None:
    areas = [(mask == label).mean() for _, mask in scenes for label in np.unique(mask) if label]
    assert 0.1 < np.median(areas) < 0.25 and max(areas) < 0.45 and min(areas) > 0.01
    counts = np.bincount([label for _, mask in scenes for label in np.unique(mask)], minlength=9)[1:]
    assert counts.min() > 0.5 * counts.mean()
    assert {len(np.unique(mask)) - 1 for _, mask in scenes} == {1, 2, 3}
    assert 0.55 < np.mean([(mask == 0).mean() for _, mask in scenes]) < 0.85


def test_classes_that_share_a_body_differ_in_the_badge_alone() -> None:
    canvas = np.full((128, 128, 3), 128.0)
    for body in ("disc", "square", "triangle"):
        (one, a), (two, b) = (
            shapes._object(canvas, shapes.CLASSES.index(f"{kind}_{body}") + 1, np.random.default_rng(5))
            for kind in ("cross", "ring")
        )
        assert np.array_equal(a.region, b.region) and np.array_equal(a.badge, b.badge)
        differs = (one != two).any(-1)
        assert not differs[~a.badge].any()
        assert 0.02 < a.badge.sum() / a.region.sum() < 0.35  # small: a CAM that finds it misses the body


def test_every_object_can_be_recognised() -> None:
    occluded = 0
    for i in range(60):
        rng = np.random.default_rng(i)
        canvas, mask = np.zeros((96, 96, 3)), np.zeros((96, 96), np.uint8)
        drawn: list[shapes._Drawn] = []
        for label in (1, 4, 7):
            _, new = shapes._object(canvas, label, rng)
            after = np.where(new.region, label, mask)
            if shapes._recognisable(after, drawn):
                mask = after
                drawn.append(new)
        for one in drawn:
            here = mask == one.label
            assert here.sum() >= shapes.VISIBLE * one.region.sum()
            assert (here & one.badge).sum() >= shapes.BADGE_VISIBLE * one.badge.sum()
            occluded += here.sum() < one.region.sum()
    assert occluded > 10  # objects do cover one another


def test_distractors_wear_colours_of_bodies(scenes: list[tuple[np.ndarray, np.ndarray]]) -> None:
    """Colour alone must not separate objects from background: some background is nearer a body's colour than most."""
    means = np.array([np.mean(body.colours, axis=0) for body in shapes._BODIES.values()])
    background = np.concatenate([image[mask == 0][::37] for image, mask in scenes]).astype(float)
    objects = np.concatenate([image[mask > 0][::37] for image, mask in scenes]).astype(float)
    nearest = [np.linalg.norm(x[:, None] - means, axis=-1).min(1) for x in (background, objects)]
    assert (nearest[0] < np.median(nearest[1])).mean() > 0.05


def test_annotations_hold_class_names(tmp_path: Path) -> None:
    root = shapes.ensure(_config(), tmp_path)
    names = [shapes.CLASSES[label] for label in read_labels(root, "train_00000", shapes.CLASSES)]
    text = (root / "Annotations" / "train_00000.xml").read_text()
    assert names and all(f"<name>{name}</name>" in text for name in names)
