"""The three views of a training image: the box around what is image, flips, ranges, and where randomness comes from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from mcc_core.config import IMAGENET_MEAN as MEAN
from mcc_core.config import IMAGENET_STD as STD
from mcc_core.config import AugmentConfig
from mcc_core.data.colours import View, normalise
from mcc_core.data.transforms import LabelledView, LongSideView, ThreeViews

CROP = 48
REACH = 7  # pixels the blur can carry a colour


@dataclass(frozen=True)
class Views:
    """Finished views, and the box."""

    view1: Tensor
    view2: Tensor
    local: Tensor
    box: tuple[int, ...]


def _views(image: Tensor, seed: int, crop: int = CROP, **config: object) -> Views:
    augment = ThreeViews(AugmentConfig.model_validate(config), crop)
    found = augment(image, torch.Generator().manual_seed(seed))
    views = {name: view.finished() for name, view in found.items() if isinstance(view, View)}
    return Views(**views, box=tuple(cast(Tensor, found["box"]).tolist()))


def _flat(height: int, width: int, colour: tuple[int, int, int] = (20, 60, 20)) -> Tensor:
    return torch.tensor(colour, dtype=torch.uint8)[:, None, None].expand(3, height, width).clone()


def _image_area(view: Tensor) -> Tensor:
    """Where a flat dark image, rather than the brighter padding, is seen; unsure (False) near its border."""
    grey = view.mean(0)
    return grey < (grey.min() + grey.max()) / 2 if grey.max() - grey.min() > 0.1 else torch.ones_like(grey).bool()


def _inside(box: tuple[int, ...], crop: int, margin: int) -> tuple[Tensor, Tensor]:
    """Pixels deeper in the box than `margin`, and pixels further outside."""
    top, bottom, left, right = box
    rows, columns = torch.arange(crop)[:, None], torch.arange(crop)[None]
    deep = (rows >= top + (margin if top else 0)) & (rows < bottom - (margin if bottom < crop else 0))
    deep = deep & (columns >= left + (margin if left else 0)) & (columns < right - (margin if right < crop else 0))
    near = (rows >= top - margin) & (rows < bottom + margin) & (columns >= left - margin) & (columns < right + margin)
    return deep, ~near


@settings(max_examples=60, deadline=None)
@given(
    height=st.integers(1, 120),
    width=st.integers(1, 120),
    seed=st.integers(0, 10_000),
    scale=st.sampled_from([(0.5, 2.0), (0.3, 0.5), (1.0, 1.0)]),
)
@example(height=2, width=2, seed=0, scale=(0.3, 0.5))  # becomes one pixel
def test_box_is_exactly_the_image(height: int, width: int, seed: int, scale: tuple[float, float]) -> None:
    views = _views(_flat(height, width), seed, scale=scale)
    top, bottom, left, right = views.box
    assert 0 <= top < bottom <= CROP and 0 <= left < right <= CROP
    for side, low, high in ((height, top, bottom), (width, left, right)):
        assert high - low <= CROP
        assert max(1, round(side * scale[0])) <= max(high - low, 1) or high - low == CROP
        assert high - low <= max(1, round(side * scale[1]))
    if min(bottom - top, right - left) > 2 * REACH:
        seen = _image_area(views.view1)
        deep, outside = _inside(views.box, CROP, REACH)
        assert seen[deep].all()
        assert not seen[outside].any()


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_the_published_box_is_right_only_for_unflipped_views(seed: int) -> None:
    image = _flat(60, 30)
    image[:, :, 0:15] = 0
    fixed = _views(image, seed, scale=(1.0, 1.0))
    published = _views(image, seed, scale=(1.0, 1.0), published_box=True)
    assert torch.equal(fixed.view1, published.view1)  # the flag changes the box, nothing else
    top, bottom, left, right = fixed.box
    assert right - left == 30 and (top, bottom) == (0, CROP)
    middle = fixed.view1[:, :, left:right].mean((0, 1))
    flipped = bool(middle[:10].mean() > middle[-10:].mean())
    assert published.box == ((top, bottom, CROP - right, CROP - left) if flipped else fixed.box)


def test_both_boxes_occur_and_the_published_one_is_wrong_for_the_share_that_row_21_states() -> None:
    wrong = 0
    sizes = [(375, 500)] * 7 + [(500, 375)] * 3  # about what VOC holds
    for seed in range(200):
        image = torch.zeros(3, *(side // 8 for side in sizes[seed % 10]), dtype=torch.uint8)
        wrong += _views(image, seed, 56).box != _views(image, seed, 56, published_box=True).box
    assert 0.09 < wrong / 200 < 0.24


def test_local_view_is_view_1_with_a_flip_of_its_own() -> None:
    image = _flat(CROP, CROP, (10, 10, 10))
    image[:, :, : CROP // 2] = 240

    def bright_on_the_left(view: Tensor) -> bool:
        return bool(view[:, :, :12].mean() > view[:, :, -12:].mean())

    same = {"own": 0, "aligned": 0}
    for seed in range(60):
        for kind in same:
            views = _views(image, seed, scale=(1.0, 1.0), align_local_flip=kind == "aligned")
            same[kind] += bright_on_the_left(views.view1) == bright_on_the_left(views.local)
    assert same["aligned"] == 60
    assert 15 < same["own"] < 45


def test_aligning_the_flip_changes_nothing_but_that_flip() -> None:
    image = torch.randint(0, 256, (3, 50, 60), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    flips = 0
    for seed in range(20):
        own, aligned = _views(image, seed), _views(image, seed, align_local_flip=True)
        assert torch.equal(own.view1, aligned.view1) and torch.equal(own.view2, aligned.view2)
        if not torch.equal(own.local, aligned.local):
            torch.testing.assert_close(own.local.flip(-1), aligned.local, atol=0.05, rtol=0)
            flips += 1
    assert 4 <= flips <= 16


def test_view_2_is_part_of_the_raw_image_without_padding() -> None:
    colour = (20, 60, 20)  # far from grey, so that padding would be seen whatever the colour jitter does
    for seed in range(30):
        view = _views(_flat(20, 70, colour), seed).view2
        assert (view.amax((1, 2)) - view.amin((1, 2))).max() < 0.05


def test_extreme_shapes() -> None:
    for height, width in ((1, 1), (1, 300), (300, 1), (2, 2), (47, 49), (500, 20)):
        for seed in range(3):
            views = _views(torch.full((3, height, width), 90, dtype=torch.uint8), seed)
            for view in (views.view1, views.view2, views.local):
                assert view.shape == (3, CROP, CROP) and view.dtype == torch.float32 and view.isfinite().all()


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000), scale=st.sampled_from([(0.5, 0.5), (1.5, 1.5)]))
def test_every_pixel_is_a_colour(seed: int, scale: tuple[float, float]) -> None:
    image = torch.randint(0, 256, (3, 40, 60), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    views = _views(image, seed, scale=scale)
    mean, std = torch.tensor(MEAN)[:, None, None], torch.tensor(STD)[:, None, None]
    for view in (views.view1, views.view2, views.local):
        colours = view * std + mean
        assert colours.min() >= -1e-5 and colours.max() <= 1 + 1e-5


def test_views_are_a_function_of_the_generator_alone() -> None:
    image = torch.randint(0, 256, (3, 40, 60), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    torch.manual_seed(1)
    first = _views(image, 3)
    torch.manual_seed(2)
    again, other = _views(image, 3), _views(image, 4)
    for name in ("view1", "view2", "local"):
        assert torch.equal(getattr(first, name), getattr(again, name))
        assert not torch.equal(getattr(first, name), getattr(other, name))
    untouched = torch.randint(0, 256, (3, 40, 60), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    assert torch.equal(image, untouched)


def test_normalise_maps_the_mean_colour_to_zero() -> None:
    mean = torch.tensor(MEAN).mul(255).round().to(torch.uint8)[:, None, None]
    assert normalise(mean).abs().max() < 0.01
    white = normalise(torch.full((3, 1, 1), 255, dtype=torch.uint8)).flatten()
    torch.testing.assert_close(white, (1 - torch.tensor(MEAN)) / torch.tensor(STD))


def test_the_longer_side_is_drawn_and_the_box_follows_the_flip() -> None:
    augment, sides = LongSideView((20, 40), 48), set()
    image = torch.full((3, 30, 60), 200, dtype=torch.uint8)
    for seed in range(30):
        found = augment(image, torch.Generator().manual_seed(seed))
        view, (top, bottom, left, right) = found["view1"], cast(Tensor, found["box"]).tolist()
        assert isinstance(view, View) and right - left == pytest.approx(2 * (bottom - top), abs=1)
        inside = torch.zeros(48, 48, dtype=torch.bool)
        inside[top:bottom, left:right] = True
        assert torch.equal((view.pixels == 200).all(0), inside)
        sides.add(right - left)
    assert min(sides) >= 20 and max(sides) <= 40 and len(sides) > 10


def test_a_label_map_is_cut_with_its_image_and_is_open_outside() -> None:
    label = torch.zeros(40, 60, dtype=torch.uint8)
    label[10:30, 5:25], label[:8, 40:] = 1, 2
    image = torch.stack([label * 100] * 3)
    augment, flips = LabelledView((0.5, 1.5), 48), set()
    for seed in range(20):
        found = augment(image, torch.Generator().manual_seed(seed), label=label)
        view, cut, (top, bottom, left, right) = found["view1"], found["label"], cast(Tensor, found["box"]).tolist()
        assert isinstance(view, View) and isinstance(cut, torch.Tensor) and cut.shape == (48, 48)
        outside = torch.ones(48, 48, dtype=torch.bool)
        outside[top:bottom, left:right] = False
        assert torch.equal(cut == 255, outside)
        near = (view.pixels[0].float() / 100 - cut.float()).abs()[~outside]
        assert (near < 0.5).float().mean() > 0.9  # all but the borders, which are smooth in the image
        flips.add(bool((left, right) != (0, 48)))
    one, two = (augment(image, torch.Generator().manual_seed(3), label=label)["label"] for _ in range(2))
    assert torch.equal(cast(Tensor, one), cast(Tensor, two))
