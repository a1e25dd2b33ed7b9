"""Refinement: equal to its definition written out, and what it must do to scores on an image."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mcc_core.config import ParConfig
from mcc_core.pseudo_labels import labels, par
from mcc_core.pseudo_labels.labels import refined_label
from mcc_core.pseudo_labels.par import refine


def _neighbours(maps: Tensor, dilations: tuple[int, ...]) -> Tensor:
    """B,C,n,h,w: the maps moved by every step, borders repeated."""
    height, width = maps.shape[-2:]
    moved = []
    for d in dilations:
        padded = F.pad(maps, [d] * 4, mode="replicate")
        for y in (0, d, 2 * d):
            for x in (0, d, 2 * d):
                if (y, x) != (d, d):
                    moved.append(padded[..., y : y + height, x : x + width])
    return torch.stack(moved, dim=2)


def _by_definition(images: Tensor, scores: Tensor, config: ParConfig) -> Tensor:
    """The refinement with every neighbour of every iteration in memory."""
    near = _neighbours(images, config.dilations)
    difference = (near - images[:, :, None]).abs()
    colour = -((difference / (near.std(2, keepdim=True) + 1e-8) / config.color_weight) ** 2).mean(1, keepdim=True)
    straight, slanted = 1.0, 2**0.5
    ring = [slanted, straight, slanted, straight, straight, slanted, straight, slanted]
    distance = torch.tensor([d * r for d in config.dilations for r in ring], dtype=images.dtype)
    place = -((distance / (distance.std() + 1e-8) / config.color_weight) ** 2)
    weights = colour.softmax(2) + config.position_weight * place.softmax(0)[:, None, None]
    for _ in range(config.iterations):
        scores = (_neighbours(scores, config.dilations) * weights).sum(2)
    return scores


def _pair(batch: int, channels: int, height: int, width: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(batch, 3, 4, 5, generator=generator, dtype=torch.float64) * 255
    images = F.interpolate(coarse, size=(height, width), mode="bilinear")
    images += torch.randn(images.shape, generator=generator, dtype=torch.float64) * 8
    scores = torch.rand(batch, channels, height, width, generator=generator, dtype=torch.float64)
    return images.clamp(0, 255), scores


@pytest.mark.parametrize(
    ("config", "height", "width"),
    [
        (ParConfig(), 40, 31),
        (ParConfig(), 8, 56),  # dilations larger than the image
        (ParConfig(dilations=(3,), iterations=1), 17, 16),
        (ParConfig(dilations=(1, 2), color_weight=0.1, position_weight=0.5, iterations=3), 20, 20),
        (ParConfig(position_weight=0.0), 20, 20),
    ],
)
def test_equal_to_its_definition(config: ParConfig, height: int, width: int) -> None:
    images, scores = _pair(2, 5, height, width)
    torch.testing.assert_close(
        refine(images, scores, config), _by_definition(images, scores, config), rtol=1e-10, atol=1e-10
    )


def test_chunks_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    images, scores = _pair(1, 3, 24, 24)
    whole = refine(images, scores, ParConfig())
    monkeypatch.setattr(par, "_CHUNK", 100)  # does not divide 576
    torch.testing.assert_close(refine(images, scores, ParConfig()), whole, rtol=1e-13, atol=1e-13)


def test_float32_is_close_to_float64() -> None:
    images, scores = _pair(1, 4, 48, 48)
    images = images.round()  # the same in both
    single = refine(images.float(), scores.float(), ParConfig())
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), refine(images, scores, ParConfig()), rtol=1e-4, atol=1e-5)


def test_half_precision_gives_float32() -> None:
    images, scores = _pair(1, 2, 16, 16)
    refined = refine(images.float(), scores.bfloat16(), ParConfig())
    assert refined.dtype == torch.float32
    assert torch.equal(refined, refine(images.float(), scores.bfloat16().float(), ParConfig()))


def test_packed_sets_equal_separate_ones() -> None:
    images, scores = _pair(1, 6, 24, 24)
    packed = refine(images, scores, ParConfig())
    separate = [refine(images, part, ParConfig()) for part in scores.chunk(2, dim=1)]
    torch.testing.assert_close(packed, torch.cat(separate, dim=1), rtol=1e-13, atol=1e-13)


def test_images_of_a_batch_do_not_meet() -> None:
    images, scores = _pair(3, 2, 20, 20)
    together = refine(images, scores, ParConfig())
    for i in range(3):
        assert torch.equal(together[i], refine(images[i : i + 1], scores[i : i + 1], ParConfig())[0])


def test_small_scores_are_enlarged_with_corners_aligned() -> None:
    images, scores = _pair(1, 2, 10, 10)
    images, config = F.interpolate(images, size=(28, 28)), ParConfig(iterations=2)
    enlarged = F.interpolate(scores, size=(28, 28), mode="bilinear", align_corners=True)
    assert torch.equal(refine(images, scores, config), refine(images, enlarged, config))
    torch.testing.assert_close(refine(images, scores, ParConfig(iterations=0)), enlarged)


def test_constant_scores_grow_by_the_weights_sum() -> None:
    images, _ = _pair(1, 1, 20, 20)
    refined = refine(images, torch.ones(1, 1, 20, 20, dtype=torch.float64), ParConfig(iterations=3))
    torch.testing.assert_close(refined, torch.full_like(refined, 1.01**3))


def test_flat_images_stay_finite() -> None:
    _, scores = _pair(1, 2, 16, 16)
    refined = refine(torch.full((1, 3, 16, 16), 77.0, dtype=torch.float64), scores, ParConfig())
    assert refined.isfinite().all()


def test_scores_move_to_the_images_edge() -> None:
    """Scores that stop six pixels short of an object's edge are extended to it, and not over it."""
    images = torch.zeros(1, 3, 32, 32)
    images[..., 16:] = 200
    images += torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    scores = torch.full((1, 2, 32, 32), 0.5)
    scores[:, 0, :, :10] = 1
    scores[:, 1, :, 22:] = 1
    label = refine(images, scores, ParConfig()).argmax(1)
    assert (label[..., :16] == 0).all() and (label[..., 16:] == 1).all()


def test_scores_carry_no_gradient() -> None:
    images, scores = _pair(1, 2, 8, 8)
    assert not refine(images, scores.requires_grad_(), ParConfig(dilations=(1,))).requires_grad


def test_images_together_are_refined_as_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(3)
    images = 255 * torch.rand(3, 3, 24, 20, generator=generator)
    scores = torch.rand(3, 4, 12, 10, generator=generator)
    alone = refine(images, scores, ParConfig())
    monkeypatch.setattr(par, "PIECEWISE", set())
    assert (refine(images, scores, ParConfig()) - alone).abs().max() < 1e-6


def test_labels_together_are_those_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(4)
    images = F.interpolate(torch.randn(3, 3, 6, 6, generator=generator), size=32, mode="bicubic")
    present = torch.tensor([[1.0, 0, 1], [0, 0, 0], [0, 1, 0]])
    cam = torch.rand(3, 3, 32, 32, generator=generator) * present[:, :, None, None]
    boxes = torch.tensor([[0, 32, 0, 32], [0, 32, 0, 32], [2, 30, 0, 20]])
    alone = refined_label(images, cam, present, boxes, 0.4, 0.7, ParConfig())
    monkeypatch.setattr(par, "PIECEWISE", set())
    monkeypatch.setattr(labels, "PIECEWISE", set())
    together = refined_label(images, cam, present, boxes, 0.4, 0.7, ParConfig())
    assert torch.equal(together, alone) and set(alone.unique().tolist()) >= {0, 3, 255}
