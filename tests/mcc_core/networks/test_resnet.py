"""ResNets at stride 16: their stages, what stays frozen, where weights come from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import nn

from mcc_core.errors import UsageError
from mcc_core.networks.resnet import ResNetStages
from mcc_core.networks.resnet_config import ResNetConfig

ARGS: dict[str, Any] = {"layers": [1, 1, 1, 1], "channels": [4, 4, 4, 8]}


def stages(**fields: Any) -> ResNetStages:
    torch.manual_seed(0)
    fields = {"weights": "random", "backbone_args": ARGS} | fields
    return ResNetStages(ResNetConfig.model_validate(fields))


@pytest.mark.parametrize("dilation", [1, 2])
def test_the_last_stage_keeps_the_stride_of_the_one_before(dilation: int) -> None:
    backbone = stages(dilation=dilation, backbone_args={**ARGS, "layers": [1, 1, 1, 2]})
    shapes = [tuple(x.shape[1:]) for x in backbone(torch.randn(1, 3, 64, 48))]
    assert shapes == [(64, 16, 12), (16, 16, 12), (16, 8, 6), (16, 4, 3), (32, 4, 3)]
    assert backbone.widths == (64, 16, 16, 16, 32)
    last: Any = backbone.layer4
    assert last[-1].conv2.dilation == (dilation, dilation)


def test_without_its_dilation_it_is_timms_network_with_the_last_stride_taken_out() -> None:
    backbone = stages(frozen=True).eval()
    resnet: Any = timm.create_model("resnet50", num_classes=0, **ARGS)
    own = backbone.state_dict()
    resnet.load_state_dict({name: own[name] for name in resnet.state_dict()})
    for module in resnet.layer4.modules():
        if isinstance(module, nn.Conv2d):
            module.stride = (1, 1)
    images = torch.randn(1, 3, 48, 64)
    with torch.no_grad():
        torch.testing.assert_close(backbone(images)[-1], resnet.eval().forward_features(images))


@pytest.mark.parametrize("frozen", [True, False])
def test_frozen_statistics_stay_in_training(frozen: bool) -> None:
    backbone = stages(frozen=frozen).train()
    norms = [m for m in backbone.modules() if isinstance(m, nn.BatchNorm2d)]
    backbone(torch.randn(2, 3, 32, 32))
    assert all(bool(norm.running_mean.any()) != frozen for norm in norms if norm.running_mean is not None)
    assert backbone.conv1.weight.requires_grad != frozen and norms[-1].weight.requires_grad


def test_computing_blocks_again_changes_nothing() -> None:
    images = torch.randn(2, 3, 32, 32)
    one, two = stages(), stages()
    two.recompute = True
    for backbone in (one.train(), two.train()):
        backbone(images)[-1].square().sum().backward()
    for first, second in zip(one.parameters(), two.parameters(), strict=True):
        assert (first.grad is None) == (second.grad is None)
        if first.grad is not None and second.grad is not None:
            torch.testing.assert_close(first.grad, second.grad)


@pytest.mark.parametrize("prefix", ["", "module.", "backbone."])
def test_weights_of_a_file_in_the_naming_of_torchvision_or_of_ours(prefix: str, tmp_path: Path) -> None:
    given = {f"{prefix}{name}": tensor for name, tensor in stages().state_dict().items() if "num_batches" not in name}
    torch.save(given | {"fc.weight": torch.zeros(10, 32)}, tmp_path / "weights.pth")
    torch.manual_seed(1)
    backbone = ResNetStages(ResNetConfig(weights=tmp_path / "weights.pth", backbone_args=ARGS))
    for name, tensor in backbone.state_dict().items():
        assert "num_batches" in name or torch.equal(tensor, given[f"{prefix}{name}"])


def test_mistakes_are_one_line(tmp_path: Path) -> None:
    torch.save({"conv1.weight": torch.zeros(64, 3, 7, 7)}, tmp_path / "few.pth")
    cases: list[tuple[dict[str, Any], str]] = [
        ({"backbone": "vit_tiny_patch16_224"}, "model.backbone: 'vit_tiny_patch16_224' is not a ResNet of timm"),
        ({"backbone": "resnet5"}, "model.backbone: 'resnet5' is not a ResNet of timm"),
        ({"backbone_args": {"depth": 3}}, "model.backbone_args: .*depth"),
        ({"weights": tmp_path / "few.pth"}, r"few.pth: lacks \d+ tensors of resnet50.tv_in1k, such as bn1.weight"),
    ]
    for fields, said in cases:
        with pytest.raises(UsageError, match=said) as error:
            stages(**fields)
        assert "\n" not in str(error.value)
    torch.save({**stages().state_dict(), "conv1.weight": torch.zeros(8, 3, 7, 7)}, tmp_path / "other.pth")
    with pytest.raises(UsageError, match=r"does not fit model\.backbone: conv1.weight is 8x3x7x7, not 64x3x7x7"):
        stages(weights=tmp_path / "other.pth")
