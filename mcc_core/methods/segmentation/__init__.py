"""A segmentation network trained on label maps: pseudo-labels, corrected ones, or, as an upper bound, masks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mcc_core.config import CrfConfig, EvaluationConfig, LabelsConfig
from mcc_core.errors import UsageError
from mcc_core.methods.base import Augmentation, Method
from mcc_core.methods.segmentation.config import Experiment

if TYPE_CHECKING:
    from torch import Tensor

    from mcc_core.methods.segmentation.network import SegmentationNet
    from mcc_core.methods.segmentation.objective import SegmentationObjective


class Segmentation(Method):
    """DeepLabV2, DeepLabV3+, UPerNet or SegFormer by cross entropy to label maps."""

    name = "segmentation"
    title = "segmentation"
    experiment = Experiment
    terms = ("seg",)
    optional_terms = ("reg",)
    map_stages = ()
    published_heads = ()
    backbone = "encoder."

    def labels(self, experiment: Experiment) -> LabelsConfig:
        return experiment.labels

    def network(self, experiment: Experiment, num_classes: int) -> SegmentationNet:
        from mcc_core.methods.segmentation.network import SegmentationNet

        return SegmentationNet(experiment, num_classes)

    def objective(self, network: SegmentationNet, experiment: Experiment) -> SegmentationObjective:
        from mcc_core.methods.segmentation.objective import SegmentationObjective

        return SegmentationObjective(network, experiment, self.terms_of(experiment))

    def augment(self, experiment: Experiment) -> Augmentation:
        from mcc_core.methods.segmentation.augment import ImageAndMaps

        return ImageAndMaps(experiment.augment, experiment.train.crop)

    def evaluation(self, experiment: Experiment, num_classes: int, iteration: int | None = None) -> EvaluationConfig:
        """The mean of probabilities over five scales and flips, and DeepLabV2's CRF."""
        return EvaluationConfig(
            style="mean",
            scales=(0.5, 0.75, 1.0, 1.25, 1.5),
            crop=experiment.train.crop,
            crf=CrfConfig(gaussian_compat=3, bilateral_sxy=67, bilateral_srgb=3),
        )

    def backbone_of(self, tensors: Mapping[str, Tensor], where: str) -> str:
        raise UsageError(f"{where}: weights of a segmentation network's backbone go into model.weights: FILE")

    def fill_backbone(self, network: SegmentationNet, tensors: Mapping[str, Tensor], where: str) -> tuple[str, ...]:
        return network.fill(tensors, where)

    def speed_fields(self, experiment: Experiment) -> Any:
        model = experiment.model
        return [model.decoder, model.output_stride, model.decoder_channels, list(model.dilations), model.frozen_norms]
