"""Masked collaborative contrast (WACV 2024)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mcc_core.config import EvaluationConfig
from mcc_core.methods.base import Augmentation, Method, cam_evaluation
from mcc_core.methods.mcc.config import OPTIONAL_TERMS, TERMS, Experiment
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
    optional_terms = OPTIONAL_TERMS
    map_stages = ("cam", "aux_cam")

    def network(self, experiment: Experiment, num_classes: int) -> MCCNet:
        from mcc_core.methods.mcc.network import MCCNet

        return MCCNet(
            experiment.model,
            num_classes,
            experiment.compute,
            whole_teacher=experiment.contrast.teacher == "network",
            hides_patches=experiment.hides_patches,
        )

    def objective(self, network: MCCNet, experiment: Experiment) -> MCCObjective:
        from mcc_core.methods.mcc.objective import MCCObjective

        if experiment.reinforced:
            from mcc_core.methods.mcc.reinforced import ReinforcedObjective

            return ReinforcedObjective(network, experiment)
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
        """`masks` B,V,h,w: key masks of the local views, 1 = masked.

        With parts of FSR: `noise` B,V,h',w' of squares, of which the masks were made, and `hidden_noise` B,1,h',w'.
        """
        import torch

        from mcc_core.methods.mcc.masking import on_grid, sample_masks, square_noise

        mask, total, grid = experiment.mask, experiment.train.iterations, network.encoder.grid(*size)
        views, scale = (round(value_at(value, iteration, total)) for value in (mask.views, mask.scale))
        ratio = value_at(mask.ratio, iteration, total)
        if not experiment.reinforced:
            return {"masks": sample_masks(batch_size, views, grid, ratio, scale, generator)}
        noise = square_noise(batch_size, views, grid, scale, generator)
        drawn = {"masks": on_grid(noise < ratio, grid, scale).to(torch.uint8)}
        if experiment.mask.uncertain_start is not None:
            drawn["noise"] = noise
        if experiment.hides_patches:
            drawn["hidden_noise"] = square_noise(batch_size, 1, grid, scale, generator)
        return drawn

    def evaluation(self, experiment: Experiment, num_classes: int, iteration: int | None = None) -> EvaluationConfig:
        """The published protocol: COCO's for 80 classes, VOC's for others."""
        return cam_evaluation(experiment, num_classes, iteration)

    def from_published(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        from mcc_core.networks.published import from_published

        return from_published(state)

    def speed_fields(self, experiment: Experiment) -> Any:
        fields = [experiment.mask.views, experiment.mask.drop_tokens, list(experiment.cam.scales)]
        return [*fields, experiment.contrast.teacher, experiment.hides_patches] if experiment.reinforced else fields
