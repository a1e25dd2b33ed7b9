"""Token contrast (CVPR 2023)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mcc_core.config import EvaluationConfig
from mcc_core.errors import UsageError
from mcc_core.methods.base import Augmentation, Method, cam_evaluation
from mcc_core.methods.toco.config import Experiment

if TYPE_CHECKING:
    from torch import Tensor

    from mcc_core.methods.toco.network import ToCoNet
    from mcc_core.methods.toco.objective import ToCoObjective


class ToCo(Method):
    """Patch tokens against each other, and local crops against global views, in one stage."""

    name = "toco"
    title = "ToCo"
    experiment = Experiment
    terms = ("cls", "cls_aux", "ptc", "ctc", "seg", "reg")
    map_stages = ("cam", "aux_cam")

    def network(self, experiment: Experiment, num_classes: int) -> ToCoNet:
        from mcc_core.methods.toco.network import ToCoNet

        network = ToCoNet(experiment.model, num_classes, experiment.compute)
        if experiment.crops.size < network.stride:
            raise UsageError(
                f"crops.size: {experiment.crops.size}: must be at least a patch of {experiment.model.backbone}, "
                f"{network.stride} pixels"
            )
        return network

    def objective(self, network: ToCoNet, experiment: Experiment) -> ToCoObjective:
        from mcc_core.methods.toco.objective import ToCoObjective

        return ToCoObjective(network, experiment)

    def augment(self, experiment: Experiment) -> Augmentation:
        from mcc_core.data.transforms import ThreeViews

        return ThreeViews(experiment.augment, experiment.train.crop)

    def draws(
        self,
        experiment: Experiment,
        network: ToCoNet,
        batch_size: int,
        size: tuple[int, int],
        iteration: int,
        generator: Any,
    ) -> dict[str, Tensor]:
        """`priority` B,P,Q: uniform numbers that choose among the places where a local crop may lie."""
        import torch

        places = [experiment.crops.positions(side) for side in size]
        return {"priority": torch.rand(batch_size, *places, generator=generator)}

    def evaluation(self, experiment: Experiment, num_classes: int, iteration: int | None = None) -> EvaluationConfig:
        """The published protocol: COCO's for 80 classes, VOC's for others."""
        return cam_evaluation(experiment, num_classes, iteration)

    def from_published(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        from mcc_core.networks.published import from_published

        return from_published(state)

    def speed_fields(self, experiment: Experiment) -> Any:
        return [experiment.crops.views, experiment.crops.size, list(experiment.cam.scales)]
