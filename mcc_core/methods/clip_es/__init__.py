"""CLIP-ES (CVPR 2023): class maps of a frozen CLIP. Nothing is trained."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mcc_core.clip.prompts import load_prompts
from mcc_core.errors import UsageError
from mcc_core.methods.base import Method
from mcc_core.methods.clip_es.config import Experiment


class ClipEs(Method):
    """A frozen CLIP, whose maps a stage of a sweep makes labels of. It has no network of its own and is not trained."""

    name = "clip_es"
    title = "CLIP-ES"
    experiment = Experiment
    told = "I+L"
    rooms = ("clip/",)
    terms = ()
    map_stages = ("cam",)
    has_attention = False

    def files(self, experiment: Experiment) -> dict[str, Path]:
        return experiment.clip.files

    def check_classes(self, experiment: Experiment, classes: Sequence[str]) -> None:
        load_prompts(experiment.clip.prompts, classes)

    def network(self, experiment: Experiment, num_classes: int) -> Any:
        raise UsageError(
            "method: clip_es trains nothing: a stage of a sweep with this base and `refine` makes labels of its maps, "
            "and so does mcc refine clip"
        )

    def speed_fields(self, experiment: Experiment) -> Any:
        clip = experiment.clip
        return [clip.model, clip.model_args, clip.long_side, clip.attention]
