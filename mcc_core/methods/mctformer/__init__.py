"""Multi-class token transformer (CVPR 2022), the second version."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mcc_core.config import EvaluationConfig
from mcc_core.methods.base import Augmentation, Method, cam_evaluation
from mcc_core.methods.mctformer.config import Experiment

if TYPE_CHECKING:
    from torch import Tensor

    from mcc_core.methods.mctformer.network import MCTformerNet
    from mcc_core.methods.mctformer.objective import MCTformerObjective


class MCTformer(Method):
    """A class token for each class, whose attention to patches says where the class is. It has no decoder."""

    name = "mctformer"
    title = "MCTformer"
    experiment = Experiment
    terms = ("cls", "cls_patch")
    map_stages = ("cam",)
    published_heads = ()  # names of its published tensors are not known here

    def network(self, experiment: Experiment, num_classes: int) -> MCTformerNet:
        from mcc_core.methods.mctformer.network import MCTformerNet

        return MCTformerNet(experiment, num_classes)

    def objective(self, network: MCTformerNet, experiment: Experiment) -> MCTformerObjective:
        from mcc_core.methods.mctformer.objective import MCTformerObjective

        return MCTformerObjective(network, experiment)

    def augment(self, experiment: Experiment) -> Augmentation:
        from mcc_core.methods.mctformer.augment import Window

        return Window(experiment.augment, experiment.train.crop)

    def evaluation(self, experiment: Experiment, num_classes: int, iteration: int | None = None) -> EvaluationConfig:
        """Class maps at the scales of `cam`; what stands for a segmentation is a mean of probabilities over them."""
        config = cam_evaluation(experiment, num_classes, iteration)
        return config.model_copy(update={"style": "mean", "scales": experiment.cam.scales})

    def fill_backbone(self, network: MCTformerNet, tensors: Mapping[str, Tensor], where: str) -> tuple[str, ...]:
        return network.encoder.fill(tensors, where)

    def speed_fields(self, experiment: Experiment) -> Any:
        return list(experiment.cam.scales)
