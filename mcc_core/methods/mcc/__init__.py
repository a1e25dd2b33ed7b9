"""Masked collaborative contrast (WACV 2024)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mcc_core.config import EvaluationConfig
from mcc_core.methods.base import Augmentation, Method, cam_evaluation
from mcc_core.methods.mcc.config import TERMS, Experiment
from mcc_core.schedules import value_at

if TYPE_CHECKING:
    from torch import Tensor

    from mcc_core.methods.mcc.network import MCCNet
    from mcc_core.methods.mcc.objective import MCCObjective


class MCC(Method):
    """Masked local views against global views, in one stage."""

    name = "mcc"
    title = "MCC"
    experiment = Experiment
    terms = TERMS
    map_stages = ("cam", "aux_cam")

    def network(self, experiment: Experiment, num_classes: int) -> MCCNet:
        from mcc_core.methods.mcc.network import MCCNet

        return MCCNet(experiment.model, num_classes, experiment.compute)

    def objective(self, network: MCCNet, experiment: Experiment) -> MCCObjective:
        from mcc_core.methods.mcc.objective import MCCObjective

        return MCCObjective(network, experiment)

    def augment(self, experiment: Experiment) -> Augmentation:
        from mcc_core.data.transforms import ThreeViews

        return ThreeViews(experiment.augment, experiment.train.crop)

    def draws(
        self,
        experiment: Experiment,
        network: MCCNet,
        batch_size: int,
        size: tuple[int, int],
        iteration: int,
        generator: Any,
    ) -> dict[str, Tensor]:
        """`masks` B,V,h,w: key masks of the local views, 1 = masked."""
        from mcc_core.methods.mcc.masking import sample_masks

        mask, total = experiment.mask, experiment.train.iterations
        masks = sample_masks(
            batch_size,
            round(value_at(mask.views, iteration, total)),
            network.encoder.grid(*size),
            value_at(mask.ratio, iteration, total),
            round(value_at(mask.scale, iteration, total)),
            generator,
        )
        return {"masks": masks}

    def evaluation(self, experiment: Experiment, num_classes: int, iteration: int | None = None) -> EvaluationConfig:
        """The published protocol: COCO's for 80 classes, VOC's for others."""
        return cam_evaluation(experiment, num_classes, iteration)

    def from_published(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        from mcc_core.networks.published import from_published

        return from_published(state)

    def speed_fields(self, experiment: Experiment) -> Any:
        return [experiment.mask.views, experiment.mask.drop_tokens, list(experiment.cam.scales)]
