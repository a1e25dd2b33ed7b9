"""The experiment schema of PSA. Defaults are the paper's and, of training, those of the authors' instructions."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from mcc_core import config as shared
from mcc_core.config import Fraction, LabelsConfig, ParConfig, Strict, Weight
from mcc_core.networks.resnet_config import (
    ResNetCamConfig,
    ResNetComputeConfig,
    ResNetConfig,
    ResNetThresholds,
    ScaleConfig,
)

WIDE = "wide_resnet38"
Channels = Annotated[int, Field(ge=1)]


class ModelConfig(ResNetConfig):
    """A backbone at stride 8, and one feature of its last three levels."""

    backbone: str = Field("resnet50.tv_in1k", description=f"a ResNet of timm, or {WIDE}, which the authors have")
    backbone_args: dict[str, Any] = Field(
        default_factory=dict, description=f"overrides for timm.create_model; of {WIDE}: width and depths"
    )
    dilation: Literal[1, 2] = Field(
        2, description=f"of a ResNet's last two stages, which do not stride; 1: they are not dilated; {WIDE} always is"
    )
    channels: tuple[Channels, Channels, Channels] = Field(
        (128, 256, 512), description="of the 1x1 convolutions on the last three levels, whose outputs are joined"
    )
    distance: Literal["mean", "sum"] = Field(
        "mean", description="of features: the L1 norm of their difference (sum), or that divided by their channels"
    )

    @model_validator(mode="after")
    def _can_be_had(self) -> ModelConfig:
        if self.backbone != WIDE:
            return self
        if self.weights == "timm":
            raise ValueError(f"weights: timm has no {WIDE}: give the published file, or random")
        if unknown := sorted(set(self.backbone_args) - {"width", "depths"}):
            raise ValueError(f"backbone_args: {unknown[0]}: {WIDE} has width and depths")
        width, depths = self.backbone_args.get("width", 64), self.backbone_args.get("depths", (3, 3, 6, 3))
        if not isinstance(width, int) or width < 1:
            raise ValueError(f"backbone_args: width: {width!r}: expected a whole number above 0, such as 64")
        numbers = isinstance(depths, list | tuple) and all(isinstance(depth, int) and depth > 0 for depth in depths)
        if not numbers or len(depths) != 4:
            raise ValueError(f"backbone_args: depths: {depths!r}: expected four whole numbers, such as [3, 3, 6, 3]")
        return self


class RelationsConfig(Strict):
    """Which pairs of cells are learned from."""

    radius: int = Field(5, ge=2, description="gamma: distance below which cells of 8 pixels are a pair")


class WalkConfig(Strict):
    """The random walk that spreads the trial's own class maps."""

    radius: int = Field(5, ge=2, description="distance below which a step leads, in cells of 8 pixels")
    power: float = Field(8.0, gt=0, description="beta: affinities are raised to it")
    log_steps: int = Field(8, ge=0, le=12, description="the walk has 2 to this power steps")


class ThresholdConfig(ResNetThresholds):
    """Thresholds on min-max normalised maps."""

    score: Fraction = Field(0.28, description="background threshold when maps are scored as segmentations")


class LossConfig(shared.LossConfig):
    """Weights of the loss terms."""

    cls: Weight = Field(1.0, description="of the linear classifier that the scores need; features get none of it")
    background: Weight = Field(1.0, description="affinity of background pairs")
    foreground: Weight = Field(1.0, description="affinity of pairs of one class")
    unlike: Weight = Field(2.0, description="affinity of pairs of different classes")


class OptimConfig(shared.OptimConfig):
    """SGD with a polynomial rate."""

    kind: Literal["adamw", "adam", "sgd"] = "sgd"
    lr: float = Field(0.1, gt=0)
    head_lr_scale: float = Field(10.0, gt=0, description="factor for everything but the backbone")
    weight_decay: float = Field(5e-4, ge=0)
    nesterov: bool = False
    warmup: int = Field(0, ge=0, description="iterations")


class TrainConfig(shared.TrainConfig):
    iterations: int = Field(10_576, ge=1, description="published: 8 epochs of 1322")
    batch_size: int = Field(8, ge=1, description="images per forward pass; losses are normalised over these")
    crop: int = Field(448, ge=16)


class Experiment(shared.Experiment):
    """One validated configuration of PSA. With a seed it is a trial."""

    method: Literal["psa"] = "psa"
    labels: LabelsConfig = LabelsConfig()
    augment: ScaleConfig = ScaleConfig()
    model: ModelConfig = ModelConfig()
    relations: RelationsConfig = RelationsConfig()
    walk: WalkConfig = WalkConfig()
    thresholds: ThresholdConfig = ThresholdConfig()
    cam: ResNetCamConfig = ResNetCamConfig()
    par: ParConfig = Field(default_factory=ParConfig, description="of the protocol refined")
    loss: LossConfig = LossConfig()
    optim: OptimConfig = OptimConfig()
    compute: ResNetComputeConfig = ResNetComputeConfig()
    train: TrainConfig = TrainConfig()

    @model_validator(mode="after")
    def _consistent(self) -> Experiment:
        self.thresholds.check_order(self.train.iterations)
        return self
