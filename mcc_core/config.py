"""What the experiment schemas of all methods share: everything that can change a trial's numbers, validated once.

Defaults are the published VOC recipe of MCC; presets under `mcc_core/presets` change what differs. Every model forbids
unknown keys and is immutable.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PositiveFloat, model_validator

from mcc_core.schedules import Scheduled, extremes, value_at

IMAGENET_MEAN = (0.485, 0.456, 0.406)  # R G B, of 1: what every network here gets its images normalised by
IMAGENET_STD = (0.229, 0.224, 0.225)


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


def bounded(low: float, high: float = float("inf"), *, open_high: bool = False) -> AfterValidator:
    def check(value: Scheduled) -> Scheduled:
        for v in extremes(value):
            if not (low <= v < high if open_high else low <= v <= high):
                upper = "" if high == float("inf") else f" and {'below' if open_high else 'at most'} {high:g}"
                raise ValueError(f"{v:g} is out of range: must be at least {low:g}{upper}")
        return value

    return AfterValidator(check)


Weight = Annotated[Scheduled, bounded(0.0)]
Fraction = Annotated[Scheduled, bounded(0.0, 1.0)]


class DataConfig(Strict):
    """Which images and image-level labels to train on, and which masks to evaluate on."""

    name: Literal["shapes", "voc"] = Field("voc", description="shapes: generated scenes; voc: a folder in VOC layout")
    root: Path | None = Field(None, description="dataset folder; shapes are generated into the MCC home when not set")
    classes: Path | tuple[str, ...] | None = Field(
        None, description="foreground class names, or a file with one name a line; default: the 20 of VOC, or shapes'"
    )
    train_split: str = Field("train_aug", description="ImageSets/Segmentation/<split>.txt with the training ids")
    val_split: str = Field("val", description="split that evaluation during training scores")
    on_corrupt: Literal["stop", "skip"] = Field("stop", description="an image that cannot be read: stop, or skip it")
    shapes_train: int = Field(800, ge=8, description="shapes: number of training scenes")
    shapes_val: int = Field(100, ge=4, description="shapes: number of validation scenes")
    shapes_size: int = Field(128, ge=32, description="shapes: side of a scene in pixels")
    shapes_seed: int = Field(0, ge=0, description="shapes: seed of the generator")


class LabelsConfig(Strict):
    """The label maps that a method learns from, where it learns from some."""

    source: Path | None = Field(
        None, description="a label set: its folder, its zip, or labels/<identity>, where it lies in storage"
    )
    supervision: Literal["weak", "full"] = Field(
        "weak", description="full: allow maps made of masks that people drew; every table says so"
    )


class AugmentConfig(Strict):
    """Augmentation of the three views."""

    scale: tuple[float, float] = Field((0.5, 2.0), description="range of the random rescaling before the crop")
    global_crop: tuple[float, float] = Field((0.4, 1.0), description="area range of view 2's RandomResizedCrop")
    align_local_flip: bool = Field(False, description="give the local view view 1's flip (published: its own flip)")
    published_box: bool = Field(False, description="reproduce the published code's unflipped image box (a bug)")


class ProjectorConfig(Strict):
    """Projection of class tokens for the contrast: D to hidden, hidden, bottleneck, then weight-normalised to out."""

    kind: Literal["mlp", "linear"] = Field("mlp", description="linear: D to out alone, as section 3.3 reads")
    hidden: int = Field(2048, ge=1)
    bottleneck: int = Field(256, ge=1)
    out: int = Field(1024, ge=1)
    init_std: float = Field(
        0.02, gt=0, description="of the MLP's weights; a narrow MLP needs more, or its normalised output is all noise"
    )


class ModelConfig(Strict):
    """The encoder. Methods add their heads."""

    backbone: str = Field("deit_base_patch16_224", description="a timm vision transformer")
    backbone_args: dict[str, Any] = Field(default_factory=dict, description="overrides for timm.create_model")
    weights: Literal["timm", "random"] | Path = Field(
        "timm",
        description="timm: its download; random; or a local file: .safetensors/.pth in timm naming, or a checkpoint",
    )


class ContrastModelConfig(ModelConfig):
    """Encoder and heads of methods that contrast class tokens."""

    aux_block: int = Field(10, ge=1, description="block (1-based) whose output feeds the auxiliary classifier")
    decoder_channels: int = Field(512, ge=1)
    decoder_dilation: int = Field(5, ge=1)
    projector: ProjectorConfig = ProjectorConfig()


class ThresholdConfig(Strict):
    """Thresholds on min-max normalised CAMs."""

    background: Fraction = Field(0.25, description="beta_bg of Eq. 8: at or below is background")
    foreground: Fraction = Field(0.70, description="beta_fg of Eq. 8: above is foreground")
    score: Fraction = Field(0.50, description="background threshold when CAMs are scored as segmentations")

    def check_order(self, iterations: int) -> None:
        """Raises ValueError where background is not below foreground at some iteration."""
        for i in range(0, iterations, max(1, iterations // 1000)):
            low, high = value_at(self.background, i, iterations), value_at(self.foreground, i, iterations)
            if not low < high:
                raise ValueError(
                    f"thresholds.background ({low:g}) must be below thresholds.foreground ({high:g})"
                    + (f" at iteration {i}" if i else "")
                )


class CamConfig(Strict):
    """Multi-scale class activation maps."""

    scales: tuple[float, ...] = Field((1.0, 0.5, 1.5), min_length=1)


class ParConfig(Strict):
    """Pixel-adaptive refinement of the pseudo-label."""

    iterations: int = Field(10, ge=0)
    dilations: tuple[int, ...] = Field((1, 2, 4, 8, 12, 24), min_length=1)
    color_weight: float = Field(0.3, gt=0, description="w1: width of the colour kernel, in local standard deviations")
    position_weight: float = Field(0.01, ge=0, description="w2: weight of the position kernel")
    downscale: int = Field(2, ge=1)


class PamrConfig(Strict):
    """Pixel-adaptive mask refinement (PAMR) of a network's own masks, and the thresholds on it."""

    iterations: int = Field(10, ge=0)
    dilations: tuple[int, ...] = Field((1, 2, 4, 8, 12, 24), min_length=1)
    spread: float = Field(0.1, gt=0, description="width of the colour kernel, in local standard deviations")
    foreground: float = Field(0.6, ge=0, le=1, description="a class has the pixels above this share of its maximum")
    background: float = Field(0.7, ge=0, le=1, description="the same of the background")
    background_is: Literal["share", "rest"] = Field(
        "share", description="rest: background is where no class is above the share `background` of its maximum"
    )
    least: float = Field(0.2, ge=0, le=1, description="and above this in any case")


class EnergyConfig(Strict):
    """Dense energy regularisation."""

    sigma_rgb: float = Field(15.0, gt=0, description="grey levels of 255")
    sigma_xy: float = Field(100.0, gt=0, description="pixels at full resolution")
    scale: float = Field(0.5, gt=0, le=1)
    weight: float = Field(1e-7, ge=0, description="applied before the loss weight")


class CrfConfig(Strict):
    """Dense CRF settings; the defaults are the published ones."""

    iterations: int = Field(10, ge=1, description="mean-field steps")
    gaussian_sxy: float = Field(1.0, gt=0, description="width of the smoothness kernel, in pixels")
    gaussian_compat: float = Field(1.0, ge=0, description="weight of the smoothness kernel")
    bilateral_sxy: float = Field(121.0, gt=0, description="width of the appearance kernel, in pixels")
    bilateral_srgb: float = Field(5.0, gt=0, description="width of the appearance kernel, in grey levels")
    bilateral_compat: float = Field(4.0, ge=0, description="weight of the appearance kernel")


class EvaluationConfig(Strict):
    """Parameters of the protocols. None of them changes a weight."""

    style: Literal["voc", "coco", "mean"] = Field(
        "voc",
        description="ms: voc sums flips and takes the maximum over scales, coco the other way round, on a square; "
        "mean: the mean of probabilities over both",
    )
    scales: tuple[PositiveFloat, ...] = Field((1.0, 1.25, 1.5), min_length=1, description="of ms and ms_crf")
    class_threshold: float | None = Field(
        None, ge=0, le=1, description="style mean: classes whose mean score is at or below it are left out of ms"
    )
    class_top: int | None = Field(
        None, ge=1, description="style mean: so many classes of the highest scores stay in ms"
    )
    background_power: float = Field(1.0, gt=0, description="style mean: the background's probability to this power")
    long_side: int | None = Field(
        None, ge=16, description="voc's ms: images are resized so that their longer side has so many pixels"
    )
    flips: Literal["sum", "mean"] = Field(
        "sum", description="voc's ms: logits of an image and its flip; a CRF sees half the logits with mean"
    )
    cam_scales: tuple[PositiveFloat, ...] = Field((1.0, 0.5, 1.5), min_length=1, description="of cam and aux_cam")
    cam_threshold: Fraction = Field(0.5, description="CAM values at or below it are background")
    crop: int = Field(448, ge=16, description="side of the square that cam, single and coco's ms squash images to")
    background: Fraction = Field(0.3, description="refined: below it a CAM value is background")
    foreground: Fraction = Field(0.7, description="refined: above it a CAM value is foreground; between, open")
    par: ParConfig = Field(default_factory=ParConfig, description="refined: pixel-adaptive refinement")
    pamr: PamrConfig | None = Field(
        None, description="refined: the network's masks refined and thresholded so, in place of its CAMs by par"
    )
    crf: CrfConfig = CrfConfig()


class LossConfig(Strict):
    """Weights of the loss terms; each method has its own."""


class OptimConfig(Strict):
    """The optimiser and its learning rate, which decays after a linear warm-up."""

    kind: Literal["adamw", "sgd"] = "adamw"
    lr: float = Field(6e-5, gt=0)
    head_lr_scale: float = Field(10.0, gt=0, description="factor for classifiers, projector and decoder")
    weight_decay: float = Field(0.01, ge=0)
    betas: tuple[float, float] = Field((0.9, 0.999), description="adamw")
    momentum: float = Field(0.9, gt=0, lt=1, description="sgd")
    nesterov: bool = Field(True, description="sgd: whether its momentum is Nesterov's")
    schedule: Literal["poly", "cosine"] = Field(
        "poly", description="poly: a power of what is left of the run; cosine: half a cosine, constant before it"
    )
    power: float = Field(0.9, gt=0, description="poly")
    decay_start: int = Field(0, ge=0, description="cosine: iteration at which the decay begins")
    decay_iterations: int | None = Field(None, ge=1, description="cosine: its length; null: to the end")
    warmup: int = Field(1500, ge=0, description="iterations")
    warmup_start: float = Field(1e-6, ge=0)
    warmup_start_is: Literal["ratio", "rate"] = Field(
        "ratio", description="ratio: of the base rate, as the published code reads 1e-6; rate: absolute, as the text"
    )
    freeze_pos_embed: bool = True


Precision = Literal["float32", "tf32", "bfloat16"]


class ComputeConfig(Strict):
    """How a step is computed. Nothing here changes what is computed, only rounding, time and memory."""

    precision: Precision = Field(
        "float32",
        description="of matrix products, in training and wherever the network is used afterwards. tf32: float32 with "
        "10 bits of mantissa in products, on GPUs that have it; bfloat16: in encoder and decoder; losses, CAMs and "
        "weights stay float32",
    )
    deterministic: bool = Field(
        False,
        description="the same bits whenever the trial is repeated on the same kind of machine, also on a GPU, where "
        "it takes longer; a CPU needs only the same number of threads",
    )
    compile: bool = Field(False, description="torch.compile the encoder's blocks (needs a C++ compiler on CPUs)")
    recompute: Literal["nothing", "elementwise", "blocks"] = Field(
        "elementwise",
        description="what the backward pass computes again instead of keeping it: normalisations and activations "
        "(less memory, at no time that could be measured), or whole encoder blocks (activation checkpointing)",
    )
    channels_last: bool = Field(False, description="memory format of the decoder's convolutions")
    augmentation: Literal["loader", "device"] = Field(
        "loader",
        description="where colours, blur and normalisation of training images are computed, from the same draws: "
        "image by image in the loader, or batched on the training device, which suits GPUs",
    )


class TrainConfig(Strict):
    iterations: int = Field(20_000, ge=1)
    batch_size: int = Field(4, ge=1, description="images per forward pass; losses are normalised over these")
    workers: int = Field(
        1, ge=1, description="data-parallel workers; the global batch is workers x accumulate x batch_size"
    )
    accumulate: int = Field(
        1, ge=1, description="passes per optimiser step; 1 worker with 4 of them trains as 4 workers with 1 do"
    )
    crop: int = Field(448, ge=16)
    log_every: int = Field(10, ge=1)
    eval_every: int = Field(2000, ge=1, description="iterations between evaluations with a checkpoint; also at the end")
    eval_images: int | None = Field(None, ge=1, description="score only the first N images of the split")
    eval_batch: int = Field(8, ge=1)
    eval_train_images: int = Field(0, ge=0, description="training images with masks to score too, at the end")
    panels: int = Field(4, ge=0, description="images shown as CAM panels at each evaluation")
    loader_workers: int = Field(4, ge=0, description="data-loading processes per worker")
    same_masks: bool = Field(False, description="every worker draws the same masks, as in the published code (a bug)")

    @property
    def global_batch(self) -> int:
        """Images of one optimiser step."""
        return self.batch_size * self.accumulate * self.workers


class Experiment(Strict):
    """What the experiments of all methods share. A method's own schema is a subclass; `method` says whose."""

    bundles: ClassVar[Mapping[str, Mapping[str, Any]]] = {}  # values of `compat`, and the fields that each sets

    description: str = ""
    method: str = Field("mcc", description="what is trained: one of the package's methods, or an installed one")
    compat: str = Field("published", description="whose recipe, where the published code differs from the text")
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    loss: LossConfig = LossConfig()
    optim: OptimConfig = OptimConfig()
    compute: ComputeConfig = ComputeConfig()
    train: TrainConfig = TrainConfig()

    @model_validator(mode="before")
    @classmethod
    def _bundle(cls, fields: Any) -> Any:
        if isinstance(fields, Mapping) and isinstance(bundle := cls.bundles.get(str(fields.get("compat"))), Mapping):
            return _under(fields, bundle)
        return fields

    @model_validator(mode="after")
    def _known_bundle(self) -> Experiment:
        known = ("published", *self.bundles)
        if self.compat not in known:
            raise ValueError(f"compat: {self.compat!r}: expected {' or '.join(known)}")
        return self


def _under(fields: Mapping[str, Any], bundle: Mapping[str, Any]) -> dict[str, Any]:
    """Nested `fields` with those of the bundle that they lack."""
    merged = copy.deepcopy(dict(fields))
    for key, value in bundle.items():
        node: Any = merged
        *sections, last = key.split(".")
        for section in sections:
            node = node.setdefault(section, {}) if isinstance(node, dict) else None
        if isinstance(node, dict):
            node.setdefault(last, value)
    return merged
