"""The MCC network."""

from __future__ import annotations

from mcc_core.networks.contrast import ContrastNet, ContrastOutput

MCCOutput = ContrastOutput


class MCCNet(ContrastNet):
    """Encoder, classifiers, decoder, projector and its momentum copy; local views are masked images."""
