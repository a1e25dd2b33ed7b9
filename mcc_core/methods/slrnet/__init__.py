"""Self-supervised low-rank network (IJCV 2022)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mcc_core.config import CrfConfig, EvaluationConfig
from mcc_core.methods.base import Augmentation, Method
from mcc_core.methods.slrnet.config import Experiment

if TYPE_CHECKING:
    from torch import Tensor

    from mcc_core.methods.slrnet.network import SLRNet
    from mcc_core.methods.slrnet.objective import SLRObjective


class SLR(Method):
    """Two scales of an image share a dictionary of low rank; their masks agree and train the segmentation."""

    name = "slrnet"
    title = "SLRNet"
    experiment = Experiment
    terms = ("cls", "reg1", "reg2", "seg")
    map_stages = ("cam",)
    has_attention = False
    published_marks = ("backbone.conv1a.weight", "conv1a.weight")
    published_heads = ("last_conv.8.weight",)
    published_backbone = "backbone."
    backbone = "backbone."

    def network(self, experiment: Experiment, num_classes: int) -> SLRNet:
        from mcc_core.methods.slrnet.network import SLRNet

        return SLRNet(experiment, num_classes)

    def objective(self, network: SLRNet, experiment: Experiment) -> SLRObjective:
        from mcc_core.methods.slrnet.objective import SLRObjective

        return SLRObjective(network, experiment)

    def augment(self, experiment: Experiment) -> Augmentation:
        from mcc_core.methods.slrnet.augment import OneView

        return OneView(experiment.augment, experiment.train.crop)

    def evaluation(self, experiment: Experiment, num_classes: int, iteration: int | None = None) -> EvaluationConfig:
        """The published protocol; COCO's keeps more classes and does not weaken the background.

        Class maps are scored at the scales and with the share of the pseudo-label, which is that of training, but of
        one view.
        """
        label, coco = experiment.pseudo_label, num_classes == 80
        return EvaluationConfig(
            style="mean",
            scales=(1.0, 1.5, 2.0, 0.5, 0.75),
            class_threshold=0.3,
            class_top=8 if coco else 6,
            background_power=1.0 if coco else 3.0,
            cam_scales=(1.0, experiment.factorisation.scale),
            cam_threshold=label.foreground,
            pamr=label,
            crop=experiment.train.crop,
            crf=CrfConfig(gaussian_sxy=3, gaussian_compat=3, bilateral_sxy=80, bilateral_srgb=13, bilateral_compat=10),
        )

    def from_published(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        from mcc_core.methods.slrnet.published import from_published

        return from_published(state)

    def published_fields(self, state: Mapping[str, Tensor]) -> dict[str, Any]:
        from mcc_core.methods.slrnet.published import fields

        return fields(state)

    def backbone_of(self, tensors: Mapping[str, Tensor], where: str) -> str:
        return "wide_resnet38"

    def fill_backbone(self, network: SLRNet, tensors: Mapping[str, Tensor], where: str) -> tuple[str, ...]:
        from mcc_core.networks.wide_resnet38 import fill_wide_resnet38

        return fill_wide_resnet38(network.backbone, tensors, where)

    def speed_fields(self, experiment: Experiment) -> Any:
        model = experiment.model
        return [model.width, list(model.depths), model.channels, model.frozen, experiment.factorisation.scale]
