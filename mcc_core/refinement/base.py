"""What a refinement is: its parameters, what it knows of an image, and the label map that is made of it.

Shapes: K classes of an image, H,W its pixels. Scores are 1+K,H,W, background first; steps change scores, and at the
end the highest wins.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import BeforeValidator, Field, model_validator
from torch import Tensor
from torchvision.transforms.v2 import functional as TF

from mcc_core.config import CrfConfig, ParConfig, Strict
from mcc_core.data.colours import normalise
from mcc_core.data.label_maps import Supervision
from mcc_core.device import moved
from mcc_core.errors import UsageError
from mcc_core.files import file_digest
from mcc_core.networks.base import MapStage, Network
from mcc_core.pseudo_labels.labels import IGNORE, decided

Kind = Literal["none", "par", "crf", "random_walk", "irn", "psa"]
LEARNED: tuple[Kind, ...] = ("irn", "psa")  # kinds whose section names a `network`, which a method of theirs trains


def _listed(kind: object) -> object:
    """`crf` and `random_walk,crf` as lists."""
    return [part.strip() for part in kind.split(",")] if isinstance(kind, str) else kind


def content_digest(file: Path, field: str) -> str:
    """The digest of a checkpoint's file, which a field names. Raises UsageError."""
    try:
        return file_digest(file)
    except OSError as error:
        raise UsageError(f"{field}: {file}: {error.strerror or error}") from None


Chain = Annotated[tuple[Kind, ...], BeforeValidator(_listed, json_schema_input_type=Kind | list[Kind])]
Asked = Callable[[np.ndarray], Tensor]  # what a step asks a network of an image H,W,3 uint8; the answer on the CPU


class RandomWalkConfig(Strict):
    """Propagation of scores by attention between patches."""

    blocks: int | None = Field(None, ge=1, description="the last so many blocks are averaged; null: all")
    beta: float = Field(1.0, gt=0, description="power of the affinity: more keeps a walk to what is most alike")
    steps: int = Field(2, ge=0, description="of the walk")
    normalise: Literal["row", "both"] = Field(
        "both", description="row: a patch's transitions sum to 1; both: those to a patch too (Sinkhorn)"
    )
    rescale: bool = Field(True, description="afterwards a class's scores span what they did before")


class IrnConfig(Strict):
    """Random walk of scores between class boundaries."""

    network: Path | None = Field(
        None, description="checkpoint of a trial of the method irn; null: the network of the seeds, where it is one"
    )
    digest: str | None = Field(
        None, description="SHA-256 of the file `network`, which a plan notes: another file is refused"
    )
    radius: int = Field(5, ge=2, description="distance below which a step leads, in cells of 4 pixels")
    power: float = Field(10.0, gt=0, description="beta: affinities are raised to it")
    log_steps: int = Field(
        8, ge=0, le=12, description="the walk has 2 to this power steps; small images and small objects need fewer"
    )
    normalise: Literal["image", "class"] = Field(
        "image", description="what is divided by its highest score afterwards: all classes together, or each by itself"
    )


class PsaConfig(Strict):
    """Random walk of scores, the background's too, by the affinity of neighbours."""

    network: Path | None = Field(
        None, description="checkpoint of a trial of the method psa; null: the network of the seeds, where it is one"
    )
    digest: str | None = Field(
        None, description="SHA-256 of the file `network`, which a plan notes: another file is refused"
    )
    alpha: float = Field(
        16.0, gt=0, description="of class maps: the background's score is what the highest leaves of 1, to this power"
    )
    radius: int = Field(5, ge=2, description="distance below which a step leads, in cells of 8 pixels")
    power: float = Field(8.0, gt=0, description="beta: affinities are raised to it")
    log_steps: int = Field(
        8, ge=0, le=12, description="the walk has 2 to this power steps; small images and small objects need fewer"
    )


class Refinement(Strict):
    """How label maps are made of seeds. Sections of kinds that are not used may not be set."""

    kind: Chain = Field(("none",), description="none, par, crf, random_walk, irn or psa; a list is a chain, in order")
    seeds: MapStage = Field("cam", description="which class maps of a network are refined")
    threshold: float = Field(0.4, ge=0, le=1, description="background's score: what no class exceeds is background")
    foreground: float | None = Field(
        None, ge=0, le=1, description="a second, higher score: what exceeds the threshold and not this is 255"
    )
    confidence: float = Field(0.0, ge=0, le=1, description="pixels less confident than this are 255")
    keep_confidence: bool = Field(True, description="write confidence maps beside the label maps")
    certainty: float = Field(
        0.7, gt=0, lt=1, description="of a label set without confidence: the probability of each pixel's label"
    )
    random_walk: RandomWalkConfig = RandomWalkConfig()
    irn: IrnConfig = IrnConfig()
    psa: PsaConfig = PsaConfig()
    par: ParConfig = ParConfig()
    crf: CrfConfig = CrfConfig()

    _sections: ClassVar[tuple[Kind, ...]] = ("random_walk", "irn", "psa", "par", "crf")

    @property
    def chain(self) -> tuple[Kind, ...]:
        """The kinds in order; none is an empty chain."""
        return tuple(kind for kind in self.kind if kind != "none")

    @property
    def networks(self) -> dict[Kind, Path]:
        """Checkpoints of further networks, by the kind that asks them."""
        brought: dict[Kind, Path | None] = {kind: getattr(self, kind).network for kind in LEARNED}
        return {kind: file for kind, file in brought.items() if file is not None and kind in self.chain}

    def decisive(self) -> dict[str, Any]:
        """The fields that decide label maps, as JSON: sections of kinds that are not used are left out.

        Raises UsageError where a network's file cannot be read.
        """
        unused: set[str] = {name for name in self._sections if name not in self.chain}
        fields = self.model_dump(mode="json", exclude=unused) | {"kind": list(self.chain)}
        for kind, file in self.networks.items():
            fields[kind]["network"] = content_digest(file, f"{kind}.network")  # what it is, not where it lies
        for kind in LEARNED:
            fields.get(kind, {}).pop("digest", None)
        return fields

    @model_validator(mode="after")
    def _consistent(self) -> Refinement:
        if not self.kind or ("none" in self.kind and len(self.kind) > 1):
            raise ValueError("kind: a chain lists one or more of par, crf, random_walk, irn and psa")
        if self.foreground is not None and self.foreground < self.threshold:
            raise ValueError(f"foreground ({self.foreground:g}) must be at least the threshold ({self.threshold:g})")
        if "psa" in self.chain:
            if self.chain[0] != "psa":
                raise ValueError("kind: psa must be first: its background is made of the seeds' own maps")
            if wrong := sorted({"threshold", "foreground"} & self.model_fields_set):
                raise ValueError(f"{wrong[0]}: psa has no constant background; its score is psa.alpha's")
        for name in self._sections:
            if name in self.model_fields_set and name not in self.chain:
                used = ", ".join(self.chain) or "none"
                raise ValueError(f"{name}: is set, but kind is {used}, which does not use it")
        return self


@dataclass(frozen=True)
class Picture:
    """What is known of one image before it is refined. Goes to other processes as it is."""

    name: str
    image: np.ndarray  # H,W,3 uint8
    classes: tuple[int, ...]  # K, from 0
    maps: Tensor  # K,H,W in [0, 1]; 1+K where the background is decided already
    has_background: bool = False
    answers: Mapping[Kind, Tensor] = field(default_factory=dict)  # of networks, by the kind of step that asked


@dataclass(frozen=True)
class Viewer:
    """The network of the seeds, and how it looks at an image: squashed to a square."""

    network: Network
    side: int
    device: torch.device

    def square(self, image: np.ndarray) -> Tensor:
        """1,3,S,S, normalised, on the device, of an image H,W,3 uint8."""
        pixels = torch.from_numpy(image).permute(2, 0, 1)
        return moved(normalise(TF.resize(pixels, [self.side, self.side], antialias=False))[None], self.device)


class Step:
    """One kind of refinement. Has no state: what it needs comes with the picture."""

    kind: ClassVar[Kind]
    learner: ClassVar[str | None] = None  # the method that trains the `network` of its section, where it has one

    def asks(self, viewer: Viewer | None, config: Refinement, device: torch.device) -> Asked | None:
        """What must be asked of a network for each image; None where pixels and scores suffice.

        Args:
            viewer: the network of the seeds; None where they are a label set.
            device: of a network that the step brings along.

        Raises UsageError where nothing could answer, or what the step needs is not installed.
        """
        return None

    def supervision(self, config: Refinement) -> Supervision:
        """Of what a network that the step brings along was trained on: `full` where it saw masks."""
        return "weak"

    def apply(self, scores: Tensor, picture: Picture, config: Refinement) -> Tensor:
        """Scores 1+K,H,W, background first, of scores alike."""
        raise TypeError(f"{self.kind} refines nothing")


def refined(picture: Picture, config: Refinement, steps: Mapping[Kind, Step]) -> tuple[np.ndarray, np.ndarray]:
    """A label map and how sure it is.

    Returns:
        H,W uint8: 0 background, 1..C, 255 open; H,W float32: the share of the winner in the sum of scores, 0 where
        open.

    Of maps without a background there is one pass per background score: what beats `foreground` is of its class, what
    loses to `threshold` is background, and what is between is open (Eq. 8 of the paper). Where a background is among
    the maps, pixels whose scores are all the same are open.
    """
    size = picture.image.shape[:2]
    if not picture.classes:
        return np.zeros(size, np.uint8), np.ones(size, np.float32)
    chosen = [steps[kind] for kind in config.chain]
    if picture.has_background:
        scores = _through(picture.maps, chosen, picture, config)
        label, sure = _strongest(scores)
        label = label.masked_fill((scores == scores[0]).all(0), IGNORE)  # of which nothing is known
    else:
        label, sure = _strongest(_through(_above(picture.maps, config.threshold), chosen, picture, config))
        if config.foreground is not None and config.foreground > config.threshold:
            high, surer = _strongest(_through(_above(picture.maps, config.foreground), chosen, picture, config))
            label, sure = decided(high, label), torch.where(high > 0, surer, sure)
    label = label.masked_fill(sure < config.confidence, IGNORE)
    sure = sure.masked_fill(label == IGNORE, 0)
    numbers = np.arange(256, dtype=np.uint8)
    numbers[1 : len(picture.classes) + 1] = [index + 1 for index in picture.classes]
    return numbers[label.numpy()], sure.numpy()


def _above(maps: Tensor, background: float) -> Tensor:
    return torch.cat([torch.full_like(maps[:1], background), maps])


def _through(scores: Tensor, steps: list[Step], picture: Picture, config: Refinement) -> Tensor:
    for step in steps:
        scores = step.apply(scores, picture, config)
    return scores


def _strongest(scores: Tensor) -> tuple[Tensor, Tensor]:
    """Where no class exceeds the background it is background; the winner's share of the sum."""
    value, label = scores[1:].max(0)
    label = (label + 1).masked_fill(value <= scores[0], 0)
    total = scores.sum(0).clamp(min=torch.finfo(scores.dtype).tiny)
    return label, (torch.maximum(value, scores[0]) / total).float()
