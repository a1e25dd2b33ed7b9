"""What a method is: its schema, network, augmentation, random draws of a step, and losses.

Only methods know the mathematics. Training, evaluation and the orchestrator know what stands here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from mcc_core.config import EvaluationConfig, Experiment, LabelsConfig
from mcc_core.schedules import always_zero, value_at

if TYPE_CHECKING:
    from torch import Tensor

    from mcc_core.data.colours import View
    from mcc_core.methods.objective import Objective
    from mcc_core.networks.base import Network

Augmentation = Callable[..., "Mapping[str, Tensor | View]"]


@dataclass(frozen=True)
class Step:
    """The losses of a pass. A method may add what they were computed from."""

    total: Tensor
    terms: dict[str, Tensor]  # unweighted; a term whose weight is 0 at this iteration is absent
    images: int
    state: dict[str, float | Tensor] = field(default_factory=dict, kw_only=True)  # further curves, such as mask/ratio


class Method:
    """One method of the field. Adding one adds a folder with a subclass and an entry in the registry.

    Heavy imports belong into the functions: a schema is read where nothing is trained.
    """

    name: ClassVar[str]
    title: ClassVar[str]  # as a table prints it
    experiment: ClassVar[type[Experiment]]
    terms: ClassVar[tuple[str, ...]]  # loss terms, fields of `loss`, in display order
    optional_terms: ClassVar[tuple[str, ...]] = ()  # further ones, whose weight is 0 unless an experiment asks for them
    told: ClassVar[str] = "I"  # what it learns from, as tables print it: I image-level labels, L language
    rooms: ClassVar[tuple[str, ...]] = ()  # folders of the package that only its training runs, such as clip/
    map_stages: ClassVar[tuple[str, ...]]  # class maps of its network; () where it has none
    has_attention: ClassVar[bool] = True  # whether patches of its network attend to each other, for a random walk
    # Of weights files of others: tensors that no other method's have; those of which one has a row for each class;
    # what names of the backbone begin with, in published networks and in ours.
    published_marks: ClassVar[tuple[str, ...]] = ()
    published_heads: ClassVar[tuple[str, ...]] = ("classifier.weight",)
    published_backbone: ClassVar[str] = "encoder."
    backbone: ClassVar[str] = "encoder.vit."

    def terms_of(self, experiment: Any) -> tuple[str, ...]:
        """Loss terms of an experiment: the method's, and optional ones that count at any iteration of it."""
        asked = (term for term in self.optional_terms if not always_zero(getattr(experiment.loss, term)))
        return (*self.terms, *asked)

    def network(self, experiment: Any, num_classes: int) -> Network:
        """The network with its initial weights. Raises UsageError when they cannot be had."""
        raise TypeError(f"{self.name} has no network")

    def objective(self, network: Any, experiment: Any) -> Objective:
        """The losses of a network."""
        raise TypeError(f"{self.name} has no objective")

    def files(self, experiment: Any) -> dict[str, Path]:
        """Fields, as `section.field`, that name a file which decides a trial's numbers, beside `model.weights` and a
        label set.

        Its content is part of the trial's identity; where it lies is not. Raises UsageError for one that is none.
        """
        return {}

    def check_classes(self, experiment: Any, classes: Sequence[str]) -> None:
        """Raise UsageError where an experiment does not suit the foreground classes of the data. Must be quick."""

    def labels(self, experiment: Any) -> LabelsConfig | None:
        """The section `labels` of an experiment that learns from a label set; None where only image-level labels are
        learned from.

        The set's identity is part of the trial's; where it lies is not.
        """
        return None

    def augment(self, experiment: Any) -> Augmentation:
        """Called with an image 3,H,W uint8 and a generator, and of a label set with `label` H,W uint8 and, where any
        image of it has one, `confidence` H,W uint8 (255 for 1.0).

        Gives views by name, each 3,S,S, and `box`, its valid area: top, bottom, left, right.

        A view is a `View`, whose colours are done where `compute.augmentation` says, or a normalised tensor.

        Loader processes get it pickled. All randomness comes from the generator.
        """
        raise TypeError(f"{self.name} has no augmentation")

    def draws(
        self, experiment: Any, network: Any, batch_size: int, size: tuple[int, int], iteration: int, generator: Any
    ) -> dict[str, Tensor]:
        """The random draws of a step at a 0-based iteration, on the CPU, for images of `size` H,W."""
        return {}

    def evaluation(self, experiment: Any, num_classes: int, iteration: int | None = None) -> EvaluationConfig:
        """Parameters of the evaluation protocols as its authors used them, after `iteration` finished iterations."""
        raise TypeError(f"{self.name} has no evaluation")

    def from_published(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The network's tensors from those of a checkpoint of the published code; what it lacks is left out."""
        return {}

    def published_fields(self, state: Mapping[str, Tensor]) -> dict[str, Any]:
        """Dotted fields of the experiment that a published checkpoint decides beside the backbone, such as sizes."""
        return {}

    def backbone_of(self, tensors: Mapping[str, Tensor], where: str) -> str:
        """The name of the backbone that tensors of it alone belong to. Raises UsageError, with `where`."""
        from mcc_core.networks.backbones import vit_of

        return vit_of(tensors, where)

    def fill_backbone(self, network: Any, tensors: Mapping[str, Tensor], where: str) -> tuple[str, ...]:
        """Put tensors of a backbone alone into a network; the names of those that have no place in it.

        Raises UsageError, with `where`, when some are missing or of other shapes.
        """
        from mcc_core.networks.backbones import fill_backbone

        fill_backbone(network.encoder.vit, tensors, where)
        own = network.encoder.vit.state_dict()
        return tuple(name for name in tensors if name not in own)

    def speed_fields(self, experiment: Any) -> Any:
        """What beside network, crop, batch and processors decides the time of a step; JSON."""
        return None


def cam_evaluation(experiment: Any, num_classes: int, iteration: int | None = None) -> EvaluationConfig:
    """ToCo's protocol, which others of its family kept: COCO's form for 80 classes, VOC's for others.

    Thresholds are those of the last of `iteration` finished iterations (default: all), of an experiment with the
    sections `thresholds`, `cam` and `par`.
    """
    total = experiment.train.iterations
    last = max(0, (total if iteration is None else iteration) - 1)
    score, background, foreground = (
        value_at(getattr(experiment.thresholds, name), last, total) for name in ("score", "background", "foreground")
    )
    return EvaluationConfig(
        style="coco" if num_classes == 80 else "voc",
        cam_scales=experiment.cam.scales,
        cam_threshold=score,
        background=background,
        foreground=foreground,
        par=experiment.par,
        crop=experiment.train.crop,
    )
