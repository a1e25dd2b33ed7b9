"""ReCAM's class-specific features, its loss, its maps and its rates, against plain loops in double precision."""

from __future__ import annotations

from typing import cast

import pytest
import torch
import torch.nn.functional as F
from trained import smallest

from mcc_core.experiment_files import resolve
from mcc_core.methods.recam.config import Experiment
from mcc_core.methods.recam.network import ReCAMNet, pooled_features
from mcc_core.methods.recam.objective import ReCAMObjective, single_label
from mcc_core.training.optim import build_optimizer, set_learning_rate


def drawn(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def network(**fields: object) -> ReCAMNet:
    torch.manual_seed(0)
    return ReCAMNet(cast(Experiment, smallest("recam", **fields)), 3)


def test_features_are_pooled_by_each_classs_map() -> None:
    features, maps = drawn(2, 5, 3, 4), drawn(2, 3, 3, 4)
    found = pooled_features(features, maps)
    for image in range(2):
        for c in range(3):
            highest = max(0.0, maps[image, c].max().item())
            total = torch.zeros(5, dtype=torch.float64)
            for y in range(3):
                for x in range(4):
                    weight = max(0.0, maps[image, c, y, x].item()) / (highest + 1e-5)
                    total += weight * features[image, :, y, x]
            torch.testing.assert_close(found[image, c], total / 12, rtol=1e-12, atol=1e-15)


def test_the_loss_is_the_mean_over_an_images_classes_then_over_images() -> None:
    logits = drawn(3, 4, 4)
    labels = torch.tensor([[1, 0, 1, 0], [0, 0, 0, 0], [0, 1, 0, 0]], dtype=torch.float64)
    total = 0.0
    for image in range(3):
        present = [c for c in range(4) if labels[image, c]]
        losses = [F.cross_entropy(logits[image, c][None], torch.tensor([c])).item() for c in present]
        total += sum(losses) / len(losses) if losses else 0.0
    assert single_label(logits, labels).item() == pytest.approx(total / 3, rel=1e-12)


def test_maps_are_of_the_product_of_both_classifiers_once_the_second_has_learned() -> None:
    model = network(**{"cam.weights": "product"}).eval()
    images = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        output = model(images)
        features = output.features[-1]
        before = model.class_maps(images, output)["cam"]
        model.tuned.fill_(True)
        after = model.class_maps(images, output)["cam"]
    torch.testing.assert_close(before, F.conv2d(features, model.classifier.weight))
    torch.testing.assert_close(after, F.conv2d(features, model.classifier.weight * model.predictor.weight))
    for kind in ("classifier", "predictor"):
        model.kind = kind
        torch.testing.assert_close(model.map_weight(), getattr(model, kind).weight)


def test_both_losses_reach_the_backbone_and_a_step_of_classification_leaves_the_predictor_alone() -> None:
    objective = ReCAMObjective(network(), cast(Experiment, smallest("recam", **{"loss.recam_start": 3})))
    batch = {"view1": torch.randn(2, 3, 32, 32), "labels": torch.tensor([[1.0, 0, 1], [0, 0, 0]])}
    first = objective(batch, {}, 2)
    first.total.backward()
    assert set(first.terms) == {"cls"}
    grads = {name: p.grad for name, p in objective.network.named_parameters()}
    assert all(grad is not None for grad in grads.values()) and not grads["predictor.weight"].any()  # type: ignore[union-attr]
    objective.after_step(2)
    assert not objective.network.tuned
    objective.zero_grad()
    objective(batch, {}, 3).terms["recam"].backward()
    reached = {name for name, p in objective.network.named_parameters() if p.grad is not None and p.grad.any()}
    assert {"predictor.weight", "classifier.weight", "backbone.conv1.weight"} <= reached
    objective.after_step(3)
    assert objective.network.tuned


def test_the_published_rates() -> None:
    """Five epochs at 0.1 and ten times that for the classifier, then four at 5e-5 and 5e-4 for the predictor alone."""
    optim, total = resolve("recam", {}).optim, 9 * 661
    assert resolve("recam", {}).train.iterations == total
    optimizer = build_optimizer(network(), optim)

    def rates(iteration: int) -> list[float]:
        set_learning_rate(optimizer, optim, iteration, total)
        return [group["lr"] for group in optimizer.param_groups]

    assert rates(0) == pytest.approx([0.1, 1.0, 1.0])
    assert rates(3304) == pytest.approx([0.1 * (1 / 3305) ** 0.9 * scale for scale in (1, 10, 10)])
    assert rates(3305) == pytest.approx([5e-5, 5e-5, 5e-4])
    assert rates(4627) == pytest.approx([5e-5 * 0.5**0.9 * scale for scale in (1, 1, 10)])
