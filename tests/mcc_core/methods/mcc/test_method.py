"""Masks, positiveness, CAMs, pseudo-labels, objective, optimiser and schedules."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from batches import three_views
from experiments import mcc_experiment
from hypothesis import given, settings
from hypothesis import strategies as st

from mcc_core.config import OptimConfig, ParConfig
from mcc_core.methods.mcc.config import Experiment
from mcc_core.methods.mcc.masking import activation_levels, positiveness, sample_masks
from mcc_core.methods.mcc.network import MCCNet
from mcc_core.methods.mcc.objective import Batch, MCCObjective
from mcc_core.pseudo_labels.cam import multi_scale_maps
from mcc_core.pseudo_labels.labels import IGNORE, cam_label, refined_label
from mcc_core.schedules import Cosine, Linear, Step, value_at
from mcc_core.training.optim import build_optimizer, learning_rate, set_learning_rate

TINY: dict[str, Any] = {
    "model.backbone_args": {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 2},
    "model.aux_block": 2,
    "train.crop": 32,
    "loss.seg_start": 0,
    "par.dilations": [1, 2],
}


def tiny(**overrides: Any) -> tuple[MCCNet, Experiment]:
    experiment = mcc_experiment("tiny", TINY | overrides)
    torch.manual_seed(0)
    return MCCNet(experiment.model, 4), experiment


def random_batch(labels: list[list[int]], size: int = 32) -> Batch:
    generator = torch.Generator().manual_seed(5)
    images = torch.randn(3, len(labels), 3, size, size, generator=generator)
    box = torch.tensor([[0, size, 0, size]] * len(labels))
    return three_views(images[0], images[1], images[2], torch.tensor(labels).float(), box)


# --- masks ---


@settings(max_examples=40, deadline=None)
@given(h=st.integers(1, 9), w=st.integers(1, 9), scale=st.integers(1, 10), seed=st.integers(0, 999))
def test_masks_are_constant_on_squares(h: int, w: int, scale: int, seed: int) -> None:
    masks = sample_masks(2, 3, (h, w), 0.5, scale, torch.Generator().manual_seed(seed))
    assert masks.shape == (2, 3, h, w)
    for y in range(h):
        for x in range(w):
            assert torch.equal(masks[:, :, y, x], masks[:, :, y // scale * scale, x // scale * scale])


def test_mask_ratio_is_the_expected_fraction() -> None:
    masks = sample_masks(64, 8, (28, 28), 0.95, 4, torch.Generator().manual_seed(0))
    assert masks.float().mean().item() == pytest.approx(0.95, abs=0.01)
    none_kept = (masks.flatten(2).min(2).values == 1).float().mean().item()
    assert none_kept == pytest.approx(0.95**49, abs=0.03)  # 8 % of views


def test_positiveness_follows_the_kept_tokens() -> None:
    cam = torch.zeros(1, 1, 32, 32)
    cam[..., :16] = 1.0
    masks = torch.ones(1, 4, 4, 4, dtype=torch.uint8)
    masks[0, 0, :, 0] = 0  # only object
    masks[0, 1, :, 3] = 0  # only background
    masks[0, 2] = 0  # everything
    level = activation_levels(cam, (4, 4), 0.25, 0.7, "bicubic")
    flags = positiveness(level, masks, 0.2)  # view 3 keeps nothing
    assert flags.tolist() == [[1, 1, 1, 0, 1, 0]]


# --- CAMs and labels ---


def test_shared_forward_and_class_subset_change_nothing() -> None:
    model, experiment = tiny()
    images = torch.randn(2, 3, 32, 32)
    plain = multi_scale_maps(model, images, experiment.cam.scales)
    shared = multi_scale_maps(model, images, experiment.cam.scales, model(images), torch.tensor([1, 3]))
    assert set(plain) == set(shared) == {"cam", "aux_cam"}
    for stage, maps in plain.items():
        torch.testing.assert_close(maps[:, [1, 3]], shared[stage])
        assert maps.min() == 0 and 0.99 < maps.amax((2, 3)).min() <= 1


def test_cam_of_a_flipped_image_is_the_flipped_cam() -> None:
    model, _ = tiny()
    images = torch.randn(1, 3, 32, 32)
    a, b = (multi_scale_maps(model, i, (1.0, 0.5))["cam"] for i in (images, images.flip(-1)))
    torch.testing.assert_close(a.flip(-1), b, rtol=1e-4, atol=1e-5)


def test_label_thresholds_are_inclusive_below() -> None:
    cam = torch.tensor([[[[0.25, 0.26, 0.7, 0.71]], [[0.1, 0.1, 0.1, 0.9]]]])
    assert cam_label(cam, 0.25, 0.7).tolist() == [[[0, IGNORE, IGNORE, 2]]]
    assert cam_label(cam, 0.25).tolist() == [[[0, 1, 1, 2]]]


@pytest.mark.parametrize("label", [[[0, 0]], [[1, 1]]])
def test_refinement_keeps_the_box_and_present_classes(label: list[list[int]]) -> None:
    labels = torch.tensor(label).float()
    cam = torch.zeros(1, 2, 32, 32)
    cam[:, 0, 8:24, 4:14] = 1
    cam = cam * labels[:, :, None, None]
    refined = refined_label(
        torch.randn(1, 3, 32, 32), cam, labels, torch.tensor([[4, 32, 0, 32]]), 0.25, 0.7, ParConfig(dilations=(1, 2))
    )
    assert (refined[:, :4] == IGNORE).all()
    found = set(refined[:, 4:].unique().tolist())
    assert found <= ({0, 1, IGNORE} if labels.any() else {0, IGNORE}) and 0 in found


# --- objective ---


def total(model: MCCNet, experiment: Experiment, batch: Batch, iteration: int = 500, **kwargs: Any) -> torch.Tensor:
    grid = model.encoder.grid(*batch["view1"].shape[-2:])
    masks = sample_masks(len(batch["view1"]), 8, grid, 0.6, 2, torch.Generator().manual_seed(0))
    return MCCObjective(model, experiment)(batch, {"masks": masks}, iteration, **kwargs).total


def test_maps_of_absent_classes_do_not_matter() -> None:
    model, experiment = tiny()
    batch = random_batch([[1, 0, 0, 1], [0, 0, 1, 0]])
    a, b = (total(model, experiment, batch, all_classes=flag) for flag in (True, False))
    torch.testing.assert_close(a, b)


def test_dropping_tokens_changes_no_loss() -> None:
    losses = []
    for drop in (True, False):
        model, experiment = tiny(**{"mask.drop_tokens": drop})
        losses.append(
            total(
                model.double(),
                experiment,
                {name: tensor.double() for name, tensor in random_batch([[1, 0, 0, 1]]).items()},
            )
        )
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-10, atol=1e-10)


def test_image_without_any_label_gives_finite_losses() -> None:
    model, experiment = tiny()
    loss = total(model, experiment, random_batch([[0, 0, 0, 0]]))
    loss.backward()
    assert torch.isfinite(loss)
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_unused_terms_leave_zero_gradients_so_that_decay_applies() -> None:
    model, experiment = tiny(**{"loss.seg_start": 1000})
    objective = MCCObjective(model, experiment)
    assert objective.weights(1000)["seg"] == 0 and objective.weights(1001)["seg"] == 0.1
    total(model, experiment, random_batch([[1, 0, 0, 0]])).backward()
    assert model.decoder.conv6.weight.grad is not None and model.decoder.conv6.weight.grad.abs().sum() == 0
    assert model.projector.last.get_parameter("direction").grad.abs().sum() > 0  # type: ignore[union-attr]
    assert all(p.grad is None for p in model.momentum_projector.parameters())


def test_baseline_has_no_contrast_and_no_trained_projector() -> None:
    model, experiment = tiny(**{"loss.mcc": 0})
    batch, masks = random_batch([[1, 0, 0, 0]]), torch.zeros(1, 8, 4, 4, dtype=torch.uint8)
    step = MCCObjective(model, experiment)(batch, {"masks": masks}, 500)
    assert step.contrast is None and set(step.terms) == {"cls", "cls_aux", "aff", "seg", "reg"}
    assert not any(p.requires_grad for p in model.projector.parameters())


@pytest.mark.parametrize("field", ["positiveness_aux_until", "pseudo_label_aux_until"])
def test_the_auxiliary_cam_decides_up_to_and_with_the_iteration(field: str) -> None:
    batch = random_batch([[1, 0, 1, 0], [0, 1, 0, 0]])
    masks = sample_masks(2, 8, (4, 4), 0.5, 1, torch.Generator().manual_seed(0))

    def decided(until: int | None, iteration: int) -> torch.Tensor:
        model, experiment = tiny(**{f"cam.{field}": until, "thresholds.positiveness": 0.5, "train.iterations": 20})
        step = MCCObjective(model, experiment)(batch, {"masks": masks}, iteration)
        assert step.contrast is not None and step.refined is not None
        return step.contrast.flags if field.startswith("positiveness") else step.refined

    auxiliary, final = decided(None, 12), decided(0, 12)
    assert not torch.equal(auxiliary, final)
    assert torch.equal(decided(12, 11), auxiliary) and torch.equal(decided(12, 12), auxiliary)
    assert torch.equal(decided(12, 13), final)
    assert torch.equal(decided(1, 1), auxiliary) and torch.equal(decided(1, 2), final)


def test_momentum_projector_moves_before_use() -> None:
    model, experiment = tiny(**{"contrast.momentum": 0.75})
    for p in model.projector.parameters():
        torch.nn.init.normal_(p)
    before = {n: p.clone() for n, p in model.momentum_projector.named_parameters()}
    total(model, experiment, random_batch([[1, 0, 0, 0]]))
    for name, p in model.momentum_projector.named_parameters():
        expected = 0.75 * before[name] + 0.25 * model.projector.get_parameter(name)
        torch.testing.assert_close(p, expected)


# --- optimiser and schedules ---


def test_published_learning_rates() -> None:
    """The published warm-up and decay at some iterations (docs/method.md)."""
    config = OptimConfig()
    rates = {i: learning_rate(config, i, 20_000) for i in (0, 199, 1499, 1500, 19_999)}
    assert rates[0] == pytest.approx(6e-11)
    assert rates[199] == pytest.approx(7.96e-6, rel=1e-3)
    assert rates[1499] == pytest.approx(5.996e-5, rel=1e-3)
    assert rates[1500] == pytest.approx(5.593e-5, rel=1e-3)
    assert rates[19_999] == pytest.approx(6e-5 * (1 / 20_000) ** 0.9)
    text = OptimConfig(warmup_start_is="rate")
    assert learning_rate(text, 0, 20_000) == pytest.approx(1e-6)


@pytest.mark.parametrize("total", [20_000, 80_000])  # VOC, COCO
def test_the_learning_rate_of_every_step(total: int) -> None:
    """Against PyTorch's own schedulers: linear warm-up, then the polynomial that ran all along."""
    config = OptimConfig()

    def rates(make: Callable[[torch.optim.Optimizer], torch.optim.lr_scheduler.LRScheduler], steps: int) -> list[float]:
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=config.lr)
        scheduler, seen = make(optimizer), []
        for _ in range(steps):
            seen.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            scheduler.step()
        return seen

    warm = rates(lambda o: torch.optim.lr_scheduler.LinearLR(o, 1e-6, 1.0, 1500), 1500)
    expected = warm + rates(lambda o: torch.optim.lr_scheduler.PolynomialLR(o, total, 0.9), total)[1500:]
    ours = [learning_rate(config, i, total) for i in range(total)]
    np.testing.assert_allclose(ours, expected, rtol=1e-9)


def test_parameter_groups() -> None:
    model, experiment = tiny(**{"optim.freeze_pos_embed": True})
    optimizer = build_optimizer(model, experiment.optim)
    set_learning_rate(optimizer, experiment.optim, 100, 400)
    encoder, heads = optimizer.param_groups
    assert heads["lr"] == pytest.approx(experiment.optim.head_lr_scale * encoder["lr"])
    ids = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert id(model.encoder.vit.pos_embed) not in ids
    assert id(model.encoder.vit.cls_token) in {id(p) for p in encoder["params"]}
    assert id(model.decoder.conv8.weight) in {id(p) for p in heads["params"]}
    assert not ids & {id(p) for p in model.momentum_projector.parameters()}


@settings(max_examples=50, deadline=None)
@given(start=st.floats(0, 1), end=st.floats(0, 1), iteration=st.integers(0, 99))
def test_ramps_stay_between_their_ends(start: float, end: float, iteration: int) -> None:
    for kind, name in ((Linear, "linear"), (Cosine, "cosine")):
        ramp = kind(schedule=name, start=start, end=end)
        assert min(start, end) - 1e-12 <= ramp.at(iteration, 100) <= max(start, end) + 1e-12
        assert ramp.at(0, 100) == pytest.approx(start) and ramp.at(99, 100) == pytest.approx(end)


def test_schedule_values() -> None:
    assert value_at(Linear(schedule="linear", start=0, end=1, first=10, last=20), 15, 100) == 0.5
    assert value_at(Cosine(schedule="cosine", start=0, end=1, last=4), 1, 100) == pytest.approx(0.5 - math.sqrt(2) / 4)
    step = Step(schedule="step", values=(1, 2, 3), at_iterations=(5, 8))
    assert [value_at(step, i, 10) for i in (0, 4, 5, 7, 8, 9)] == [1, 1, 2, 2, 3, 3]
