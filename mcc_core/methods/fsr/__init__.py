"""Progressive feature self-reinforcement (AAAI 2024)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mcc_core.config import EvaluationConfig
from mcc_core.methods.base import Augmentation, Method, cam_evaluation
from mcc_core.methods.fsr.config import Experiment

if TYPE_CHECKING:
    from torch import Tensor

    from mcc_core.methods.fsr.network import FSRNet
    from mcc_core.methods.fsr.objective import FSRObjective


class FSR(Method):
    """A view with uncertain blocks masked learns from a teacher that sees all of it, in one stage."""

    name = "fsr"
    title = "FSR"
    experiment = Experiment
    terms = ("cls", "cls_aux", "fsr_class", "fsr_patch", "ptc", "seg", "reg")
    map_stages = ("cam", "aux_cam")
    published_marks = ("encoder.cls_blocks.0.attn.q.weight",)
    published_heads = ("classifier.weight", "top_classifier.weight")

    def network(self, experiment: Experiment, num_classes: int) -> FSRNet:
        from mcc_core.methods.fsr.network import FSRNet

        return FSRNet(experiment, num_classes, experiment.compute)

    def objective(self, network: FSRNet, experiment: Experiment) -> FSRObjective:
        from mcc_core.methods.fsr.objective import FSRObjective

        return FSRObjective(network, experiment)

    def augment(self, experiment: Experiment) -> Augmentation:
        from mcc_core.methods.fsr.augment import TwoViews

        return TwoViews(experiment.augment, experiment.train.crop)

    def draws(
        self,
        experiment: Experiment,
        network: FSRNet,
        batch_size: int,
        size: tuple[int, int],
        iteration: int,
        generator: Any,
    ) -> dict[str, Tensor]:
        """`noise` B,h,w: uniform numbers that choose among blocks to mask."""
        import torch

        blocks = [side // experiment.mask.block for side in size]
        return {"noise": torch.rand(batch_size, *blocks, generator=generator)}

    def evaluation(self, experiment: Experiment, num_classes: int, iteration: int | None = None) -> EvaluationConfig:
        """The published protocol: COCO's for 80 classes, VOC's for others."""
        return cam_evaluation(experiment, num_classes, iteration)

    def from_published(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        from mcc_core.methods.fsr.published import from_published

        return from_published(state)

    def published_fields(self, state: Mapping[str, Tensor]) -> dict[str, Any]:
        from mcc_core.methods.fsr.published import fields

        return fields(state)

    def speed_fields(self, experiment: Experiment) -> Any:
        return [experiment.model.class_blocks, experiment.mask.block, list(experiment.cam.scales)]
