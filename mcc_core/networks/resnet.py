"""ResNets of timm as weakly supervised segmentation uses them: late stages do not stride, all stages are at hand."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch
import torch.utils.checkpoint
from torch import Tensor, nn

from mcc_core.errors import UsageError
from mcc_core.networks.backbones import shape_text
from mcc_core.networks.resnet_config import ResNetConfig
from mcc_core.weights_file import named_tensors, read_content

STRIDE = 16  # pixels per cell of the last two stages, unless another is asked for


class ResNetStages(nn.Module):
    """The convolutional part of a timm ResNet, whose last stage does not stride; with `stride` 8 the last two do not.

    Raises UsageError where the backbone or its weights cannot be had.
    """

    def __init__(self, config: ResNetConfig, *, recompute: bool = False, stride: int = STRIDE) -> None:
        super().__init__()
        resnet = _create(config, stride, pretrained=config.weights == "timm")
        if isinstance(config.weights, Path):
            fill_resnet(resnet, named_tensors(read_content(config.weights, "model.weights: "), "model.weights"), config)
        self.conv1, self.bn1, self.act1, self.maxpool = resnet.conv1, resnet.bn1, resnet.act1, resnet.maxpool
        self.layer1, self.layer2, self.layer3, self.layer4 = resnet.layer1, resnet.layer2, resnet.layer3, resnet.layer4
        self.frozen, self.recompute = config.frozen, recompute
        with torch.no_grad():
            self.widths = tuple(x.shape[1] for x in self.eval()(torch.zeros(1, 3, 32, 32)))
        self.train()
        if self.frozen:
            self.conv1.requires_grad_(False)
            self.bn1.requires_grad_(False)

    def train(self, mode: bool = True) -> ResNetStages:
        """Training mode, in which frozen batch norms keep to their running statistics."""
        super().train(mode)
        if self.frozen:
            for module in self.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.eval()
        return self

    def forward(self, images: Tensor) -> list[Tensor]:
        """Features of the stem and of the four stages, at strides 4, 4, 8 and twice `stride`, of images B,3,H,W."""
        x = self.maxpool(self.act1(self.bn1(self.conv1(images))))
        features = [x]
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            for block in layer:
                x = self._block(block, x)
            features.append(x)
        return features

    def _block(self, block: nn.Module, x: Tensor) -> Tensor:
        if self.recompute and torch.is_grad_enabled() and not any_batch_statistics(block):
            return torch.utils.checkpoint.checkpoint(block, x, use_reentrant=False)
        return block(x)


def any_batch_statistics(module: nn.Module) -> bool:
    """Whether a batch norm in it normalises by its batch, whose statistics a second forward would count twice."""
    return any(isinstance(m, nn.BatchNorm2d) and m.training for m in module.modules())


def fill_resnet(resnet: nn.Module, tensors: Mapping[str, Tensor], config: ResNetConfig) -> None:
    """Put named tensors of timm, torchvision or a checkpoint of ours into a ResNet.

    Raises UsageError when some are missing or of other shapes.
    """
    where = f"model.weights: {config.weights}"
    given = {name.removeprefix("backbone."): tensor.float() for name, tensor in tensors.items()}
    own = resnet.state_dict()
    needed = [name for name in own if not name.endswith(".num_batches_tracked")]
    if missing := [name for name in needed if name not in given]:
        starts = ", ".join(list(given)[:3])
        raise UsageError(
            f"{where}: lacks {len(missing)} tensors of {config.backbone}, such as {missing[0]}; it starts with {starts}"
        )
    for name in needed:
        if given[name].shape != own[name].shape:
            shape, other = shape_text(given[name]), shape_text(own[name])
            raise UsageError(f"{where}: does not fit model.backbone: {name} is {shape}, not {other}")
    resnet.load_state_dict({name: given[name] for name in needed}, strict=False)


def _create(config: ResNetConfig, stride: int, *, pretrained: bool) -> Any:
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # a line for each of its own tries, which we sum up
    if not timm.models.is_model_in_modules(config.backbone, ["resnet"]):
        raise UsageError(f"model.backbone: {config.backbone!r} is not a ResNet of timm; such as resnet50.tv_in1k")
    try:
        resnet = timm.create_model(
            config.backbone, pretrained=pretrained, num_classes=0, output_stride=stride, **config.backbone_args
        )
    except (TypeError, AssertionError) as error:
        raise UsageError(f"model.backbone_args: {config.backbone_args}: {error}") from None
    except Exception as error:
        if not pretrained:
            raise
        raise UsageError(
            f"model.weights: timm could not download {config.backbone} ({type(error).__name__}); give a local file "
            "(--set model.weights=FILE, .safetensors or .pth) or --set model.weights=random"
        ) from None
    if config.dilation == 1:
        late: list[Any] = [resnet.layer4] if stride == 16 else [resnet.layer3, resnet.layer4]
        for module in (module for layer in late for module in layer.modules()):
            if isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3):
                module.dilation = module.padding = (1, 1)
    return resnet
