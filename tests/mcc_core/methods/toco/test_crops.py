"""Where local crops lie, and which of them count as positive."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mcc_core.methods.toco.config import CropConfig
from mcc_core.methods.toco.crops import activation_levels, candidates, chosen, positiveness, windows


@st.composite
def _cases(draw: st.DrawFn) -> tuple[torch.Tensor, int, int, torch.Tensor]:
    """Levels B,H,W, side and number of crops, priorities of their places."""
    size = draw(st.integers(1, 12))
    h, w = (draw(st.integers(size + 2, 24)) for _ in range(2))
    crop = CropConfig(size=size, views=1)
    places = crop.positions(h), crop.positions(w)
    views = draw(st.integers(1, min(8, places[0] * places[1])))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 999)))
    share = draw(st.sampled_from([0.0, 0.05, 0.5, 1.0]))  # of foreground
    level = torch.where(torch.rand(3, h, w, generator=generator) < share, 2.0, torch.rand(3, h, w).round())
    return level, size, views, torch.rand(3, *places, generator=generator)


@settings(max_examples=100, deadline=None)
@given(_cases())
def test_crops_are_distinct_candidates_inside_the_image(case: tuple[torch.Tensor, int, int, torch.Tensor]) -> None:
    level, size, views, priority = case
    places = candidates(level, size, views)
    assert places.shape == priority.shape
    found = chosen(places, priority, views)
    assert found.shape == (3, views, 2)
    for image, crops in enumerate(found.tolist()):
        assert len({tuple(crop) for crop in crops}) == views
        free = [(y, x) for y, x in crops if level[image, y + size // 2, x + size // 2] <= 1]
        inner = level[image, size // 2 : level.shape[1] - size // 2, size // 2 : level.shape[2] - size // 2] <= 1
        assert len(free) == views or inner.sum() < views  # cut anywhere only where there are too few candidates
        for top, left in crops:
            assert 0 <= top <= level.shape[1] - size and 0 <= left <= level.shape[2] - size
    assert windows(level, found, size).shape == (3, views, size, size)


def test_every_candidate_is_equally_likely() -> None:
    level = torch.full((1, 8, 8), 2.0)
    level[0, 3:5, 2:6] = 1  # eight candidates
    counts = torch.zeros(6, 6)
    generator = torch.Generator().manual_seed(0)
    places = candidates(level, 2, 3)
    assert places.sum() == 8
    for _ in range(2000):
        found = chosen(places, torch.rand(1, 6, 6, generator=generator), 3)[0]
        counts[found[:, 0], found[:, 1]] += 1
    assert counts[places[0]].sum() == 6000
    assert (counts[places[0]] / 2000 - 3 / 8).abs().max() < 0.04


def test_priority_decides() -> None:
    level = torch.zeros(1, 10, 10)
    level[0, 5, 5] = 2
    priority = torch.zeros(1, 8, 8)
    priority[0, 4, 4], priority[0, 1, 2], priority[0, 6, 0] = 3, 2, 1  # the first is foreground at its middle
    assert chosen(candidates(level, 2, 2), priority, 2).tolist() == [[[1, 2], [6, 0]]]


def test_windows_are_slices() -> None:
    images = torch.arange(2 * 3 * 7 * 9).view(2, 3, 7, 9).float()
    positions = torch.tensor([[[0, 0], [3, 5]], [[2, 1], [1, 4]]])
    found = windows(images, positions, 4)
    for image in range(2):
        for crop in range(2):
            top, left = positions[image, crop].tolist()
            assert torch.equal(found[image, crop], images[image, :, top : top + 4, left : left + 4])


def test_levels_include_the_high_threshold_and_exclude_the_low_one() -> None:
    cam = torch.tensor([0.25, 0.3, 0.7, 0.9]).view(1, 1, 2, 2)
    cam = torch.cat([cam, cam.flip(-1) * 0.1], dim=1)
    assert activation_levels(cam, 0.25, 0.7).tolist() == [[[0, 1], [2, 2]]]


def test_a_crop_is_positive_when_its_mean_level_exceeds_the_threshold() -> None:
    level = torch.zeros(1, 10, 10)
    level[0, 0, :5] = 1  # 5 of 25: a mean of 0.2 exactly
    level[0, 5, 5:8] = 2  # 6 of 25
    positions = torch.tensor([[[0, 0], [5, 5], [5, 0]]])
    assert positiveness(level, positions, 5, 0.2).tolist() == [[1, 1, 0, 1, 0]]
