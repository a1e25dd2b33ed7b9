"""AMN's balanced loss and label conditioning against plain loops in double precision."""

from __future__ import annotations

from typing import cast

import pytest
import torch
from trained import smallest

from mcc_core.methods.amn.config import Experiment
from mcc_core.methods.amn.network import AMNet
from mcc_core.methods.amn.objective import AMNObjective, balanced_cross_entropy
from mcc_core.pseudo_labels.labels import IGNORE


def network(**fields: object) -> AMNet:
    torch.manual_seed(0)
    return AMNet(cast(Experiment, smallest("amn", **fields)), 3).eval()


def test_background_and_foreground_pixels_weigh_alike() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 4, 3, 5, dtype=torch.float64, generator=generator)
    label = torch.randint(0, 4, (2, 3, 5), generator=generator)
    label[0, 0, :3] = IGNORE
    sums, counts, smoothing = [0.0, 0.0], [0, 0], 0.4
    for image in range(2):
        for y in range(3):
            for x in range(5):
                own = int(label[image, y, x])
                if own == IGNORE:
                    continue
                probabilities = logits[image, :, y, x].softmax(0)
                target = torch.full((4,), smoothing / 3, dtype=torch.float64)
                target[own] = 1 - smoothing
                sums[own > 0] -= (target * probabilities.log()).sum().item()
                counts[own > 0] += 1
    wanted = sum(total / count for total, count in zip(sums, counts, strict=True)) / 2
    assert balanced_cross_entropy(logits, label, smoothing).item() == pytest.approx(wanted, rel=1e-12)


@pytest.mark.parametrize("value", [0, 2, IGNORE])
def test_a_batch_without_a_kind_of_pixel_is_finite(value: int) -> None:
    logits = torch.randn(1, 4, 2, 2, requires_grad=True)
    loss = balanced_cross_entropy(logits, torch.full((1, 2, 2), value), 0.4)
    loss.backward()
    assert loss.isfinite() and (loss > 0) == (value != IGNORE)
    assert logits.grad is not None and logits.grad.isfinite().all()


def test_features_are_scaled_by_the_labels() -> None:
    model = network()
    features, labels = torch.randn(2, model.backbone.widths[-1], 4, 4), torch.tensor([[1.0, 0, 0], [0, 1, 1]])
    assert model.encode is not None
    for image in range(2):
        scaled = features[image] * (model.encode.weight @ labels[image] + model.encode.bias)[:, None, None]
        wanted = sum(conv(scaled[None]) for conv in model.pixels)
        torch.testing.assert_close(model.pixel_logits(features, labels)[image : image + 1], wanted)
    plain = network(**{"model.conditioned": False})
    torch.testing.assert_close(plain.pixel_logits(features, labels), plain.pixel_logits(features, 1 - labels))


def test_maps_are_of_the_labels_that_are_given_and_of_the_predicted_ones_elsewhere() -> None:
    model = network()
    images, labels = torch.randn(2, 3, 32, 32), torch.tensor([[1.0, 0, 0], [0, 1, 1]])
    with torch.no_grad():
        output = model(images)
        features = output.features[-1]
        with model.given(labels):
            told = model.class_maps(torch.cat([images, images]))["cam"]
        alone = model.class_maps(images, output)["cam"]
    wanted = model.pixel_logits(features, labels).softmax(1)[:, 1:]
    torch.testing.assert_close(told, torch.cat([wanted, wanted]), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(alone, output.seg.softmax(1)[:, 1:])


def test_the_classifier_that_predictions_need_teaches_the_features_nothing() -> None:
    objective = AMNObjective(network().train(), cast(Experiment, smallest("amn")))
    batch = {
        "view1": torch.randn(2, 3, 32, 32),
        "labels": torch.tensor([[1.0, 0, 0], [0, 1, 1]]),
        "label": torch.randint(0, 4, (2, 32, 32)).to(torch.uint8),
    }
    step = objective(batch, {}, 0)
    step.terms["cls"].backward(retain_graph=True)
    reached = {name for name, p in objective.network.named_parameters() if p.grad is not None and p.grad.any()}
    assert reached == {"classifier.weight"}
    step.total.backward()
    assert all(p.grad is not None for p in objective.network.parameters() if p.requires_grad)
