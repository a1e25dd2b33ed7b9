"""The MCC network."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from mcc_core.config import ComputeConfig, ContrastModelConfig
from mcc_core.losses.distillation import Centers
from mcc_core.networks.contrast import ContrastNet, ContrastOutput

MCCOutput = ContrastOutput


class MCCNet(ContrastNet):
    """Encoder, classifiers, decoder, projector and its momentum copy; local views are masked images.

    Args:
        whole_teacher: the momentum copy is of the encoder too.
        hides_patches: patches can be hidden by a mask token, and what a teacher says of them has a centre.
    """

    averages: ClassVar[Mapping[str, str]] = {**ContrastNet.averages, "momentum_encoder.": "encoder."}

    def __init__(
        self,
        config: ContrastModelConfig,
        num_classes: int,
        compute: ComputeConfig | None = None,
        *,
        whole_teacher: bool = False,
        hides_patches: bool = False,
    ) -> None:
        super().__init__(config, num_classes, compute)
        if hides_patches:
            token = torch.empty(1, self.encoder.width)
            self.encoder.mask_token = nn.Parameter(nn.init.trunc_normal_(token, std=0.02))
            self.centers = Centers(config.projector.out, ("patch",))
        self.momentum_encoder = copy.deepcopy(self.encoder).requires_grad_(False) if whole_teacher else None

    @torch.no_grad()
    def update_momentum_projector(self, momentum: float) -> None:
        """As ToCo's, before a step's first pass; a whole teacher moves after the step instead."""
        if self.momentum_encoder is None:
            super().update_momentum_projector(momentum)

    @torch.no_grad()
    def move_teacher(self, momentum: float) -> None:
        """theta_t <- m theta_t + (1 - m) theta_s, of encoder and projector."""
        assert self.momentum_encoder is not None
        for slow, fast in ((self.momentum_encoder, self.encoder), (self.momentum_projector, self.projector)):
            for mean, own in zip(slow.parameters(), fast.parameters(), strict=True):
                mean.lerp_(own, 1 - momentum)

    @torch.no_grad()
    def queries(self, views: Tensor) -> Tensor:
        """What the whole teacher says of the class tokens of views O,3,H,W: O,E."""
        assert self.momentum_encoder is not None
        return self.momentum_projector(self.momentum_encoder.class_tokens(views))

    @torch.no_grad()
    def taught_patches(self, images: Tensor) -> Tensor:
        """What the teacher says of the patches of images B,3,H,W: B,N,E."""
        encoder = self.encoder if self.momentum_encoder is None else self.momentum_encoder
        return self.momentum_projector(encoder(images).patches.flatten(2).transpose(1, 2))
