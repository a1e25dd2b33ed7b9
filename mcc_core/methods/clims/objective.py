"""One training step of CLIMS (section 3)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as TF

from mcc_core.clip.network import ClipNetwork
from mcc_core.clip.prompts import load_prompts
from mcc_core.device import moved
from mcc_core.losses.terms import classification
from mcc_core.methods.base import Step
from mcc_core.methods.clims.config import Experiment
from mcc_core.methods.clims.network import CLIMSNet, regions
from mcc_core.methods.objective import Objective
from mcc_core.networks.batch_norm import share_statistics
from mcc_core.pseudo_labels.labels import denormalise

_LEAST = 1e-4  # a similarity, and what it leaves of 1, is at least so much before its logarithm


class CLIMSObjective(Objective):
    """What CLIP says of the part of an image that a present class's map shows, and of the part that it hides."""

    terms = ("cls", "object_text", "background_text", "companion_text", "area")

    def __init__(self, network: CLIMSNet, experiment: Experiment) -> None:
        super().__init__(experiment)
        self.network = network
        self.clip: ClipNetwork | None = None  # no module: it is neither trained nor saved

    def begin(self, classes: Sequence[str]) -> None:
        """Load CLIP, and have it read the texts. Raises UsageError where either cannot be had or do not suit."""
        config = self.experiment.clip
        prompts = load_prompts(config.prompts, classes)
        self.clip = clip = ClipNetwork(config, next(self.network.parameters()).device)
        self.texts = clip.text_features(prompts.texts(classes), prompts)
        self.companions = [
            clip.text_features(prompts.companions.get(name, prompts.backgrounds), prompts) for name in classes
        ]

    def forward(
        self, batch: Mapping[str, Tensor], draws: Mapping[str, Tensor], iteration: int, *, first: bool = True
    ) -> Step:
        """Losses of one pass; `batch` has `view1` B,3,S,S and `labels` B,C. `begin` comes before it."""
        weights, images, network = self.weights(iteration), batch["view1"], self.network
        host = batch["labels"].cpu()
        labels = moved(host, images.device)
        scored = network.scored(images, detach=True)
        maps = network.shown(scored.features[-1])
        terms = {"cls": classification(scored.cls, labels), "area": maps.mean()}
        terms |= self._matching(images, maps, host)
        total = sum((weights[name] * term for name, term in terms.items()), start=images.new_zeros(()))
        return Step(total, {name: terms[name] for name in self.terms if weights[name]}, len(images))

    def _matching(self, images: Tensor, maps: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """What CLIP says of regions of images B,3,S,S by maps B,C,h,w, of the labels B,C, on the host.

        Each term is a sum over an image's classes, and over companions, and the mean over images.
        """
        assert self.clip is not None
        numbers, classes = labels.nonzero().unbind(1)
        if not len(classes):
            return dict.fromkeys(("object_text", "background_text", "companion_text"), 0 * maps.sum())
        at, of = moved(numbers, images.device), moved(classes, images.device)
        shown, hidden = regions(_as_clip_sees(images)[at], maps[at, of])
        objects, rest = self.clip.image_features(torch.cat([shown, hidden])).chunk(2)
        apart = [unmatched(self.companions[k] @ seen).sum() for k, seen in zip(classes.tolist(), objects, strict=True)]
        return {
            "object_text": matched((objects * self.texts[of]).sum(1)).sum() / len(images),
            "background_text": unmatched((rest * self.texts[of]).sum(1)).sum() / len(images),
            "companion_text": torch.stack(apart).sum() / len(images),
        }

    def after_step(self, iteration: int) -> None:
        """Ranks agree on running statistics."""
        share_statistics(self.network)


def matched(similarity: Tensor) -> Tensor:
    """Minus the logarithm of cosine similarities: low where image and text match."""
    return -similarity.clamp(min=_LEAST).log()


def unmatched(similarity: Tensor) -> Tensor:
    """Minus the logarithm of what cosine similarities leave of 1: low where image and text do not match."""
    return -(1 - similarity.clamp(min=0)).clamp(min=_LEAST).log()


def _as_clip_sees(images: Tensor) -> Tensor:
    """Images B,3,H,W, normalised as ImageNet's are, as CLIP's are."""
    from open_clip import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD

    pixels = denormalise(images, quantise=False) / 255
    return TF.normalize(pixels, list(OPENAI_DATASET_MEAN), list(OPENAI_DATASET_STD))
