"""Affinity from attention (CVPR 2022)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mcc_core.config import CrfConfig, EvaluationConfig
from mcc_core.methods.afa.config import Experiment
from mcc_core.methods.base import Augmentation, Method, cam_evaluation

if TYPE_CHECKING:
    from torch import Tensor

    from mcc_core.methods.afa.network import AFANet
    from mcc_core.methods.afa.objective import AFAObjective


class AFA(Method):
    """CAMs spread by an affinity that is learned from attention, in one stage."""

    name = "afa"
    title = "AFA"
    experiment = Experiment
    terms = ("cls", "seg", "aff")
    map_stages = ("cam",)
    published_marks = (
        *("encoder.patch_embed1.proj.weight", "patch_embed1.proj.weight"),
        "segformer.encoder.patch_embeddings.0.proj.weight",
    )
    backbone = "encoder."

    def network(self, experiment: Experiment, num_classes: int) -> AFANet:
        from mcc_core.methods.afa.network import AFANet

        return AFANet(experiment.model, num_classes, experiment.compute)

    def objective(self, network: AFANet, experiment: Experiment) -> AFAObjective:
        from mcc_core.methods.afa.objective import AFAObjective

        return AFAObjective(network, experiment)

    def augment(self, experiment: Experiment) -> Augmentation:
        from mcc_core.data.transforms import OneView

        return OneView(experiment.augment.scale, experiment.train.crop)

    def evaluation(self, experiment: Experiment, num_classes: int, iteration: int | None = None) -> EvaluationConfig:
        """The published protocol, one for VOC and COCO: a long side like the crop, smaller scales, a wider CRF."""
        return cam_evaluation(experiment, num_classes, iteration).model_copy(
            update={
                "style": "voc",
                "long_side": experiment.train.crop,
                "flips": "mean",
                "scales": (1.0, 0.5, 0.75),
                "crf": CrfConfig(gaussian_sxy=3, gaussian_compat=3, bilateral_sxy=64),
            }
        )

    def from_published(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        from mcc_core.methods.afa.published import from_published

        return from_published(state)

    def backbone_of(self, tensors: Mapping[str, Tensor], where: str) -> str:
        from mcc_core.networks.mix_weights import mix_transformer_of

        return mix_transformer_of(tensors, where)

    def fill_backbone(self, network: AFANet, tensors: Mapping[str, Tensor], where: str) -> tuple[str, ...]:
        from mcc_core.networks.mix_weights import fill_mix_transformer

        return fill_mix_transformer(network.encoder, tensors, where)

    def speed_fields(self, experiment: Experiment) -> Any:
        return [experiment.model.strides, list(experiment.cam.scales)]
