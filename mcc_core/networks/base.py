"""What evaluation, prediction and training may know of any method's network.

Shapes: B images, C foreground classes, K of them asked for, h,w the coarse grid.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from mcc_core.config import OptimConfig, Precision

MapStage = Literal["cam", "aux_cam"]


@dataclass(frozen=True)
class Output:
    """One forward pass of images B,3,H,W. A method may add fields."""

    cls: Tensor  # B,C image-level logits
    seg: Tensor  # B,C+1,h,w logits, background first
    features: Any  # of the network's own kind: what `class_maps` can use again


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters that are optimised alike."""

    parameters: tuple[nn.Parameter, ...]
    lr_scale: float = 1.0  # times the base learning rate
    decay_scale: float = 1.0  # times the weight decay
    restart_lr_scale: float | None = None  # times the rate after `optim.restart`; default: as before it


class Network(nn.Module):
    """A network that classifies images, segments them, and, where it has class maps, says where it sees a class.

    Attributes:
        num_classes: foreground classes C.
        stride: pixels per cell of the coarsest grid, and the smallest side of an image.
        map_stages: names of the class maps that `class_maps` gives; empty where it has none.
        averages: what names of moving averages begin with, and names of what they average and begin as.
        has_boundaries: whether `boundaries` finds where classes end.
        has_affinities: whether `affinities` says which neighbours are of one class.
        precision: of the trial's matrix products, which whoever uses the network sets (`arithmetic`).
        deterministic: whether the trial is repeatable to the bit, set likewise.
    """

    num_classes: int
    stride: int
    map_stages: tuple[MapStage, ...] = ("cam",)
    averages: ClassVar[Mapping[str, str]] = {}
    has_boundaries: ClassVar[bool] = False
    has_affinities: ClassVar[bool] = False
    precision: Precision = "float32"
    deterministic: bool = False

    def forward(self, images: Tensor) -> Output:
        """Logits of images B,3,H,W with the features behind them."""
        raise TypeError(f"{type(self).__name__} has no forward pass")

    def class_maps(
        self, images: Tensor, known: Output | None = None, classes: Tensor | None = None
    ) -> dict[MapStage, Tensor]:
        """Class activations B,K,h,w of images B,3,H,W for each of `map_stages`, not normalised.

        Args:
            known: an output of these images, which saves the pass.
            classes: K class indices; default all C. Maps of classes do not depend on each other.
        """
        raise TypeError(f"{type(self).__name__} has no class maps")

    def given(self, labels: Tensor) -> AbstractContextManager[None]:
        """Within it class maps are of images that have the labels B,C, or of such a batch more than once.

        They are 0 or 1, on the host. A network that does not ask for labels has no use for it.
        """
        return nullcontext()

    def class_maps_of(self, batches: Sequence[Tensor], classes: Tensor | None = None) -> list[dict[MapStage, Tensor]]:
        """`class_maps` of batches of images of several sizes, which a network may compute together."""
        return [self.class_maps(images, None, classes) for images in batches]

    def exported_maps(self, images: Tensor, known: Output) -> Tensor:
        """The class maps B,C,h,w of an exported network, of its one forward pass; default: `cam`."""
        return self.class_maps(images, known)["cam"]

    def boundaries(self, images: Tensor) -> Tensor:
        """Class boundaries B,h,w in [0, 1] at a quarter of the size of images B,3,H,W, where `has_boundaries`."""
        raise TypeError(f"{type(self).__name__} has no class boundaries")

    def affinities(self, images: Tensor, radius: int) -> Tensor:
        """Affinities B,P,h,w in (0, 1] at an eighth of the size of images B,3,H,W, where `has_affinities`.

        They are those of each cell and the one that lies in each of the P directions closer than `radius` cells
        (`inter_pixel.directions`); where that is outside, the value means nothing.
        """
        raise TypeError(f"{type(self).__name__} has no affinities")

    def parameter_groups(self, optim: OptimConfig) -> list[ParameterGroup]:
        """Parameters to optimise. What is frozen gets `requires_grad` off here."""
        raise TypeError(f"{type(self).__name__} has no parameter groups")
