"""Seeds of a frozen CLIP, for a refinement to make a label set of."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F

from mcc_core.clip.class_maps import class_maps
from mcc_core.clip.config import ClipConfig
from mcc_core.clip.network import FrozenClip
from mcc_core.clip.prompts import load_prompts
from mcc_core.data.index import Item
from mcc_core.errors import UsageError
from mcc_core.refinement.base import Asked, Kind, Picture, Refinement
from mcc_core.refinement.seeds import Seeds, asked_of, refuse_certainty, supervision_with

REFINEMENT = {"kind": "crf", "confidence": 0.95}  # what CLIP-ES makes of its class maps


class ClipSeeds(Seeds):
    """Class maps of the classes that an image is labelled with; the background is what the highest leaves of 1.

    Args:
        classes: foreground names of the dataset.

    Raises UsageError where network, weights or prompts cannot be had, or the refinement does not suit.
    """

    protocol = "cam"

    def __init__(
        self, config: ClipConfig, classes: Sequence[str], refinement: Refinement, device: torch.device
    ) -> None:
        self._asked = asked_of_clip(refinement, device)
        self.supervision = supervision_with("weak", refinement)
        prompts = load_prompts(config.prompts, classes)
        self.classes = tuple(classes)
        self.clip = FrozenClip(config, device)
        texts = prompts.texts(classes)
        self._classes = self.clip.text_features(texts, prompts)
        self._backgrounds = self.clip.text_features(prompts.backgrounds, prompts)
        said = {"templates": [*prompts.templates], "classes": texts, "backgrounds": [*prompts.backgrounds]}
        fields = config.model_dump(mode="json", exclude={"weights", "prompts"})
        self.origin = {"clip": fields | {"weights": self.clip.digest, "prompts": said}}

    def picture(self, item: Item, image: np.ndarray) -> Picture:
        size = image.shape[:2]
        present = tuple(sorted(item.labels))
        if not present:
            return Picture(item.name, image, (), torch.zeros(0, *size))
        maps = class_maps(self.clip, image, self._classes[list(present)], self._backgrounds)
        whole = F.interpolate(maps[None], size=size, mode="bilinear", align_corners=False)[0]
        scores = torch.cat([1 - whole.amax(0, keepdim=True), whole])
        answers = {kind: ask(image) for kind, ask in self._asked.items()}
        return Picture(item.name, image, present, scores, has_background=True, answers=answers)


def asked_of_clip(refinement: Refinement, device: torch.device) -> dict[Kind, Asked]:
    """What the steps of a chain ask of each image. Raises UsageError where a refinement does not suit CLIP's maps."""
    if wrong := sorted({"threshold", "foreground", "seeds"} & refinement.model_fields_set):
        raise UsageError(f"{wrong[0]}: is of a trained network's maps; CLIP's have a background of their own")
    refuse_certainty(refinement)
    return asked_of(None, refinement, device)
