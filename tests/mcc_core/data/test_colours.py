"""Colours of views: in the loader and on the device the same, and what torchvision computes, to a grey level."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as TF

from mcc_core.config import IMAGENET_MEAN, IMAGENET_STD, AugmentConfig
from mcc_core.data.colours import Colours, Kind, View, finish_batch, jitter
from mcc_core.data.datasets import Augmentation
from mcc_core.data.draws import Draw
from mcc_core.data.transforms import OneView, ThreeViews
from mcc_core.methods.fsr.augment import TwoViews
from mcc_core.methods.fsr.config import AugmentConfig as FsrConfig
from mcc_core.methods.mctformer.augment import Window
from mcc_core.methods.mctformer.config import AugmentConfig as MCTformerConfig
from mcc_core.methods.slrnet.augment import OneView as SlrnetView
from mcc_core.methods.slrnet.config import AugmentConfig as SlrnetConfig

SIDE = 40
HUE, ELSE = 4, 1  # grey levels


def _levels(finished: Tensor) -> Tensor:
    """Grey levels of normalised views, as integers."""
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in (IMAGENET_MEAN, IMAGENET_STD))
    levels = (finished * std + mean) * 255
    assert (levels - levels.round()).abs().max() < 1e-3  # both paths round as bytes do
    return levels.round().int()


def _on_device(views: dict[str, View]) -> dict[str, Tensor]:
    """Views by the path of the device, as a batch of one."""
    batch = {k: v[None] for name, view in views.items() for k, v in view.unfinished(name).items()}
    return {name: found[0] for name, found in finish_batch(batch, batch).items()}


def _image(seed: int = 0, height: int = 50, width: int = 60) -> Tensor:
    """Colours of every kind, with detail and with flat areas."""
    generator = torch.Generator().manual_seed(seed)
    image = torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=generator)
    image[:, :10], image[:, 10:15], image[:, 15:20] = 0, 255, 90
    return image


def _blur(image: Tensor, sigma: float) -> Tensor:
    side = 2 * max(1, round(3 * sigma)) + 1
    return TF.gaussian_blur(image, [side, side], [sigma, sigma])


def _one(kind: Kind, amount: float) -> Colours:
    return Colours(((kind, amount),))


ONE_CHANGE: dict[str, tuple[Colours, Any, int]] = {
    "nothing": (Colours(), lambda x: x, 0),
    **{f"brightness {f}": (_one("brightness", f), lambda x, f=f: TF.adjust_brightness(x, f), 0) for f in (0.6, 1.37)},
    **{f"contrast {f}": (_one("contrast", f), lambda x, f=f: TF.adjust_contrast(x, f), 1) for f in (0.6, 1.4)},
    **{f"saturation {f}": (_one("saturation", f), lambda x, f=f: TF.adjust_saturation(x, f), 1) for f in (0.8, 1.2)},
    **{f"hue {h}": (_one("hue", h), lambda x, h=h: TF.adjust_hue(x, h), HUE) for h in (-0.5, -0.1, 0.013, 0.1)},
    "grey": (Colours(grey=True), lambda x: TF.rgb_to_grayscale(x, 3), 1),
    **{f"blur {s}": (Colours(sigma=s), lambda x, s=s: _blur(x, s), 1) for s in (0.1, 0.5, 1.0, 2.0)},
    "solarise": (Colours(solarise=True), lambda x: TF.solarize(x, 128), 0),
}  # fmt: skip


@pytest.mark.parametrize("name", ONE_CHANGE)
def test_each_change_is_torchvisions_on_both_paths(name: str) -> None:
    colours, change, tolerance = ONE_CHANGE[name]
    view = View(_image(), colours)
    expected = change(_image()).int()
    for found in (view.finished(), _on_device({"view": view})["view"]):
        assert (_levels(found) - expected).abs().max() <= tolerance


def _augmentations() -> dict[str, Augmentation]:
    return {
        "mcc, toco": ThreeViews(AugmentConfig(), SIDE),
        "afa": OneView((0.5, 2.0), SIDE),
        "fsr": TwoViews(FsrConfig(), SIDE),
        "slrnet": SlrnetView(SlrnetConfig(), SIDE),
        "mctformer": Window(MCTformerConfig(), SIDE),
    }


@pytest.mark.parametrize("name", _augmentations())
def test_both_paths_give_the_same_views_of_the_same_draws(name: str) -> None:
    augment, hue_turned, gaps = _augmentations()[name], 0, []
    for seed in range(40):
        found = augment(_image(seed), torch.Generator().manual_seed(seed))
        views = {key: view for key, view in found.items() if isinstance(view, View)}
        assert views and set(found) == {*views, "box"}
        on_device = _on_device(views)
        for key, view in views.items():
            turned = any(kind == "hue" for kind, _ in view.colours.steps)
            hue_turned += turned
            gap = (_levels(view.finished()) - _levels(on_device[key])).abs()
            if view.colours.solarise:  # a level more or less across 128 is the whole way round: no error of colours
                gap = gap[(_levels(view.finished()) - 127).abs() > HUE]
            assert gap.max() <= (HUE if turned else ELSE), (seed, key, view.colours)
            gaps.append(gap.float().mean())
    assert sum(gaps) / len(gaps) < 0.2
    assert hue_turned or name in ("afa", "mctformer")


def test_a_batch_is_what_its_views_are_alone() -> None:
    augment = ThreeViews(AugmentConfig(), SIDE)
    samples = [augment(_image(seed), torch.Generator().manual_seed(seed)) for seed in range(5)]
    one_by_one = [_on_device({k: v for k, v in s.items() if isinstance(v, View)}) for s in samples]
    parts = [
        {k: v for name, view in s.items() if isinstance(view, View) for k, v in view.unfinished(name).items()}
        for s in samples
    ]
    batch = {key: torch.stack([part[key] for part in parts]) for key in parts[0]} | {"labels": torch.ones(5, 3)}
    together = finish_batch(batch, batch)
    assert set(together) == {"view1", "view2", "local", "labels"}
    for name in ("view1", "view2", "local"):
        assert batch[name].dtype == torch.uint8
        assert torch.equal(_levels(together[name]), torch.stack([_levels(one[name]) for one in one_by_one]))


def test_a_batch_of_finished_views_is_left_alone() -> None:
    batch = {"view": torch.rand(2, 3, 8, 8), "labels": torch.ones(2, 3)}
    assert finish_batch(batch, batch).keys() == batch.keys()
    assert finish_batch(batch, batch)["view"] is batch["view"]


def test_jitter_draws_an_order_and_factors_in_their_ranges() -> None:
    draw, orders = Draw(torch.Generator().manual_seed(0)), set()
    for _ in range(200):
        steps = jitter(draw, 0.4, 0.3, 0.2, 0.1)
        orders.add(tuple(kind for kind, _ in steps))
        amounts: dict[str, float] = dict(steps)
        for kind, middle, reach in (
            ("brightness", 1, 0.4),
            ("contrast", 1, 0.3),
            ("saturation", 1, 0.2),
            ("hue", 0, 0.1),
        ):
            assert abs(amounts[kind] - middle) <= reach
    assert len(orders) == 24
