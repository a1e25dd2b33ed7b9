"""IRN's network and step: what its branches see and leave alone, and its class maps."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from trained import smallest

from mcc_core.errors import UsageError
from mcc_core.experiment_files import resolve
from mcc_core.methods.irn.config import Experiment
from mcc_core.methods.irn.network import IRNet
from mcc_core.methods.irn.objective import IRNObjective
from mcc_core.pseudo_labels.inter_pixel import random_walk
from mcc_core.training.optim import build_optimizer

BATCH = {
    "view1": torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)),
    "labels": torch.tensor([[1.0, 0, 0], [0, 1, 1]]),
    "label": torch.randint(0, 3, (2, 32, 32), generator=torch.Generator().manual_seed(1)).to(torch.uint8),
}


def experiment(**fields: Any) -> Experiment:
    return cast(Experiment, smallest("irn", **fields))


def network(**fields: Any) -> IRNet:
    torch.manual_seed(0)
    return IRNet(experiment(**fields), 3)


@pytest.mark.parametrize("size", [(32, 32), (37, 50), (41, 16)])
def test_both_branches_are_a_quarter_of_the_image(size: tuple[int, int]) -> None:
    model = network().eval()
    features = model.scored(torch.randn(1, 3, *size)).features
    quarter = tuple(-(-side // 4) for side in size)
    assert model.boundary(features).shape == (1, *quarter) and model.displacement(features).shape == (1, 2, *quarter)


def test_the_branches_leave_the_features_alone() -> None:
    objective = IRNObjective(network(**{"model.frozen": False}), experiment(**{"loss.cls": 0}))
    step = objective(BATCH, {}, 0)
    assert set(step.terms) == {"alike", "unlike", "foreground", "background"}
    step.total.backward()
    for name, parameter in objective.network.named_parameters():
        own = name.startswith(("boundary_branch.", "displacement_branch."))
        assert (parameter.grad is not None and bool(parameter.grad.any())) == own, name


def test_the_total_is_the_weighted_sum() -> None:
    step = IRNObjective(network(), experiment())(BATCH, {}, 0)
    halves = [step.terms[name] / 2 for name in ("alike", "unlike", "foreground", "background")]
    torch.testing.assert_close(step.total, step.terms["cls"] + sum(halves))
    assert step.state["label/known"] == 1


def test_a_frozen_backbone_stays_and_the_rates_are_the_published_ones() -> None:
    model = network(**{"model.frozen": True})
    assert not any(p.requires_grad for p in model.backbone.parameters())
    before = {name: tensor.clone() for name, tensor in model.backbone.state_dict().items()}
    optim = resolve("irn", {}).optim
    optimizer = build_optimizer(model, optim)
    assert [group["lr_scale"] for group in optimizer.param_groups] == [1, 10] and optim.lr == 0.1
    IRNObjective(model.train(), experiment())(BATCH, {}, 0).total.backward()
    optimizer.step()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.backbone.state_dict().items())


def test_the_mean_displacement_is_taken_off_in_evaluation_alone() -> None:
    model = network().train()
    features = model.scored(BATCH["view1"]).features
    trained = model.displacement(features)
    mean = model.displacement_branch.mean.running_mean
    assert mean is not None
    torch.testing.assert_close(mean, 0.1 * trained.detach().mean((0, 2, 3)))
    model.eval()
    torch.testing.assert_close(model.displacement(features), trained - mean[:, None, None])


def test_maps_are_those_of_the_classifier_before_and_after_the_walk() -> None:
    model = network().eval()
    with torch.no_grad(), model.given(BATCH["labels"]):
        output = model(BATCH["view1"])
        maps = model.class_maps(BATCH["view1"], output)
        boundary = model.boundary(output.features).sigmoid()
    torch.testing.assert_close(maps["aux_cam"], F.conv2d(output.features[-1], model.classifier.weight))
    fine = F.interpolate(maps["aux_cam"].relu(), size=(8, 8), mode="bilinear", align_corners=False)
    for image in range(2):
        walked = random_walk(fine[image], boundary[image], radius=3, power=10.0, log_steps=2)
        torch.testing.assert_close(maps["cam"][image], walked * BATCH["labels"][image, :, None, None])


def test_a_radius_that_leaves_no_pair_is_refused() -> None:
    with pytest.raises(UsageError, match=r"relations.radius: 6 cells leave no pair in a crop of 8 cells; at most 4"):
        experiment(**{"relations.radius": 6})
