"""FSR's training step without its savings, as the baseline that the benchmarks state ratios against.

Every view has a forward of its own, of the student and of the teacher, and all that comes out of it is projected. CAMs
are computed for all classes, by all blocks, with no shared forward.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from mcc_core.methods.fsr import objective
from mcc_core.methods.fsr.network import FSRNet, FSROutput, Teacher
from mcc_core.methods.fsr.objective import FSRObjective as PlainObjective
from mcc_core.pseudo_labels.cam import multi_scale_maps

__all__ = ["PlainObjective", "REPLACED", "one_forward"]


def one_forward(model: FSRNet, images: Tensor) -> Tensor:
    """The pass that others are counted in."""
    return model.encoder.tokens(images)[0]


def _separate_maps(
    network: FSRNet, images: Tensor, scales: Sequence[float], known: Any, classes: Tensor
) -> dict[str, Tensor]:
    return {stage: cam[:, classes] for stage, cam in multi_scale_maps(network, images, scales).items()}


def _with_masked(
    model: FSRNet, images: Tensor, masked: Tensor, mask: Tensor, *rest: Any, cls: bool, patches: bool
) -> FSROutput:
    tokens = model.encoder.tokens(masked, mask)[0]
    class_tokens = model.projector(model.encoder.aggregated(tokens))
    hidden = model.projector(model.encoder.vit.norm(tokens))[mask.flatten(1)]
    return replace(model(images), distilled_class=class_tokens, distilled_patches=hidden)


@torch.no_grad()
def _taught(teacher: Teacher, view1: Tensor, view2: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    found = []
    for view in (view1, view2):
        tokens = teacher.encoder.tokens(view)[0]
        classes, patches = teacher.encoder.aggregated(tokens), teacher.encoder.vit.norm(tokens)
        found.append((teacher.projector(classes), teacher.projector(patches)))
    return found[0][0], found[1][1]


# What stands in for ours while the plain step runs: where, which, by what.
REPLACED = (
    (objective, "multi_scale_maps", _separate_maps),
    (objective, "AuxiliaryMaps", lambda network: network),
    (FSRNet, "with_masked", _with_masked),
    (Teacher, "forward", _taught),
)
