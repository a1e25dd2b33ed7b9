"""The experiment schema of segmentation networks trained on label maps. Defaults are DeepLabV2's recipe for VOC."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, PositiveFloat, model_validator

from mcc_core import config as shared
from mcc_core.config import EnergyConfig, LabelsConfig, Strict, Weight
from mcc_core.errors import UsageError
from mcc_core.networks.mix_sizes import mix_sizes

Decoder = Literal["deeplabv2", "deeplabv3plus", "upernet", "segformer"]


class AugmentConfig(Strict):
    """Random scale, crop with padding that is not learned from, flip; image and maps alike."""

    scale: tuple[PositiveFloat, PositiveFloat] = Field((0.5, 2.0), description="range of the random rescaling")
    jitter: bool = Field(False, description="brightness, contrast and saturation by 0.4, hue by 0.1, with p 0.8")


class ModelConfig(shared.ModelConfig):
    """Backbone and decoder."""

    decoder: Decoder = Field("deeplabv2", description="what makes the segmentation of the backbone's features")
    backbone: str = Field(
        "resnet101.tv_in1k",
        description="a timm network of feature maps, with deeplabv2 a vision transformer too; with segformer mit_b0 to "
        "mit_b5",
    )
    weights: Literal["timm", "imagenet", "random"] | Path = Field(  # type: ignore[assignment]
        "timm",
        description="timm: its download; random; a local file in timm's naming, or a checkpoint; with segformer "
        "imagenet: a download (NVIDIA's weights, not for commercial use)",
    )
    output_stride: Literal[8, 16] = Field(
        8,
        description="pixels per cell of the deepest features, of the two deeplabs; of a transformer its patches' side",
    )
    dilations: tuple[int, ...] = Field(
        (6, 12, 18, 24), min_length=1, description="of the ASPP's 3x3 convolutions; of deeplabv3plus three of them"
    )
    decoder_channels: int = Field(256, ge=1, description="of all but deeplabv2, whose ASPP gives classes at once")
    dropout: float = Field(0.1, ge=0, lt=1, description="of deeplabv3plus (0.5 is published) and segformer")
    drop_path: float = Field(0.1, ge=0, lt=1, description="segformer: stochastic depth of the last block")
    frozen_norms: bool = Field(
        True, description="batch norms of the backbone stay as ImageNet left them; false for random weights"
    )

    @model_validator(mode="after")
    def _can_be_had(self) -> ModelConfig:
        mixed, transformer = self.decoder == "segformer", self.backbone.startswith(("vit_", "deit"))
        if mixed:
            try:
                mix_sizes(self.backbone, self.backbone_args)
            except UsageError as error:
                raise ValueError(str(error).removeprefix("model.")) from None
        if self.weights == ("timm" if mixed else "imagenet"):
            raise ValueError(
                f"weights: {self.weights!r}: {self.decoder} has {'imagenet' if mixed else 'timm'}, random or a file"
            )
        if self.backbone.startswith("mit_") and not mixed:
            raise ValueError(f"backbone: {self.backbone!r} goes with decoder: segformer")
        if transformer and self.decoder != "deeplabv2":
            raise ValueError(f"backbone: {self.backbone!r}: a vision transformer goes with decoder: deeplabv2")
        if self.backbone_args and self.weights in ("timm", "imagenet") and not transformer:
            raise ValueError(
                f"weights: {self.weights}'s do not fit a backbone with backbone_args; give random or a file"
            )
        if self.decoder == "deeplabv3plus" and len(self.dilations) != 3:
            raise ValueError(f"dilations: deeplabv3plus has three, such as 12, 24, 36; found {len(self.dilations)}")
        if min(self.dilations) < 1:
            raise ValueError("dilations must be at least 1")
        return self


class LossConfig(shared.LossConfig):
    """Weights of the loss terms, and of classes and pixels in them."""

    seg: Weight = Field(1.0, description="cross entropy to the label maps; 255 is ignored")
    reg: Weight = Field(0.0, description="dense energy of the segmentation")
    balance: float = Field(
        0.0, ge=0, le=1, description="seg: classes count by their pixels in the batch to minus this; 1: all alike"
    )
    class_weights: tuple[float, ...] | None = Field(
        None, description="seg: a factor for the background and for each class in their order"
    )
    confidence: bool = Field(True, description="seg: pixels count by the confidence that comes with their label")
    least_confidence: float = Field(0.0, ge=0, le=1, description="seg: pixels of less confidence are ignored")

    @model_validator(mode="after")
    def _positive(self) -> LossConfig:
        if self.class_weights is not None and (min(self.class_weights) < 0 or not any(self.class_weights)):
            raise ValueError("class_weights: must be at least 0, and some above it")
        return self


class OptimConfig(shared.OptimConfig):
    """SGD with a polynomial decay."""

    kind: Literal["adamw", "sgd"] = "sgd"
    lr: float = Field(2.5e-4, gt=0)
    weight_decay: float = Field(5e-4, ge=0)
    nesterov: bool = False
    warmup: int = Field(0, ge=0, description="iterations")


class ComputeConfig(shared.ComputeConfig):
    """How a step is computed."""

    recompute: Literal["nothing", "elementwise", "blocks"] = Field(
        "nothing", description="blocks: the backbone's blocks are computed again in the backward pass"
    )

    @model_validator(mode="after")
    def _can_be_done(self) -> ComputeConfig:
        if self.recompute == "elementwise":
            raise ValueError("recompute: 'elementwise': segmentation has nothing or blocks")
        return self


class TrainConfig(shared.TrainConfig):
    batch_size: int = Field(10, ge=1, description="images per forward pass; losses are normalised over these")
    crop: int = Field(321, ge=16)


class Experiment(shared.Experiment):
    """One validated configuration of a segmentation network. With a seed it is a trial."""

    method: Literal["segmentation"] = "segmentation"
    labels: LabelsConfig = LabelsConfig()
    augment: AugmentConfig = AugmentConfig()
    model: ModelConfig = ModelConfig()
    loss: LossConfig = LossConfig()
    energy: EnergyConfig = EnergyConfig()
    optim: OptimConfig = OptimConfig()
    compute: ComputeConfig = ComputeConfig()
    train: TrainConfig = TrainConfig()

    @model_validator(mode="after")
    def _consistent(self) -> Experiment:
        if self.compute.compile and self.model.decoder != "segformer":
            raise ValueError("compute.compile: of segmentation networks only segformer's backbone is compiled")
        if self.compute.deterministic and self.model.decoder == "upernet":
            raise ValueError("compute.deterministic: upernet's pooling has no deterministic form on GPUs")
        alone = self.train.batch_size * self.train.workers == 1
        if alone and self.model.decoder in ("deeplabv3plus", "upernet"):
            raise ValueError(f"train.batch_size: 1: {self.model.decoder} normalises over a batch of at least 2")
        return self
