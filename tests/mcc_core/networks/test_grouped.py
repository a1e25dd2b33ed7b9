"""Batches of images of several sizes in one pass have the features that they have alone."""

from __future__ import annotations

import pytest
import torch

from mcc_core.experiment_files import resolve
from mcc_core.methods.registry import network_of
from mcc_core.networks import encoder
from mcc_core.pseudo_labels.cam import multi_scale_maps


@pytest.mark.parametrize("known", [False, True])
def test_maps_of_all_scales_in_one_pass(known: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    network = network_of(resolve("tiny"), 5).double().eval()
    images = torch.rand(2, 3, 64, 48, dtype=torch.float64)
    with torch.no_grad():
        output = network(images) if known else None
    passes: list[int] = []
    monkeypatch.setattr(encoder.Encoder, "_run", _counting(encoder.Encoder._run, passes))
    apart = multi_scale_maps(network, images, (1.0, 0.5, 1.5), output)
    each = len(passes)
    monkeypatch.setattr(encoder, "PIECEWISE", set())
    together = multi_scale_maps(network, images, (1.0, 0.5, 1.5), output)
    assert each == 3 * (len(passes) - each) > 0
    for stage, maps in apart.items():
        torch.testing.assert_close(together[stage], maps, rtol=1e-9, atol=1e-9)


def _counting(function, passes):  # type: ignore[no-untyped-def]
    def call(*arguments):  # type: ignore[no-untyped-def]
        passes.append(1)
        return function(*arguments)

    return call
