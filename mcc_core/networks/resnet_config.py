"""Fields of the methods whose encoder is a ResNet of timm at stride 16. Defaults are those of the published code."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from mcc_core import config as shared
from mcc_core.config import CamConfig, Fraction, Strict


class ResNetConfig(shared.ModelConfig):
    """A ResNet at stride 16."""

    backbone: str = Field("resnet50.tv_in1k", description="a ResNet of timm; published: torchvision's first weights")
    dilation: Literal[1, 2] = Field(
        1, description="of the last stage, which keeps its stride: published code has 1, that is, dilates nothing"
    )
    frozen: bool = Field(
        True,
        description="the first convolution and norm, and the statistics of all batch norms, stay as ImageNet left "
        "them; false for random weights",
    )


class LongSideConfig(Strict):
    """Random size, crop and flip of the one view."""

    long_side: tuple[int, int] = Field((320, 640), description="range of the longer side before the crop, in pixels")

    @model_validator(mode="after")
    def _ordered(self) -> LongSideConfig:
        if not 1 <= self.long_side[0] <= self.long_side[1]:
            raise ValueError(f"long_side: {list(self.long_side)} must be two sizes, the smaller first")
        return self


class ScaleConfig(Strict):
    """Random size, crop and flip of the one view and its label map."""

    scale: tuple[float, float] = Field((0.5, 1.5), description="range of the random rescaling before the crop")


class ResNetCamConfig(CamConfig):
    """Multi-scale class activation maps."""

    scales: tuple[float, ...] = Field((1.0, 0.5, 1.5, 2.0), min_length=1)


class ResNetThresholds(shared.ThresholdConfig):
    """Thresholds on min-max normalised CAMs."""

    background: Fraction = Field(0.10, description="at or below is background")
    foreground: Fraction = Field(0.35, description="above is foreground; between, open")
    score: Fraction = Field(0.21, description="background threshold when CAMs are scored as segmentations")


class ResNetComputeConfig(shared.ComputeConfig):
    """How a step is computed."""

    recompute: Literal["nothing", "elementwise", "blocks"] = Field(
        "nothing", description="blocks: the backbone's blocks are computed again in the backward pass"
    )

    @model_validator(mode="after")
    def _can_be_done(self) -> ResNetComputeConfig:
        if self.compile:
            raise ValueError("compile: a ResNet is not compiled here")
        if self.recompute == "elementwise":
            raise ValueError("recompute: 'elementwise': a ResNet has nothing or blocks")
        return self
