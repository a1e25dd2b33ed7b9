"""WideResNet-38, `rna-a1` (Wu et al. 2016): pre-activation residual stages at stride 8 without pooling.

timm has no such network. Its ImageNet weights are a file, `ilsvrc-cls_rna-a1_cls1000_ep-0001.pth`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mcc_core.errors import UsageError
from mcc_core.networks.backbones import shape_text
from mcc_core.weights_file import named_tensors, read_content

PUBLISHED_FILE = "ilsvrc-cls_rna-a1_cls1000_ep-0001.pth"
DEPTHS = (3, 3, 6, 3)  # blocks of stages 2 to 5
STRIDE = 8
_LAYERS = {
    **{"bn_branch2a": "norm1", "conv_branch2a": "conv1", "bn_branch2b1": "norm2", "conv_branch2b1": "conv2"},
    **{"bn_branch2b2": "norm3", "conv_branch2b2": "conv3", "conv_branch1": "shortcut"},
}
_BLOCK = re.compile(r"b([2-7])(?:_(\d+))?\.(\w+)\.(\w+)")


class Block(nn.Module):
    """Two 3x3 convolutions, each after batch norm and ReLU, around a shortcut."""

    def __init__(
        self, inputs: int, middle: int, outputs: int, *, stride: int = 1, dilations: tuple[int, int] = (1, 1)
    ) -> None:
        super().__init__()
        first, second = dilations
        self.norm1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, middle, 3, stride, padding=first, dilation=first, bias=False)
        self.norm2 = nn.BatchNorm2d(middle)
        self.conv2 = nn.Conv2d(middle, outputs, 3, padding=second, dilation=second, bias=False)
        changes = inputs != outputs or stride > 1
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False) if changes else None

    def forward(self, x: Tensor) -> Tensor:
        active = F.relu(self.norm1(x))
        kept = x if self.shortcut is None else self.shortcut(active)
        return kept + self.conv2(F.relu(self.norm2(self.conv1(active))))


class Bottleneck(nn.Module):
    """A 1x1, a dilated 3x3 and a 1x1 convolution with dropout of whole channels between them."""

    def __init__(self, inputs: int, outputs: int, dilation: int, dropout: float) -> None:
        super().__init__()
        quarter, half = outputs // 4, outputs // 2
        self.norm1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, quarter, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(quarter)
        self.conv2 = nn.Conv2d(quarter, half, 3, padding=dilation, dilation=dilation, bias=False)
        self.norm3 = nn.BatchNorm2d(half)
        self.conv3 = nn.Conv2d(half, outputs, 1, bias=False)
        self.shortcut = nn.Conv2d(inputs, outputs, 1, bias=False)
        self.dropout = nn.Dropout2d(dropout)

    def forward(self, x: Tensor) -> Tensor:
        active = F.relu(self.norm1(x))
        inner = self.conv2(self.dropout(F.relu(self.norm2(self.conv1(active)))))
        return self.shortcut(active) + self.conv3(self.dropout(F.relu(self.norm3(inner))))


class WideResNet38(nn.Module):
    """Features at stride 4 (4 * width channels) and at stride 8 (64 * width channels).

    Args:
        width: channels of the first convolution; 64 is published.
        depths: blocks of stages 2 to 5; stages 6 and 7 are one bottleneck each.
        recompute: blocks are computed again in the backward pass instead of kept.
    """

    def __init__(self, width: int = 64, depths: tuple[int, ...] = DEPTHS, *, recompute: bool = False) -> None:
        super().__init__()
        self.shallow_channels, self.channels, self.recompute = 4 * width, 64 * width, recompute
        self.conv1 = nn.Conv2d(3, width, 3, padding=1, bias=False)
        # (input, middle, output) channels in widths, stride, dilations of the first block and of the others
        plan = (
            (1, 2, 2, 2, (1, 1), (1, 1)),
            (2, 4, 4, 2, (1, 1), (1, 1)),
            (4, 8, 8, 2, (1, 1), (1, 1)),
            (8, 8, 16, 1, (1, 2), (2, 2)),
        )
        stages: list[nn.Module] = []
        for depth, (inputs, middle, outputs, stride, first, others) in zip(depths, plan, strict=True):
            a, m, b = inputs * width, middle * width, outputs * width
            blocks = [Block(a, m, b, stride=stride, dilations=first)]
            blocks += [Block(b, m, b, dilations=others) for _ in range(depth - 1)]
            stages.append(nn.Sequential(*blocks))
        stages.append(nn.Sequential(Bottleneck(16 * width, 32 * width, 4, 0.3)))
        stages.append(nn.Sequential(Bottleneck(32 * width, 64 * width, 4, 0.5)))
        self.stages = nn.ModuleList(stages)
        self.norm = nn.BatchNorm2d(self.channels)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Shallow B,4w,H/4,W/4 and deep B,64w,H/8,W/8 features of images B,3,H,W; sides are rounded up."""
        outputs = self.stage_outputs(images)
        return outputs[1], F.relu(self.norm(outputs[-1]))

    def stage_outputs(self, images: Tensor) -> list[Tensor]:
        """What stages 2 to 7 add up to, before any norm, of images B,3,H,W."""
        x, outputs = self.conv1(images), []
        for stage in self.stages:
            for block in stage:  # type: ignore[attr-defined]
                x = checkpoint(block, x, use_reentrant=False) if self.recompute and self.training else block(x)
            outputs.append(x)
        return outputs

    def first_layers(self) -> list[nn.Module]:
        """The first convolution and stage 2, which methods keep as ImageNet left them."""
        return [self.conv1, self.stages[0]]


class WideResNet38Levels(WideResNet38):
    """The same network as a backbone of three levels at stride 8: after stages 4, 5 and 7, each normed and rectified.

    Args:
        frozen: the first convolution, stage 2 and all batch norms stay as they came.
    """

    def __init__(
        self, width: int = 64, depths: tuple[int, ...] = DEPTHS, *, frozen: bool, recompute: bool = False
    ) -> None:
        super().__init__(width, depths, recompute=recompute)
        self.frozen, self.widths = frozen, (8 * width, 16 * width, self.channels)
        if frozen:
            for module in (*self.first_layers(), *self._norms()):
                module.requires_grad_(False)

    def train(self, mode: bool = True) -> WideResNet38Levels:
        """Training mode, in which frozen batch norms keep to their running statistics."""
        super().train(mode)
        if self.frozen:
            for norm in self._norms():
                norm.eval()
        return self

    def forward(self, images: Tensor) -> list[Tensor]:  # type: ignore[override]
        """Features B,D,H/8,W/8 of images B,3,H,W; sides are rounded up."""
        outputs = self.stage_outputs(images)
        norms = (self.stages[3][0].norm1, self.stages[4][0].norm1, self.norm)  # type: ignore[index]
        return [F.relu(norm(x)) for norm, x in zip(norms, (outputs[2], outputs[3], outputs[5]), strict=True)]

    def _norms(self) -> list[nn.BatchNorm2d]:
        return [m for m in self.modules() if isinstance(m, nn.BatchNorm2d)]


def own_name(published: str) -> str:
    """Our name of a tensor of the published file; a name of ours is itself."""
    if match := _BLOCK.fullmatch(published):
        stage, block, layer, tensor = match.groups()
        return f"stages.{int(stage) - 2}.{block or 0}.{_LAYERS.get(layer, layer)}.{tensor}"
    for old, new in (("conv1a.", "conv1."), ("bn7.", "norm.")):
        if published.startswith(old):
            return new + published.removeprefix(old)
    return published


def sizes_of(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """`width` and `depths` of the network that tensors, in published or own names, belong to, as far as they tell."""
    state = {own_name(name): tensor for name, tensor in tensors.items()}
    fields: dict[str, Any] = {}
    if (first := state.get("conv1.weight")) is not None:
        fields["width"] = len(first)
    blocks = {(int(m[1]), m[2]) for name in state if (m := re.match(r"stages\.([0-3])\.(\d+)\.", name))}
    depths = [sum(stage == s for s, _ in blocks) for stage in range(4)]
    return fields | ({"depths": depths} if all(depths) else {})


def load_wide_resnet38(backbone: WideResNet38, path: Path) -> None:
    """Load the published ImageNet file, or the backbone of a checkpoint of ours; a classifier in it is left out.

    Raises UsageError when the file is missing, unreadable or not finite, or lacks or misshapes a tensor.
    """
    where = f"model.weights: {path}"
    fill_wide_resnet38(backbone, named_tensors(read_content(path, "model.weights: "), where), where)


def fill_wide_resnet38(backbone: WideResNet38, tensors: Mapping[str, Tensor], where: str) -> tuple[str, ...]:
    """Put named tensors into the backbone; the names of those without a place. Raises UsageError, with `where`."""
    names = {name: own_name(name.removeprefix("backbone.")) for name in tensors}
    state = {own: tensors[name] for name, own in names.items()}
    own = backbone.state_dict()
    counters = [name for name in own if name.endswith(".num_batches_tracked")]  # older files have none
    state |= {name: own[name] for name in counters if name not in state}
    if wrong := [name for name in own if name in state and state[name].shape != own[name].shape]:
        name = wrong[0]
        raise UsageError(
            f"{where}: does not fit model.width and model.depths: {name} is {shape_text(state[name])}, "
            f"not {shape_text(own[name])}"
        )
    if missing := [name for name in own if name not in state]:
        raise UsageError(
            f"{where}: lacks {len(missing)} tensors of wide_resnet38, such as {missing[0]}; "
            f"it starts with {', '.join(list(tensors)[:3])}"
        )
    backbone.load_state_dict({name: state[name] for name in own})
    return tuple(name for name, ours in names.items() if ours not in own)
