"""Panels and overlays: what is drawn where."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mcc_core.data.voc import palette
from mcc_core.evaluation.visualize import cam_panel, colorize, heat, overlay

SIZE = 64
TILE, CAPTION, GAP = 192, 18, 4


def _panel(**changes: object) -> Image.Image:
    left = np.zeros((2, SIZE, SIZE), np.float32)
    left[1, :, : SIZE // 2] = 1
    fields: dict[str, object] = {
        "image": np.full((SIZE, SIZE, 3), 200, np.uint8),
        "maps": {"cam": left, "aux_cam": left[:, :, ::-1]},
        "pseudo_label": np.full((SIZE, SIZE), 255, np.uint8),
        "prediction": np.full((SIZE, SIZE), 1, np.uint8),
        "ground_truth": np.full((SIZE, SIZE), 2, np.uint8),
        "present": ["cat"],
    }
    return cam_panel(**{**fields, **changes})  # type: ignore[arg-type]


def _tile(panel: Image.Image, column: int) -> np.ndarray:
    x = column * (TILE + GAP)
    return np.asarray(panel)[CAPTION:, x : x + TILE]


def test_colorize_is_the_palette() -> None:
    mask = np.arange(256, dtype=np.uint8).reshape(16, 16)
    assert np.array_equal(colorize(mask).reshape(-1), np.array(palette()))


def test_panel_shows_each_stage_in_its_place() -> None:
    panel = _panel()
    assert panel.size == (6 * (TILE + GAP) - GAP, TILE + CAPTION) and TILE >= 160
    colours = np.array(palette()).reshape(256, 3)
    assert (_tile(panel, 0) == 200).all()
    for column, label in ((3, 255), (4, 1), (5, 2)):
        assert (_tile(panel, column) == colours[label]).all()
    for column, hot, cold in ((1, slice(0, 60), slice(-60, None)), (2, slice(-60, None), slice(0, 60))):
        tile = _tile(panel, column).astype(int)
        assert (tile[:, hot, 0] > tile[:, hot, 2] + 30).all()  # red where the strongest class is sure
        assert (tile[:, cold, 2] > tile[:, cold, 0] + 30).all()  # blue where no class is


def test_panel_without_ground_truth_is_shorter() -> None:
    assert _panel(ground_truth=None).width == 5 * (TILE + GAP) - GAP


def test_every_tile_has_a_caption_and_long_ones_stay_in_their_tile() -> None:
    names = [f"class number {i}" for i in range(40)]
    panel = np.asarray(_panel(present=names)).min(-1) < 128
    for column in range(6):
        x = column * (TILE + GAP)
        assert panel[:CAPTION, x : x + TILE].sum() > 20
        if column:
            assert not panel[:CAPTION, x - GAP : x].any()
    assert (np.asarray(_panel(present=[])).min(-1) < 128)[:CAPTION, :TILE].any()


def test_panel_keeps_the_shape_of_the_image() -> None:
    shape = (30, 60)
    panel = _panel(
        image=np.zeros((*shape, 3), np.uint8),
        maps=dict.fromkeys(("cam", "aux_cam"), np.zeros((2, *shape), np.float32)),
        pseudo_label=np.zeros(shape, np.uint8),
        prediction=np.zeros(shape, np.uint8),
        ground_truth=None,
    )
    assert panel.height == TILE // 2 + CAPTION


@pytest.mark.parametrize("opacity", [0.0, 0.5, 1.0])
def test_overlay_colours_labels_and_leaves_background(opacity: float) -> None:
    image = np.full((4, 4, 3), 100, np.uint8)
    mask = np.zeros((4, 4), np.uint8)
    mask[0] = 1
    out = np.asarray(overlay(image, mask, opacity))
    assert (out[1:] == 100).all()
    assert np.abs(out[0, 0].astype(int) - (100 * (1 - opacity) + np.array([128, 0, 0]) * opacity)).max() <= 1


def test_heat_clips_what_is_out_of_range() -> None:
    image = np.zeros((1, 2, 3), np.uint8)
    inside, outside = heat(image, np.array([[0.0, 1.0]])), heat(image, np.array([[-3.0, 7.0]]))
    assert np.array_equal(np.asarray(inside), np.asarray(outside))


def test_pictures_and_the_index_load_without_the_slow_libraries() -> None:
    """`mcc sweep plan` and `mcc sweep list` should start at once."""
    modules = "mcc_core.evaluation.visualize, mcc_core.data.index"
    script = f"import sys, {modules}; print({{'torch', 'matplotlib'}} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=Path(__file__).parents[3], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "set()"
