"""The experiment schema of SLRNet. Defaults are the published VOC recipe, its epochs of 661 iterations counted out."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, PositiveFloat, model_validator

from mcc_core import config as shared
from mcc_core.config import Fraction, PamrConfig, Strict, Weight


class ModelConfig(shared.ModelConfig):
    """Backbone, trunk and heads."""

    backbone: str = Field("wide_resnet38", description="WideResNet-38 is what there is; timm has none")
    backbone_args: dict[str, Any] = Field(default_factory=dict, description="none: see width and depths")
    weights: Literal["timm", "random"] | Path = Field(
        Path("ilsvrc-cls_rna-a1_cls1000_ep-0001.pth"),
        description="a local file in the published layout of rna-a1, a checkpoint of ours, or random",
    )
    width: int = Field(64, ge=1, description="channels of the first convolution; the last have 64 times as many")
    depths: tuple[int, int, int, int] = Field((3, 3, 6, 3), description="residual blocks of stages 2 to 5")
    frozen: bool = Field(
        True,
        description="the first convolution, stage 2 and all batch norms of the backbone stay as ImageNet left them; "
        "false for random weights",
    )
    channels: int = Field(256, ge=1, description="of the trunk's features, which are factorised")
    skip_channels: int = Field(48, ge=1, description="of the shallow features that join the ASPP's")
    dilations: tuple[int, int, int] = Field((12, 24, 36), description="of the ASPP's 3x3 convolutions")
    norm_momentum: float = Field(0.05, gt=0, le=1, description="of the new layers' batch norms")

    @model_validator(mode="after")
    def _can_be_had(self) -> ModelConfig:
        if self.backbone != "wide_resnet38":
            raise ValueError(f"backbone: {self.backbone!r}: SLRNet has wide_resnet38")
        if self.backbone_args:
            raise ValueError("backbone_args: wide_resnet38 has none; its size is width and depths")
        if self.weights == "timm":
            raise ValueError("weights: timm has no wide_resnet38: give the published file, or random")
        if min(self.depths) < 1 or min(self.dilations) < 1:
            raise ValueError("depths and dilations must be at least 1")
        return self


class AugmentConfig(Strict):
    """RandomResizedCrop, flip and colour jitter."""

    area: tuple[float, float] = Field((0.9, 1.0), description="share of the area that a crop keeps")
    brightness: float = Field(0.3, ge=0, lt=1)
    contrast: float = Field(0.3, ge=0, lt=1)
    saturation: float = Field(0.3, ge=0, lt=1)
    hue: float = Field(0.1, ge=0, le=0.5)


class FactorisationConfig(Strict):
    """Cross-view low-rank module: one dictionary of C+1 atoms for the tokens of both views."""

    scale: float = Field(0.5, gt=0, description="size of the second view")
    iterations: int = Field(1, ge=1, description="alternations of code and dictionary")
    temperature: float = Field(1.0, gt=0, description="of the code's softmax over atoms")


class GateConfig(Strict):
    """Stochastic gate between deep features and shallow ones with global cues (Araslanov and Roth 2020)."""

    rate: float = Field(0.3, ge=0, lt=1, description="share of the shallow features")


class ScoreConfig(Strict):
    """Class score of masks: normalised global weighted pooling with a penalty on small masks."""

    penalty_power: float = Field(3.0, ge=0)
    penalty_floor: float = Field(0.01, gt=0)


class LossConfig(shared.LossConfig):
    """Weights of the loss terms."""

    cls: Weight = Field(1.0, description="multi-label soft margin of the class scores of both views")
    positive_weight: PositiveFloat | tuple[PositiveFloat, ...] = Field(
        1.0, description="in cls, of a class that an image has: one number, or one for each class"
    )
    reg1: Weight = Field(4.0, description="difference of the two views' masks of the image's classes")
    reg2: Weight = Field(4.0, description="difference of the two views' codes, the largest atom of each pixel")
    seg: Weight = Field(1.0, description="class-balanced cross entropy to the pseudo-label")
    aux: Fraction = Field(0.4, description="share of the auxiliary head in cls and seg")
    seg_start: int = Field(3966, ge=0, description="seg counts from this iteration (0-based); published: epoch 6")


class OptimConfig(shared.OptimConfig):
    """SGD, weights and biases apart, with a cosine that begins where pre-training ends."""

    kind: Literal["adamw", "sgd"] = "sgd"
    lr: float = Field(5e-4, gt=0)
    head_lr_scale: float = Field(10.0, gt=0, description="factor for everything but the backbone")
    bias_lr_scale: float = Field(2.0, gt=0, description="factor for biases, which do not decay")
    weight_decay: float = Field(5e-4, ge=0)
    schedule: Literal["poly", "cosine"] = "cosine"
    decay_start: int = Field(3966, ge=0, description="cosine: iteration at which the decay begins")
    decay_iterations: int | None = Field(
        16_525, ge=1, description="cosine: its length; published: 25 epochs, of which the run has 24; null: to the end"
    )
    warmup: int = Field(0, ge=0, description="iterations")


class ComputeConfig(shared.ComputeConfig):
    """How a step is computed."""

    recompute: Literal["nothing", "elementwise", "blocks"] = Field(
        "nothing", description="blocks: the backbone's blocks are computed again in the backward pass"
    )

    @model_validator(mode="after")
    def _can_be_done(self) -> ComputeConfig:
        if self.compile:
            raise ValueError("compile: SLRNet is not compiled: it has no blocks that repeat")
        if self.recompute == "elementwise":
            raise ValueError("recompute: 'elementwise': SLRNet has nothing or blocks")
        return self


class TrainConfig(shared.TrainConfig):
    iterations: int = Field(19_830, ge=1, description="published: 30 epochs of 661")
    batch_size: int = Field(16, ge=1, description="images per forward pass; losses are normalised over these")
    crop: int = Field(321, ge=16)


class Experiment(shared.Experiment):
    """One validated configuration of SLRNet. With a seed it is a trial."""

    method: str = "slrnet"
    augment: AugmentConfig = AugmentConfig()
    model: ModelConfig = ModelConfig()
    factorisation: FactorisationConfig = FactorisationConfig()
    gate: GateConfig = GateConfig()
    score: ScoreConfig = ScoreConfig()
    pseudo_label: PamrConfig = PamrConfig()
    loss: LossConfig = LossConfig()
    optim: OptimConfig = OptimConfig()
    compute: ComputeConfig = ComputeConfig()
    train: TrainConfig = TrainConfig()

    @model_validator(mode="after")
    def _second_view_is_seen(self) -> Experiment:
        side = int(self.train.crop * self.factorisation.scale)
        if side < 16:
            raise ValueError(f"factorisation.scale: the second view of train.crop would be {side} pixels; at least 16")
        return self
