"""Training on label maps: the formulas in double precision, the networks, and that maps follow their image."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from trained import smallest

from mcc_core.data.colours import View
from mcc_core.data.index import build_index
from mcc_core.data.label_source import with_labels
from mcc_core.data.make_labels import label_set_of_masks
from mcc_core.errors import UsageError
from mcc_core.evaluation.protocols import supported
from mcc_core.experiment_files import resolve
from mcc_core.methods.registry import method_of, network_of
from mcc_core.methods.segmentation.augment import ImageAndMaps
from mcc_core.methods.segmentation.config import AugmentConfig
from mcc_core.methods.segmentation.objective import class_factors, weighted_cross_entropy
from mcc_core.networks.batch_norm import SyncedBatchNorm
from mcc_core.training.engine import probe

IGNORE = 255


def tiny(**fields: Any) -> Any:
    return smallest("segmentation", **fields)


def decoders() -> dict[str, dict[str, Any]]:
    mixed = {"embed_dims": [8, 8, 8, 8], "num_heads": [1, 1, 1, 1], "depths": [1, 1, 1, 1], "sr_ratios": [4, 2, 1, 1]}
    return {
        "deeplabv2": {},
        "deeplabv3plus": {"model.dilations": [1, 2, 3], "model.output_stride": 16, "model.decoder_channels": 8},
        "upernet": {"model.decoder_channels": 8},
        "segformer": {"model.backbone": "mit_b0", "model.backbone_args": mixed, "model.decoder_channels": 8},
    }


def test_cross_entropy_weighs_classes_and_confidence() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 4, 5, dtype=torch.float64, generator=generator)
    label = torch.randint(0, 3, (2, 4, 5), generator=generator)
    label[0, 0] = IGNORE
    sure = torch.rand(2, 4, 5, dtype=torch.float64, generator=generator)
    factors = torch.tensor([0.5, 1.0, 4.0], dtype=torch.float64)
    top = bottom = 0.0
    logs = logits.log_softmax(1)
    for b, y, x in np.ndindex(2, 4, 5):
        if (c := int(label[b, y, x])) != IGNORE:
            top -= float(factors[c] * sure[b, y, x] * logs[b, c, y, x])
            bottom += float(factors[c])
    assert weighted_cross_entropy(logits, label, factors, sure).item() == pytest.approx(top / bottom, rel=1e-12)
    plain = weighted_cross_entropy(logits, label, None, None)
    torch.testing.assert_close(plain, F.cross_entropy(logits, label, ignore_index=IGNORE))
    assert weighted_cross_entropy(logits, torch.full_like(label, IGNORE), factors, sure).item() == 0


def test_balanced_classes_count_alike() -> None:
    label = torch.tensor([[[0, 0, 0, 0, 0, 0, 1, 1, IGNORE]]])
    factors = class_factors(label, 3, 1.0, None)
    assert factors is not None
    assert (factors * torch.tensor([6.0, 2.0, 0.0])).tolist() == pytest.approx([4.0, 4.0, 0.0])
    half = class_factors(label, 3, 0.5, torch.tensor([1.0, 2.0, 1.0]))
    assert half is not None and half.tolist() == pytest.approx([(4 / 6) ** 0.5, 2 * 2**0.5, 0.0])
    assert class_factors(label, 3, 0.0, None) is None


@pytest.mark.parametrize("decoder", decoders())
def test_networks_take_any_size_and_give_gradients(decoder: str) -> None:
    experiment = tiny(**{"model.decoder": decoder, **decoders()[decoder]})
    torch.manual_seed(0)
    network = network_of(experiment, 3)
    images = torch.randn(2, 3, 66, 70)
    output = network(images)
    assert output.cls.shape == (2, 3) and output.seg.shape[:2] == (2, 4)
    cell = 8 if decoder == "deeplabv2" else 4
    assert output.seg.shape[2:] == (-(-66 // cell), -(-70 // cell))
    (output.seg.square().mean()).backward()
    assert all(p.grad is not None for p in network.parameters())
    assert network.class_maps(images) == {} and network.map_stages == ()
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    assert all(isinstance(norm, SyncedBatchNorm) for norm in norms)
    network.eval()
    probabilities = output.seg.softmax(1)[:, 1:].flatten(2).max(2).values
    torch.testing.assert_close(output.cls.sigmoid(), probabilities, rtol=1e-4, atol=1e-6)


def test_frozen_norms_keep_their_statistics_and_are_not_trained() -> None:
    network = network_of(tiny(**{"model.frozen_norms": True}), 3)
    network.train()
    name, norm = next((n, m) for n, m in network.named_modules() if isinstance(m, nn.BatchNorm2d))
    before = network.state_dict()[f"{name}.running_mean"].clone()
    network(torch.randn(2, 3, 32, 32))
    assert torch.equal(network.state_dict()[f"{name}.running_mean"], before)
    assert name.startswith("encoder.") and not norm.weight.requires_grad


def test_backbone_weights_come_from_a_file(tmp_path: Path) -> None:
    torch.manual_seed(1)
    source = network_of(tiny(), 3)
    tensors = {n.removeprefix("encoder.model."): t for n, t in source.state_dict().items() if n.startswith("encoder.")}
    torch.save(tensors | {"fc.weight": torch.zeros(3)}, tmp_path / "resnet.pth")
    torch.manual_seed(2)
    network = network_of(tiny(**{"model.weights": str(tmp_path / "resnet.pth")}), 5)
    own = network.state_dict()
    assert all(torch.equal(own[f"encoder.model.{name}"], tensor) for name, tensor in tensors.items())
    del tensors["layer1.0.conv1.weight"]
    torch.save(tensors, tmp_path / "short.pth")
    with pytest.raises(UsageError, match=r"short\.pth: lacks 1 tensors of the backbone, such as layer1\.0\.conv1"):
        network_of(tiny(**{"model.weights": str(tmp_path / "short.pth")}), 3)


def test_a_vision_transformer_is_a_backbone(tmp_path: Path) -> None:
    args = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3}
    vit = {"model.backbone": "vit_tiny_patch16_224", "model.backbone_args": args}
    torch.manual_seed(0)
    network = network_of(tiny(**vit), 3)
    images = torch.randn(2, 3, 36, 45)
    output = network(images)
    assert output.seg.shape == (2, 4, 5, 6)  # cells that an image fills in part are there
    assert network.parameter_groups(tiny(**vit).optim)
    (output.seg.square().mean()).backward()
    assert [n for n, p in network.named_parameters() if p.grad is None] == ["encoder.vit.pos_embed"]
    tensors = {n.removeprefix("encoder."): t for n, t in network.state_dict().items() if n.startswith("encoder.")}
    torch.save({n.removeprefix("vit."): t for n, t in tensors.items()}, tmp_path / "vit.pth")
    other = network_of(tiny(**vit, **{"model.weights": str(tmp_path / "vit.pth")}), 5)
    assert all(torch.equal(other.state_dict()[f"encoder.{name}"], tensor) for name, tensor in tensors.items())


@pytest.mark.parametrize("seed", range(8))
def test_maps_follow_their_image(seed: int) -> None:
    label = np.zeros((40, 61), np.uint8)
    label[10:22, 5:31] = 2
    label[30:, 40:] = 1
    image = torch.from_numpy(label * 100).repeat(3, 1, 1)
    augment = ImageAndMaps(AugmentConfig(scale=(0.5, 2.0)), 48)
    confidence = torch.from_numpy(label * 100 + 50)
    made = augment(image, torch.Generator().manual_seed(seed), label=torch.from_numpy(label), confidence=confidence)
    view, cut, sure = made["view"], made["label"], made["confidence"]
    assert isinstance(view, View) and isinstance(cut, torch.Tensor) and isinstance(sure, torch.Tensor)
    top, bottom, left, right = made["box"].tolist()  # type: ignore[union-attr]
    inside = torch.zeros(48, 48, dtype=torch.bool)
    inside[top:bottom, left:right] = True
    assert (cut[~inside] == IGNORE).all() and (cut[inside] != IGNORE).all() and (sure[~inside] == 0).all()
    assert torch.equal(sure[inside], cut[inside] * 100 + 50)
    wrong = (view.pixels[0][inside].float() - cut[inside].float() * 100).abs() > 50
    assert wrong.float().mean() < 0.05  # the image is smoothed at the borders, the labels are not
    again = augment(image, torch.Generator().manual_seed(seed), label=torch.from_numpy(label))
    assert set(again) == {"view", "box", "label"} and torch.equal(again["label"], cut)  # type: ignore[arg-type]


def test_a_step_needs_the_label_set_and_uses_optional_terms(tmp_path: Path) -> None:
    experiment = tiny(**{"loss.reg": 0.1, "loss.balance": 0.5, "loss.seg": 1.0, "labels.supervision": "full"})
    index = build_index(experiment.data, tmp_path)
    with pytest.raises(UsageError, match="labels: the dataset was read without them"):
        probe(experiment, index, torch.device("cpu"), steps=1)
    label_set_of_masks(index, tmp_path / "set")
    labels = experiment.labels.model_copy(update={"source": tmp_path / "set"})
    assert probe(experiment, with_labels(index, labels, tmp_path), torch.device("cpu"), steps=1) > 0
    assert method_of(experiment).terms_of(experiment) == ("seg", "reg")
    with pytest.raises(UsageError, match="class_weights: 2 numbers; expected 9: the background's and one for each"):
        method_of(experiment).objective(network_of(experiment, 8), tiny(**{"loss.class_weights": [1, 2]}))


def test_it_is_scored_by_what_it_has() -> None:
    assert supported(()) == ("single", "ms", "ms_crf")
    assert "cam" in supported(("cam",)) and "aux_cam" not in supported(("cam",))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model.backbone": "mit_b0"}, "'mit_b0' goes with decoder: segformer"),
        ({"model.decoder": "segformer"}, "not a mix transformer"),
        ({"model.decoder": "deeplabv3plus"}, "dilations: deeplabv3plus has three, such as 12, 24, 36; found 4"),
        ({"model.weights": "imagenet"}, "deeplabv2 has timm, random or a file"),
        ({"model.backbone_args": {"layers": [1, 1, 1, 1]}}, "weights: timm's do not fit a backbone with backbone_args"),
        ({"compute.compile": True}, "compute.compile: of segmentation networks only segformer's"),
        ({"loss.class_weights": [0, 0]}, "class_weights: must be at least 0, and some above it"),
        (
            {"model.backbone": "vit_tiny_patch16_224", "model.decoder": "upernet"},
            "transformer goes with decoder: deepl",
        ),
        ({"labels.supervision": "some"}, "labels.supervision: 'some': expected 'weak' or 'full'"),
    ],
)
def test_what_cannot_be_is_one_line(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        resolve("segmentation", fields)
    assert "\n" not in str(caught.value)


def test_a_backbone_without_feature_maps_is_one_line() -> None:
    for backbone in ("resnet1010", "swin_tiny_patch4_window7_224", "vit_none"):
        with pytest.raises(UsageError, match=r"model\.backbone: "):
            network_of(tiny(**{"model.backbone": backbone, "model.backbone_args": {}}), 3)
