"""Random walk of scores over the affinity between patches, which is a transformer's attention.

N = h*w patches of a grid h,w.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from mcc_core.device import fetched
from mcc_core.errors import UsageError
from mcc_core.networks.base import Network
from mcc_core.precision import arithmetic
from mcc_core.refinement.base import Asked, Kind, Picture, RandomWalkConfig, Refinement, Step, Viewer

_ROUNDS = 100  # of Sinkhorn's normalisation, at most
_CLOSE = 1e-6  # to 1, of the sums


class RandomWalk(Step):
    """Scores moved between patches that attend to each other (PSA, Ahn and Kwak 2018, section 3.4; IRN's is the same).

    With A the attention between patches, the mean over heads and blocks:

        T = normalised(((A + A^T) / 2)^beta),    s* = T^steps s

    The power is of each element. Normalised by row, T = D^-1 A^beta with D the sums of the rows (PSA's Eq. 4); by both,
    rows and columns are divided by their sums in turn until these are 1 (Sinkhorn). PSA and IRN learn A; here it is
    what the classifier attends to, as in MCTformer and CLIP-ES. A constant background score stays what it is.
    """

    kind: ClassVar[Kind] = "random_walk"

    def asks(self, viewer: Viewer | None, config: Refinement, device: torch.device) -> Asked | None:
        if viewer is None:
            raise UsageError(
                "kind: random_walk: needs a network's attention, and a label set has none: give a checkpoint"
            )

        def answer(image: np.ndarray) -> Tensor:
            return mean_attention(viewer.network, viewer.square(image), config.random_walk.blocks)

        return answer

    def apply(self, scores: Tensor, picture: Picture, config: Refinement) -> Tensor:
        return walked(scores, picture.answers[self.kind], config.random_walk)


def walked(scores: Tensor, affinity: Tensor, config: RandomWalkConfig) -> Tensor:
    """Scores 1+K,H,W moved by an affinity h,w,N between patches: on the patches' grid, and enlarged again."""
    height, width = affinity.shape[:2]
    matrix = transition(affinity.flatten(0, 1), config)
    small = F.interpolate(scores[None], size=(height, width), mode="area")[0]
    walking = small.flatten(1).T.double()
    for _ in range(config.steps):
        walking = matrix @ walking
    found = walking.T.float().unflatten(1, (height, width))
    if config.rescale:
        found = torch.cat([found[:1], _spanning(found[1:], scores[1:])])
    return F.interpolate(found[None], size=scores.shape[-2:], mode="bilinear", align_corners=False)[0]


def _spanning(scores: Tensor, before: Tensor) -> Tensor:
    """Scores K,h,w with lowest and highest value, of each class, of those before the walk, which brings them nearer."""
    low, high = scores.amin((1, 2), keepdim=True), scores.amax((1, 2), keepdim=True)
    old, top = before.amin((1, 2), keepdim=True), before.amax((1, 2), keepdim=True)
    return old + (scores - low) / (high - low + 1e-5) * (top - old)


def transition(affinity: Tensor, config: RandomWalkConfig) -> Tensor:
    """What moves scores, N,N float64: rows sum to 1. `affinity` is N,N, at least 0."""
    affinity = affinity.double()
    powers = ((affinity + affinity.T) / 2).log() * config.beta
    # A factor per row is lost in both normalisations: with the highest at 1, no power is too small for a number.
    matrix = (powers - powers.amax(1, keepdim=True)).exp()
    matrix /= matrix.sum(1, keepdim=True)
    if config.normalise == "row":
        return matrix
    tiny = torch.finfo(matrix.dtype).tiny
    for _ in range(_ROUNDS):
        columns = matrix.sum(0, keepdim=True)
        matrix /= columns.clamp(min=tiny)
        matrix /= matrix.sum(1, keepdim=True)
        if (columns - 1).abs().max() < _CLOSE:
            break
    return matrix


@torch.no_grad()
def mean_attention(network: Network, image: Tensor, blocks: int | None) -> Tensor:
    """Attention h,w,N from patch to patch of an image 1,3,H,W, the mean over heads and the last `blocks`; on the CPU.

    Other tokens than patches are left out. Raises UsageError where no block attends from each patch to each.
    """
    seen = _Attention()
    with arithmetic(network.precision, network.deterministic), seen:
        grid = next(iter(network.class_maps(image).values())).shape[-2:]
    patches = grid[0] * grid[1]
    square = [weights for weights in seen.found if weights.shape[0] == weights.shape[1] >= patches]
    # Tokens of a class or a register stand before the patches.
    usable = [weights[-patches:, -patches:] for weights in square[-(blocks or len(square)) :]]
    if not usable:
        raise UsageError(
            f"kind: random_walk: {type(network).__name__} has no attention between all patches; par and crf need none"
        )
    return fetched([torch.stack(usable).mean(0)])[0].unflatten(0, tuple(grid))


class _Attention(TorchFunctionMode):
    """Keeps the weights that attention has inside it, the mean over heads, queries x keys of one image.

    Networks compute attention by torch's fused function, which gives no weights; so they are computed beside it, with
    no change to a network.
    """

    def __init__(self) -> None:
        super().__init__()
        self.found: list[Tensor] = []

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is F.scaled_dot_product_attention:
            query, key = args[0].float(), args[1].float()
            if len(query) == 1 and query.shape[-2] == key.shape[-2]:
                weights = (query @ key.transpose(-2, -1) * query.shape[-1] ** -0.5).softmax(-1)
                self.found.append(weights[0].mean(0))
        return func(*args, **(kwargs or {}))
