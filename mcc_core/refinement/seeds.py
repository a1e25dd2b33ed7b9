"""Where seeds come from: class maps of a network, or the label maps of a label set."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mcc_core.checkpoint import Checkpoint
from mcc_core.data.index import Item
from mcc_core.data.label_maps import LabelSet, Supervision
from mcc_core.errors import DataError, UsageError
from mcc_core.evaluation.protocols import Maps, ProtocolName, squashed_cam
from mcc_core.evaluation.scoring import Scorer, protocol_settings
from mcc_core.methods.registry import method_of
from mcc_core.pseudo_labels.labels import IGNORE
from mcc_core.refinement.base import Asked, Kind, Picture, Refinement, Viewer
from mcc_core.refinement.kinds import STEPS

MapsOf = Callable[[Item, np.ndarray | None], Maps]


class Seeds:
    """What a refinement begins with.

    Attributes:
        classes: foreground names.
        supervision: of what they come from.
        origin: what a label set that is made of them says about them.
        protocol: what their own score is of.
    """

    classes: tuple[str, ...]
    supervision: Supervision
    origin: Mapping[str, Any]
    protocol: ProtocolName

    def picture(self, item: Item, image: np.ndarray) -> Picture:
        """What is known of an image H,W,3 uint8. Raises DataError."""
        raise TypeError(f"{type(self).__name__} knows nothing of an image")


class NetworkSeeds(Seeds):
    """Class maps of a trained network, of the classes that an image is labelled with, min-max normalised.

    Args:
        name: what the network is called, for the record.
        digest: of the checkpoint's file.

    Attributes:
        scorer: runs the network; what else gives its maps, such as a cache of them, may be put into `maps_of`.

    Raises UsageError where the network has no such class maps, or a kind of refinement cannot be had.
    """

    def __init__(
        self, saved: Checkpoint, refinement: Refinement, device: torch.device, *, name: str = "", digest: str = ""
    ) -> None:
        refuse_certainty(refinement)
        self.classes, self.protocol, self.stage = saved.classes, refinement.seeds, refinement.seeds
        experiment, network = saved.experiment, saved.network().to(device)
        settings = protocol_settings(experiment, len(saved.classes), [self.protocol], {}, "seeds")
        self.scorer = Scorer(network, settings, {}, device)
        self.maps_of: MapsOf = self.scorer.maps
        viewer = Viewer(network, self.scorer.config.crop, device)
        self._asked = asked_of(viewer, refinement, device)
        learned = method_of(experiment).labels(experiment)
        self.supervision = supervision_with("weak" if learned is None else learned.supervision, refinement)
        self.origin = {"network": name, "checkpoint": digest, "method": experiment.method}

    def picture(self, item: Item, image: np.ndarray) -> Picture:
        size = image.shape[:2]
        maps = self.maps_of(item, image)
        if not maps.present:
            return Picture(item.name, image, (), torch.zeros(0, *size))
        cam = squashed_cam(maps, self.stage, self.scorer.config)
        whole = F.interpolate(cam, size=size, mode="bilinear", align_corners=False)[0]
        answers = {kind: ask(image) for kind, ask in self._asked.items()}
        return Picture(item.name, image, maps.present, whole, answers=answers)


class LabelSeeds(Seeds):
    """The maps of a label set: the probability of a pixel's label is its confidence, and the rest is the others'.

    Pixels that are 255 are left to all labels alike; what no step decides stays 255.

    Args:
        device: of the networks that steps bring along.

    Raises UsageError where a kind of refinement needs the network of seeds, or `certainty` is set and all maps have
    confidence.
    """

    protocol = "refined"

    def __init__(self, labels: LabelSet, refinement: Refinement, device: torch.device) -> None:
        self._asked = asked_of_labels(refinement, device)
        if all(entry.confidence_sha256 for entry in labels.file.maps.values()):
            refuse_certainty(refinement, "this one says itself how sure it is")
        self._names = set(labels.names)
        self.labels, self.certainty = labels, refinement.certainty
        self.classes, self.supervision = tuple(labels.classes), supervision_with(labels.supervision, refinement)
        self.origin = {"labels": labels.identity}

    def picture(self, item: Item, image: np.ndarray) -> Picture:
        if item.name not in self._names:
            raise DataError(f"{item.image}: the label set {self.labels.path} has no map of it")
        label, sure = self.labels.label(item.name), self.labels.confidence(item.name)
        if label.shape != image.shape[:2]:
            raise DataError(f"{item.image}: {_size(image)} pixels, its label map has {_size(label)}")
        there = {int(number) - 1 for number in np.unique(label) if number not in (0, IGNORE)}
        classes = tuple(sorted(there | set(item.labels)))
        scores = _probabilities(label, sure, classes, self.certainty)
        answers = {kind: ask(image) for kind, ask in self._asked.items()}
        return Picture(item.name, image, classes, scores, has_background=True, answers=answers)


def asked_of(viewer: Viewer | None, refinement: Refinement, device: torch.device) -> dict[Kind, Asked]:
    """What the steps of a chain ask of each image. Raises UsageError where nothing could answer."""
    asked = {kind: STEPS[kind].asks(viewer, refinement, device) for kind in refinement.chain}
    return {kind: ask for kind, ask in asked.items() if ask is not None}


def supervision_with(own: Supervision, refinement: Refinement) -> Supervision:
    """Full where the seeds are, or a network that a step brings along is."""
    brought = (STEPS[kind].supervision(refinement) for kind in refinement.chain)
    return "full" if "full" in (own, *brought) else "weak"


def asked_of_labels(refinement: Refinement, device: torch.device) -> dict[Kind, Asked]:
    """What the steps of a chain ask of each image where labels are given.

    Raises UsageError where a step needs class maps or a network, which a label set has not.
    """
    asked = asked_of(None, refinement, device)
    if wrong := sorted({"threshold", "foreground", "seeds"} & refinement.model_fields_set):
        raise UsageError(f"{wrong[0]}: is of class maps; a label set has its background decided already")
    return asked


def refuse_certainty(refinement: Refinement, why: str = "class maps say themselves how sure they are") -> None:
    """Raise UsageError for a field of label sets without confidence alone."""
    if "certainty" in refinement.model_fields_set:
        raise UsageError(f"certainty: is of a label set without confidence; {why}")


def _probabilities(label: np.ndarray, sure: np.ndarray | None, classes: tuple[int, ...], certainty: float) -> Tensor:
    """Scores 1+K,H,W that sum to 1, background first."""
    among = len(classes) + 1
    own = np.full(label.shape, certainty, np.float32) if sure is None else np.clip(sure, 1 / among, 1.0)
    own = np.where(label == IGNORE, 1 / among, own).astype(np.float32)
    rest = np.where(label == IGNORE, own, (1 - own) / max(1, among - 1))  # the same to the bit where it is open
    numbers = [0, *(index + 1 for index in classes)]
    return torch.from_numpy(np.stack([np.where(label == number, own, rest) for number in numbers]))


def _size(array: np.ndarray) -> str:
    return f"{array.shape[1]}x{array.shape[0]}"
