"""Self-distillation with centred teacher outputs (section 3.3; DINO and iBOT)."""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn


def distillation(
    student: Tensor, teacher: Tensor, center: Tensor, student_temperature: float, teacher_temperature: float
) -> Tensor:
    """Mean cross entropy of student outputs N,E against centred, sharpened teacher outputs N,E; 0 without any.

    Args:
        center: E, subtracted from the teacher's outputs.
    """
    if not len(student):
        return student.sum()
    target = ((teacher - center) / teacher_temperature).softmax(1).detach()
    return F.cross_entropy(student / student_temperature, target)


class Centers(nn.Module):
    """Moving averages E of the teacher's outputs of class tokens and of patches, equal on all ranks.

    Each pass of an optimiser step gives its means to `collect`; `update` averages them over passes and ranks, which
    have batches of one size.
    """

    class_center: Tensor
    patch_center: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        self.register_buffer("class_center", torch.zeros(size))
        self.register_buffer("patch_center", torch.zeros(size))
        self._collected: list[Tensor] = []

    def collect(self, classes: Tensor, patches: Tensor) -> None:
        """Remember the means of a pass's outputs: class tokens B,E and patches M,E."""
        self._collected.append(torch.stack([classes.detach().mean(0), patches.detach().mean(0)]))

    @torch.no_grad()
    def update(self, momentum: float) -> None:
        """Move the centres towards what was collected since the last update."""
        if not self._collected:
            return
        means = torch.stack(self._collected).mean(0)
        self._collected.clear()
        if dist.is_initialized():
            dist.all_reduce(means)
            means /= dist.get_world_size()
        self.class_center.lerp_(means[0], 1 - momentum)
        self.patch_center.lerp_(means[1], 1 - momentum)
