"""Activation manipulation network (CVPR 2022)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mcc_core.config import CrfConfig, EvaluationConfig, LabelsConfig
from mcc_core.methods.amn.config import Experiment
from mcc_core.methods.base import Augmentation, Method, cam_evaluation

if TYPE_CHECKING:
    from mcc_core.methods.amn.network import AMNet
    from mcc_core.methods.amn.objective import AMNObjective


class AMN(Method):
    """A ResNet-50 whose pixels learn a label set's classes, balanced, told which classes the image has."""

    name = "amn"
    title = "AMN"
    experiment = Experiment
    terms = ("cls", "pcl")
    map_stages = ("cam",)
    has_attention = False
    backbone = "backbone."

    def labels(self, experiment: Experiment) -> LabelsConfig:
        return experiment.labels

    def network(self, experiment: Experiment, num_classes: int) -> AMNet:
        from mcc_core.methods.amn.network import AMNet

        return AMNet(experiment, num_classes)

    def objective(self, network: AMNet, experiment: Experiment) -> AMNObjective:
        from mcc_core.methods.amn.objective import AMNObjective

        return AMNObjective(network, experiment)

    def augment(self, experiment: Experiment) -> Augmentation:
        from mcc_core.data.transforms import LabelledView

        return LabelledView(experiment.augment.scale, experiment.train.crop)

    def evaluation(self, experiment: Experiment, num_classes: int, iteration: int | None = None) -> EvaluationConfig:
        """The scales and the threshold of its class maps; its segmentation is of the same scales."""
        protocol = cam_evaluation(experiment, num_classes, iteration)
        return protocol.model_copy(update={"style": "voc", "scales": experiment.cam.scales, "crf": CrfConfig()})

    def speed_fields(self, experiment: Experiment) -> Any:
        model = experiment.model
        return [model.dilation, model.frozen, list(model.dilations), model.conditioned]
