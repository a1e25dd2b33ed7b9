"""Self-distillation with centred teacher outputs (DINO and iBOT; FSR, section 3.3)."""

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
    """Moving averages E of a teacher's outputs by kind, of class tokens and patches; equal on all ranks.

    Each pass of an optimiser step gives its means to `collect`; `update` averages them over passes and ranks, which
    have batches of one size.
    """

    class_center: Tensor
    patch_center: Tensor

    def __init__(self, size: int, kinds: tuple[str, ...] = ("class", "patch")) -> None:
        super().__init__()
        self.kinds = kinds
        for kind in kinds:
            self.register_buffer(f"{kind}_center", torch.zeros(size))
        self._collected: list[Tensor] = []

    def collect(self, *outputs: Tensor) -> None:
        """Remember the means of a pass's outputs N,E of each kind."""
        self._collected.append(torch.stack([output.detach().mean(0) for output in outputs]))

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
        for kind, mean in zip(self.kinds, means, strict=True):
            getattr(self, f"{kind}_center").lerp_(mean, 1 - momentum)
