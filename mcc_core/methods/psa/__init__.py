"""Pixel-level semantic affinity (AffinityNet, CVPR 2018)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mcc_core.config import CrfConfig, EvaluationConfig, LabelsConfig
from mcc_core.methods.base import Augmentation, Method, cam_evaluation
from mcc_core.methods.psa.config import Experiment

if TYPE_CHECKING:
    from mcc_core.methods.psa.network import PSANet
    from mcc_core.methods.psa.objective import PSAObjective


class PSA(Method):
    """Affinities of nearby cells, learned of pairs that a label set says are alike or not; class maps walk by them."""

    name = "psa"
    title = "PSA"
    experiment = Experiment
    terms = ("cls", "background", "foreground", "unlike")
    map_stages = ("cam", "aux_cam")
    has_attention = False
    backbone = "backbone."

    def labels(self, experiment: Experiment) -> LabelsConfig:
        return experiment.labels

    def network(self, experiment: Experiment, num_classes: int) -> PSANet:
        from mcc_core.methods.psa.network import PSANet

        return PSANet(experiment, num_classes)

    def objective(self, network: PSANet, experiment: Experiment) -> PSAObjective:
        from mcc_core.methods.psa.objective import PSAObjective

        return PSAObjective(network, experiment)

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
            *(model.dilation, model.frozen, list(model.channels)),
            *(experiment.relations.radius, walk.radius, walk.log_steps),
        ]
