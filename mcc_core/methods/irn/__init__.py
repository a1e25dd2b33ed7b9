"""Inter-pixel relation network (CVPR 2019)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mcc_core.config import CrfConfig, EvaluationConfig, LabelsConfig
from mcc_core.methods.base import Augmentation, Method, cam_evaluation
from mcc_core.methods.irn.config import Experiment

if TYPE_CHECKING:
    from mcc_core.methods.irn.network import IRNet
    from mcc_core.methods.irn.objective import IRNObjective


class IRN(Method):
    """Class boundaries, learned of pairs of pixels that a label set says are alike or not; class maps walk between."""

    name = "irn"
    title = "IRN"
    experiment = Experiment
    terms = ("cls", "alike", "unlike", "foreground", "background")
    map_stages = ("cam", "aux_cam")
    has_attention = False
    backbone = "backbone."

    def labels(self, experiment: Experiment) -> LabelsConfig:
        return experiment.labels

    def network(self, experiment: Experiment, num_classes: int) -> IRNet:
        from mcc_core.methods.irn.network import IRNet

        return IRNet(experiment, num_classes)

    def objective(self, network: IRNet, experiment: Experiment) -> IRNObjective:
        from mcc_core.methods.irn.objective import IRNObjective

        return IRNObjective(network, experiment)

    def augment(self, experiment: Experiment) -> Augmentation:
        from mcc_core.data.transforms import LabelledView

        return LabelledView(experiment.augment.scale, experiment.train.crop)

    def evaluation(self, experiment: Experiment, num_classes: int, iteration: int | None = None) -> EvaluationConfig:
        """The scales and the threshold of its class maps; what has no decoder is segmented at one scale."""
        protocol = cam_evaluation(experiment, num_classes, iteration)
        return protocol.model_copy(update={"style": "voc", "scales": experiment.cam.scales, "crf": CrfConfig()})

    def speed_fields(self, experiment: Experiment) -> Any:
        model, walk = experiment.model, experiment.walk
        return [
            *(model.dilation, model.frozen, model.boundary_channels, model.displacement_channels),
            *(experiment.relations.radius, walk.radius, walk.log_steps),
        ]
