"""FSR's pieces against their formulas, in double precision: distillation, centres, class attention, schedules."""

from __future__ import annotations

import math
from typing import cast

import pytest
import torch
import torch.nn.functional as F

from mcc_core.experiment_files import resolve
from mcc_core.losses.distillation import Centers, distillation
from mcc_core.methods.fsr.config import Experiment
from mcc_core.methods.fsr.masking import masked_blocks, on_grid, uncertain_blocks
from mcc_core.methods.fsr.network import ClassAttention
from mcc_core.schedules import value_at


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_largest_noise_is_masked() -> None:
    noise = normal(3, 4, 5).sigmoid()
    for one, values in zip(masked_blocks(noise, 0.4), noise, strict=True):
        assert one.sum() == 8 and values[one].min() > values[~one].max()
    assert masked_blocks(noise, 0.0).sum() == 0 and masked_blocks(noise, 1.0).all()


def test_the_strongest_class_at_one_pixel_decides_for_a_block() -> None:
    cam = torch.zeros(1, 2, 8, 8)
    cam[0, 0, 0, 0], cam[0, 1, 0, 4], cam[0, 0, 4, 0] = 0.5, 0.7, 0.3  # 0.7 itself is not below 0.7
    cam[0, 1, 4, 0] = 0.9  # stronger than 0.3
    cam[0, 0, 5, 5] = 0.5  # not the pixel that stands for its block
    found = uncertain_blocks(cam, (2, 2), 0.2, 0.7)
    assert found.tolist() == [[[True, False], [False, False]]]
    assert on_grid(found, (4, 6))[0].int().tolist() == [[1, 1, 1, 0, 0, 0]] * 2 + [[0] * 6] * 2


def test_distillation_is_the_cross_entropy_of_the_centred_teacher() -> None:
    student, teacher, center = normal(5, 7), 0.3 * normal(5, 7, seed=1), normal(7, seed=2)
    target = torch.exp((teacher - center) / 0.05)
    target = target / target.sum(1, keepdim=True)
    scores = student / 0.1
    expected = -(target * (scores - scores.exp().sum(1, keepdim=True).log())).sum(1).mean()
    torch.testing.assert_close(distillation(student, teacher, center, 0.1, 0.05), expected, rtol=1e-12, atol=0)
    assert distillation(student[:0], teacher[:0], center, 0.1, 0.05) == 0


def test_centres_average_the_passes_of_a_step() -> None:
    centers = Centers(4).double()
    before = centers.class_center.fill_(2.0).clone()
    passes = [(normal(2, 4, seed=s), normal(6, 4, seed=s + 9)) for s in (0, 1)]
    for classes, patches in passes:
        centers.collect(classes, patches)
    assert torch.equal(centers.class_center, before)  # all passes of a step see the centre before it
    centers.update(0.9)
    torch.testing.assert_close(centers.class_center, 0.9 * before + 0.1 * torch.cat([c for c, _ in passes]).mean(0))
    torch.testing.assert_close(centers.patch_center, 0.1 * torch.cat([p for _, p in passes]).mean(0))
    after = centers.class_center.clone()
    centers.update(0.9)  # nothing new was collected
    assert torch.equal(after, centers.class_center)
    assert set(centers.state_dict()) == {"class_center", "patch_center"}


def test_the_class_token_looks_at_patches_alone() -> None:
    torch.manual_seed(0)
    block = ClassAttention(8, 2, 16, 1e-6).double()
    cls, patches = normal(3, 1, 8), normal(3, 5, 8, seed=1)
    keys, query = block.norm1(patches), block.attn["q"](block.norm1(cls))
    heads = []
    for part in (slice(0, 4), slice(4, 8)):
        q, k, v = query[..., part], block.attn["k"](keys)[..., part], block.attn["v"](keys)[..., part]
        heads.append((q @ k.transpose(1, 2) / 2).softmax(2) @ v)
    mixed = cls + block.attn["proj"](torch.cat(heads, 2))
    expected = mixed + block.mlp["fc2"](F.gelu(block.mlp["fc1"](block.norm2(mixed))))
    torch.testing.assert_close(block(cls, patches), expected)
    torch.testing.assert_close(block(cls, patches[:, [3, 1, 4, 0, 2]]), expected)


@pytest.mark.parametrize(
    ("preset", "iteration", "momentum", "temperature"),
    [
        ("fsr", 0, 0.9995, 0.04),
        ("fsr", 1000, 0.9995 + 0.0005 * 0.5 * (1 - math.cos(math.pi * 0.05)), 0.04 + 0.03 * 1000 / 2499),
        ("fsr", 19_999, 1.0, 0.07),
        ("fsr-coco", 0, 0.996, 0.04),
        ("fsr-coco", 79_999, 1.0, 0.04),
    ],
)
def test_published_schedules(preset: str, iteration: int, momentum: float, temperature: float) -> None:
    experiment = cast(Experiment, resolve(preset))
    distill, total = experiment.distill, experiment.train.iterations
    assert value_at(distill.teacher_temperature, iteration, total) == pytest.approx(temperature, rel=1e-12)
    assert value_at(distill.momentum, iteration, total) == pytest.approx(momentum, abs=1e-8)
