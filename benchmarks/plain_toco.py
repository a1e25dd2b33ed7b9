"""ToCo's training step without its savings, as the baseline that the benchmarks state ratios against.

Every global view and every local crop gets its own full forward, the momentum branch encodes both global views again,
CAMs are computed for all classes with no shared forward.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mcc_core.methods.toco import crops
from mcc_core.methods.toco.objective import Batch, ToCoObjective
from mcc_core.networks.contrast import ContrastOutput
from mcc_core.pseudo_labels.cam import multi_scale_maps


class PlainObjective(ToCoObjective):
    """Losses equal to `ToCoObjective`'s, without the savings."""

    def _forward(self, batch: Batch, with_view2: bool) -> ContrastOutput:
        return self.model(batch["view1"])

    def _cams(self, batch: Batch, output: ContrastOutput, classes: Tensor) -> tuple[Tensor, Tensor]:
        maps = multi_scale_maps(self.model, batch["view1"], self.experiment.cam.scales)
        return maps["cam"][:, classes], maps["aux_cam"][:, classes]

    def _projected(self, batch: Batch, output: ContrastOutput, positions: Tensor) -> tuple[Tensor, Tensor]:
        model, views = self.model, (batch["view1"], batch["view2"])
        with torch.no_grad():
            queries = torch.cat([model.momentum_projector(model.encoder(view).cls) for view in views])
        local = crops.windows(batch["local"], positions, self.experiment.crops.size)
        keys = [model.projector(model.encoder(view).cls) for view in (*views, *local.unbind(1))]
        return queries, torch.cat(keys)
