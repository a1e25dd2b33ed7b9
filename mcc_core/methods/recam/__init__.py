"""Class re-activation maps (CVPR 2022)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mcc_core.config import CrfConfig, EvaluationConfig
from mcc_core.methods.base import Augmentation, Method, cam_evaluation
from mcc_core.methods.recam.config import Experiment

if TYPE_CHECKING:
    from mcc_core.methods.recam.network import ReCAMNet
    from mcc_core.methods.recam.objective import ReCAMObjective


class ReCAM(Method):
    """A ResNet-50 classifier, fine-tuned to tell classes apart by a softmax of what each class's map sees."""

    name = "recam"
    title = "ReCAM"
    experiment = Experiment
    terms = ("cls", "recam")
    map_stages = ("cam",)
    has_attention = False
    backbone = "backbone."

    def network(self, experiment: Experiment, num_classes: int) -> ReCAMNet:
        from mcc_core.methods.recam.network import ReCAMNet

        return ReCAMNet(experiment, num_classes)

    def objective(self, network: ReCAMNet, experiment: Experiment) -> ReCAMObjective:
        from mcc_core.methods.recam.objective import ReCAMObjective

        return ReCAMObjective(network, experiment)

    def augment(self, experiment: Experiment) -> Augmentation:
        from mcc_core.data.transforms import LongSideView

        return LongSideView(experiment.augment.long_side, experiment.train.crop)

    def evaluation(self, experiment: Experiment, num_classes: int, iteration: int | None = None) -> EvaluationConfig:
        """The scales and the threshold of its class maps; what has no decoder is segmented at one scale."""
        protocol = cam_evaluation(experiment, num_classes, iteration)
        return protocol.model_copy(update={"style": "voc", "scales": experiment.cam.scales, "crf": CrfConfig()})

    def speed_fields(self, experiment: Experiment) -> Any:
        return [experiment.model.dilation, experiment.model.frozen]
