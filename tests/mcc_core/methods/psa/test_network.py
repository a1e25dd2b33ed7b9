"""PSA's network and step: its grid, its backbones, what learns of what, and its class maps."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from trained import smallest

from mcc_core.errors import UsageError
from mcc_core.experiment_files import resolve
from mcc_core.methods.psa.config import Experiment
from mcc_core.methods.psa.network import PSANet
from mcc_core.methods.psa.objective import PSAObjective
from mcc_core.pseudo_labels.pixel_affinity import affinity_walk
from mcc_core.training.optim import build_optimizer

BATCH = {
    "view1": torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)),
    "labels": torch.tensor([[1.0, 0, 0], [0, 1, 1]]),
    "label": torch.randint(0, 3, (2, 4, 4), generator=torch.Generator().manual_seed(1))
    .repeat_interleave(8, 1)
    .repeat_interleave(8, 2)
    .to(torch.uint8),
}
WIDE: dict[str, Any] = {"model.backbone": "wide_resnet38", "model.backbone_args": {"width": 2, "depths": [1, 1, 2, 1]}}


def experiment(**fields: Any) -> Experiment:
    return cast(Experiment, smallest("psa", **fields))


def network(**fields: Any) -> PSANet:
    torch.manual_seed(0)
    return PSANet(experiment(**fields), 3)


@pytest.mark.parametrize("fields", [{}, WIDE], ids=["resnet", "wide"])
def test_cells_are_of_eight_pixels_with_either_backbone(fields: dict[str, Any]) -> None:
    model = network(**fields).eval()
    with torch.no_grad():
        features = model.scored(torch.randn(1, 3, 37, 50)).features
        assert {tuple(x.shape[-2:]) for x in features[-3:]} == {(5, 7)}
        assert tuple(x.shape[1] for x in features[-3:]) == model.backbone.widths[-3:]
        assert model.pixel_features(features).shape == (1, 12, 5, 7)
        assert model.affinities(torch.randn(1, 3, 37, 50), 4).shape == (1, 22, 5, 7)


@pytest.mark.parametrize("dilation", [1, 2])
def test_late_stages_are_dilated_where_they_do_not_stride(dilation: int) -> None:
    backbone = network(**{"model.dilation": dilation}).backbone
    last = [m for m in backbone.layer4.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)]
    assert {conv.dilation for conv in last} == ({(1, 1)} if dilation == 1 else {(2, 2)})
    assert all(conv.padding == conv.dilation for conv in last)


@pytest.mark.parametrize("fields", [{}, WIDE], ids=["resnet", "wide"])
def test_what_is_frozen_stays_and_the_rest_learns(fields: dict[str, Any]) -> None:
    model = network(**fields).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    optim = resolve("psa", {}).optim
    optimizer = build_optimizer(model, optim)
    assert [group["lr_scale"] for group in optimizer.param_groups] == [1, 10] and optim.lr == 0.1
    PSAObjective(model, experiment(**fields))(BATCH, {}, 0).total.backward()
    optimizer.step()
    moved = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert not any(name.endswith(("running_mean", "running_var")) or name == "backbone.conv1.weight" for name in moved)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert moved <= trained and {"classifier.weight", "joined.weight", "levels.0.weight"} <= moved
    assert any(name.startswith("backbone.") for name in moved)


def test_features_learn_of_pairs_alone() -> None:
    objective = PSAObjective(network(), experiment(**{"loss.background": 0, "loss.foreground": 0, "loss.unlike": 0}))
    step = objective(BATCH, {}, 0)
    assert set(step.terms) == {"cls"}
    step.total.backward()
    for name, parameter in objective.network.named_parameters():
        learned = parameter.grad is not None and bool(parameter.grad.any())
        assert learned == (name == "classifier.weight"), name


def test_the_total_is_the_weighted_sum() -> None:
    step = PSAObjective(network(), experiment())(BATCH, {}, 0)
    terms = step.terms
    wanted = terms["cls"] + terms["background"] + terms["foreground"] + 2 * terms["unlike"]
    torch.testing.assert_close(step.total, wanted)
    assert step.state["label/known"] == 1


def test_maps_are_those_of_the_classifier_before_and_after_the_walk() -> None:
    model = network().eval()
    with torch.no_grad():
        output = model(BATCH["view1"])
        maps = model.class_maps(BATCH["view1"], output)
        found = model.affinities(BATCH["view1"], 3)
    torch.testing.assert_close(maps["aux_cam"], F.conv2d(output.features[-1], model.classifier.weight))
    for image in range(2):
        walked = affinity_walk(maps["aux_cam"][image].relu(), found[image], radius=3, power=8.0, log_steps=2)
        torch.testing.assert_close(maps["cam"][image], walked)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"model.weights": "timm"}, "timm has no wide_resnet38: give the published file, or random"),
        ({"model.backbone_args": {"layers": [1, 1]}}, "layers: wide_resnet38 has width and depths"),
        ({"model.backbone_args": {"depths": [1, 1]}}, r"depths: .1, 1.: expected four whole numbers"),
        ({"model.backbone_args": {"width": "big"}}, "width: 'big': expected a whole number above 0"),
    ],
)
def test_sizes_that_the_wide_backbone_lacks_are_one_line(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said) as error:
        experiment(**WIDE | fields)
    assert "\n" not in str(error.value)
