"""MCC's step with parts of FSR: uncertain squares masked first, a whole teacher, distillation of masked patches.

Nobody has published these together; each is off unless an experiment asks for it (docs/methods.md).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from mcc_core.device import moved
from mcc_core.losses.distillation import distillation
from mcc_core.methods.mcc.config import OPTIONAL_TERMS, TERMS, Experiment
from mcc_core.methods.mcc.masking import on_grid, uncertain_first, uncertain_squares
from mcc_core.methods.mcc.network import MCCNet, MCCOutput
from mcc_core.methods.mcc.objective import Batch, Contrast, Maps, MCCObjective, MCCStep
from mcc_core.methods.objective import Opening


class ReinforcedObjective(MCCObjective):
    """Eq. 5 with what the experiment asks of FSR's."""

    terms = (*TERMS, *OPTIONAL_TERMS)

    def __init__(self, model: MCCNet, experiment: Experiment) -> None:
        super().__init__(model, experiment)
        if experiment.hides_patches:
            model.projector.requires_grad_(True)

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
        step = super().forward(batch, draws, iteration, first=first, all_classes=all_classes)
        zero = step.total.new_zeros(())
        if not self.experiment.hides_patches:
            return step
        if not (weight := self.weights(iteration)["fsr_patch"]):
            unused = [self.model.encoder.mask_token, *self.model.projector.parameters()]
            return replace(step, total=step.total + sum((0 * p.sum() for p in unused), start=zero))
        term = self._patches(batch, step.draws["hidden"], iteration)
        return replace(step, total=step.total + weight * term, terms=step.terms | {"fsr_patch": term})

    def after_step(self, iteration: int) -> None:
        """Moves the centre, and the whole teacher."""
        e = self.experiment
        if e.hides_patches:
            self.model.centers.update(self.at(e.patches.center_momentum, iteration))
        if e.contrast.teacher == "network":
            self.model.move_teacher(self.at(e.contrast.teacher_momentum, iteration))

    def chooses(self, iteration: int) -> bool:
        """From the iteration on at which uncertain squares are masked first."""
        start = self.experiment.mask.uncertain_start
        return start is not None and iteration >= start

    @torch.no_grad()
    def chosen(self, known: Opening, maps: Maps, draws: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Key masks, and squares that the mask token hides (`hidden` B,h,w), by auxiliary CAMs of view 1.

        The local view shows the same crop.
        """
        e, iteration, found = self.experiment, known.iteration, dict(draws)
        scale = round(self.at(e.mask.scale, iteration))
        uncertain = None
        if self.chooses(iteration):
            squares = uncertain_squares(maps.aux.detach(), maps.grid, scale, known.background, known.foreground)
            uncertain = squares.to(draws["masks"].device)
            noise = draws["noise"]
            counts = (noise < self.at(e.mask.ratio, iteration)).sum((2, 3))
            found["masks"] = on_grid(uncertain_first(noise, counts, uncertain), maps.grid, scale).to(torch.uint8)
        if e.hides_patches:
            noise = draws["hidden_noise"]
            share = math.ceil(self.at(e.patches.ratio, iteration) * noise[0, 0].numel() - 1e-9)
            nowhere = torch.zeros_like(noise, dtype=torch.bool)
            counts = torch.full(noise.shape[:2], share, device=noise.device)
            hidden = uncertain_first(noise, counts, nowhere if uncertain is None else uncertain)
            found["hidden"] = on_grid(hidden, maps.grid, scale)[:, 0]
        return found

    def _contrast(self, batch: Batch, output: MCCOutput, masks: Tensor, flags: Tensor) -> Contrast:
        """Queries are what the whole teacher says of the global views, where the experiment has one."""
        compared = super()._contrast(batch, output, masks, flags)
        if self.experiment.contrast.teacher == "projector":
            return compared
        names = ("view1", "view2") if self.experiment.contrast.queries == "both" else ("view1",)
        return replace(compared, queries=self.model.queries(torch.cat([batch[name] for name in names])))

    def _patches(self, batch: Batch, hidden: Tensor, iteration: int) -> Tensor:
        """Cross entropy of `hidden` B,h,w patches of the local view to what the teacher, who sees them, says."""
        config, model, local = self.experiment.patches, self.model, batch["local"]
        hidden = moved(hidden, local.device)
        student = model.projector(model.encoder.hidden_patches(local, hidden))
        taught = model.taught_patches(local)
        model.centers.collect(taught.flatten(0, 1))
        temperatures = [self.at(v, iteration) for v in (config.student_temperature, config.teacher_temperature)]
        return distillation(student, taught[hidden.flatten(1)], model.centers.patch_center, *temperatures)
