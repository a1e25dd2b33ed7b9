"""MCC's step with parts of FSR: uncertain squares masked first, a whole teacher, distillation of masked patches.

Nobody has published these together; each is off unless an experiment asks for it (docs/methods.md).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from mcc_core.losses.distillation import distillation
from mcc_core.methods.mcc.config import OPTIONAL_TERMS, TERMS, Experiment
from mcc_core.methods.mcc.masking import on_grid, uncertain_first, uncertain_squares
from mcc_core.methods.mcc.network import MCCNet, MCCOutput
from mcc_core.methods.mcc.objective import Batch, Contrast, MCCObjective, MCCStep


class ReinforcedObjective(MCCObjective):
    """Eq. 5 with what the experiment asks of FSR's."""

    terms = (*TERMS, *OPTIONAL_TERMS)

    def __init__(self, model: MCCNet, experiment: Experiment) -> None:
        super().__init__(model, experiment)
        if experiment.hides_patches:
            model.projector.requires_grad_(True)
        self._draws: dict[str, Tensor] = {}
        self._iteration = 0

    def forward(
        self,
        batch: Batch,
        draws: Mapping[str, Tensor],
        iteration: int,
        *,
        first: bool = True,
        all_classes: bool = False,
    ) -> MCCStep:
        """Losses of one pass.

        Args:
            draws: `masks` B,V,h,w key masks, 1 = masked; `noise` B,V,h',w' of their squares where uncertain ones are
                masked first; `hidden_noise` B,1,h',w' where patches are hidden.
        """
        # The masks depend on the CAMs of the same pass: `_cams` chooses them before they are read.
        self._draws, self._iteration = dict(draws), iteration
        step = super().forward(batch, self._draws, iteration, first=first, all_classes=all_classes)
        zero = step.total.new_zeros(())
        if not self.experiment.hides_patches:
            return step
        if not (weight := self.weights(iteration)["fsr_patch"]):
            unused = [self.model.encoder.mask_token, *self.model.projector.parameters()]
            return replace(step, total=step.total + sum((0 * p.sum() for p in unused), start=zero))
        term = self._patches(batch, iteration)
        return replace(step, total=step.total + weight * term, terms=step.terms | {"fsr_patch": term})

    def after_step(self, iteration: int) -> None:
        """Moves the centre, and the whole teacher."""
        e = self.experiment
        if e.hides_patches:
            self.model.centers.update(self.at(e.patches.center_momentum, iteration))
        if e.contrast.teacher == "network":
            self.model.move_teacher(self.at(e.contrast.teacher_momentum, iteration))

    def _cams(self, batch: Batch, output: MCCOutput, classes: Tensor) -> tuple[Tensor, Tensor]:
        """CAMs of `classes`, and the masks that depend on them."""
        cams = super()._cams(batch, output, classes)
        aux = cams[1] * batch["labels"].to(cams[1].device)[:, classes, None, None]
        self._choose(aux)
        return cams

    @torch.no_grad()
    def _choose(self, aux: Tensor) -> None:
        """Key masks, and squares that the mask token hides, by auxiliary CAMs B,K,S,S of view 1.

        The local view shows the same crop.
        """
        e, draws, grid = self.experiment, self._draws, self._grid(aux)
        scale = round(self.at(e.mask.scale, self._iteration))
        start = e.mask.uncertain_start
        low, high = (self.at(v, self._iteration) for v in (e.thresholds.background, e.thresholds.foreground))
        uncertain = None
        if start is not None and self._iteration >= start:
            place = draws["masks"].device
            uncertain = uncertain_squares(aux, grid, scale, low, high).to(place)
            noise = draws["noise"]
            counts = (noise < self.at(e.mask.ratio, self._iteration)).sum((2, 3))
            draws["masks"] = on_grid(uncertain_first(noise, counts, uncertain), grid, scale).to(torch.uint8)
        if e.hides_patches:
            noise = draws["hidden_noise"]
            share = math.ceil(self.at(e.patches.ratio, self._iteration) * noise[0, 0].numel() - 1e-9)
            nowhere = torch.zeros_like(noise, dtype=torch.bool)
            counts = torch.full(noise.shape[:2], share, device=noise.device)
            hidden = uncertain_first(noise, counts, nowhere if uncertain is None else uncertain)
            draws["hidden"] = on_grid(hidden, grid, scale)[:, 0]

    def _grid(self, maps: Tensor) -> tuple[int, int]:
        return self.model.encoder.grid(maps.shape[-2], maps.shape[-1])

    def _contrast(self, batch: Batch, output: MCCOutput, masks: Tensor, flags: Tensor) -> Contrast:
        """Queries are what the whole teacher says of the global views, where the experiment has one."""
        compared = super()._contrast(batch, output, masks, flags)
        if self.experiment.contrast.teacher == "projector":
            return compared
        names = ("view1", "view2") if self.experiment.contrast.queries == "both" else ("view1",)
        return replace(compared, queries=self.model.queries(torch.cat([batch[name] for name in names])))

    def _patches(self, batch: Batch, iteration: int) -> Tensor:
        """Cross entropy of hidden patches of the local view to what the teacher, who sees them, says."""
        config, model, local = self.experiment.patches, self.model, batch["local"]
        hidden = self._draws["hidden"].to(local.device)
        student = model.projector(model.encoder.hidden_patches(local, hidden))
        taught = model.taught_patches(local)
        model.centers.collect(taught.flatten(0, 1))
        temperatures = [self.at(v, iteration) for v in (config.student_temperature, config.teacher_temperature)]
        return distillation(student, taught[hidden.flatten(1)], model.centers.patch_center, *temperatures)
