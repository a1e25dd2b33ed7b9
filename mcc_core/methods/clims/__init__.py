"""Cross language image matching (CVPR 2022)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mcc_core.clip.prompts import load_prompts
from mcc_core.config import CrfConfig, EvaluationConfig
from mcc_core.methods.base import Augmentation, Method, cam_evaluation
from mcc_core.methods.clims.config import Experiment

if TYPE_CHECKING:
    from mcc_core.methods.clims.network import CLIMSNet
    from mcc_core.methods.clims.objective import CLIMSObjective


class CLIMS(Method):
    """A ResNet-50 whose maps learn what a frozen CLIP says of the image without, and of nothing but, what they show."""

    name = "clims"
    title = "CLIMS"
    experiment = Experiment
    told = "I+L"
    rooms = ("clip/",)
    terms = ("cls", "object_text", "background_text", "companion_text", "area")
    map_stages = ("cam",)
    has_attention = False
    backbone = "backbone."

    def files(self, experiment: Experiment) -> dict[str, Path]:
        return experiment.clip.files

    def check_classes(self, experiment: Experiment, classes: Sequence[str]) -> None:
        load_prompts(experiment.clip.prompts, classes)

    def network(self, experiment: Experiment, num_classes: int) -> CLIMSNet:
        from mcc_core.methods.clims.network import CLIMSNet

        return CLIMSNet(experiment, num_classes)

    def objective(self, network: CLIMSNet, experiment: Experiment) -> CLIMSObjective:
        from mcc_core.methods.clims.objective import CLIMSObjective

        return CLIMSObjective(network, experiment)

    def augment(self, experiment: Experiment) -> Augmentation:
        from mcc_core.data.transforms import LongSideView

        return LongSideView(experiment.augment.long_side, experiment.train.crop)

    def evaluation(self, experiment: Experiment, num_classes: int, iteration: int | None = None) -> EvaluationConfig:
        """The scales and the threshold of its class maps; what has no decoder is segmented at one scale."""
        protocol = cam_evaluation(experiment, num_classes, iteration)
        return protocol.model_copy(update={"style": "voc", "scales": experiment.cam.scales, "crf": CrfConfig()})

    def speed_fields(self, experiment: Experiment) -> Any:
        model, clip = experiment.model, experiment.clip
        return [model.dilation, model.frozen, clip.model, clip.model_args]
