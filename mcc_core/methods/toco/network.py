"""The ToCo network."""

from __future__ import annotations

from torch import Tensor

from mcc_core.networks.contrast import ContrastNet


class ToCoNet(ContrastNet):
    """Encoder, classifiers, decoder, projector and its momentum copy; local views are crops."""

    def crop_tokens(self, crops: Tensor) -> Tensor:
        """Class tokens N,D of crops N,3,s,s; the position table is resized to the crop's grid."""
        return self.encoder.class_tokens(crops)
