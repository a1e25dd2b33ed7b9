"""AFA on two ranks is AFA with the whole batch: its batch norm is synchronised."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from ranks import on_ranks
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from trained import smallest

from mcc_core.methods.registry import method_of


class _Mean(torch.nn.Module):
    """A loss that is a mean over images, so that the mean over ranks is that of the whole batch."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        experiment: Any = smallest("afa", **{"model.dropout": 0.0, "model.drop_path": 0.0})
        self.network = method_of(experiment).network(experiment, 3).double().train()

    def forward(self, images: Tensor) -> Tensor:
        network: Any = self.network
        output = network(images)
        affinity = network.affinity(output.features)
        return output.seg.sin().mean() + output.cls.square().mean() + affinity.mean()


def _gradients(rank: int | None) -> dict[str, Any]:
    images = torch.randn(4, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    loss: Any = _Mean()
    module = loss if rank is None else DistributedDataParallel(loss)
    module(images if rank is None else images.chunk(2)[rank]).backward()
    network = loss.network
    found = {name: p.grad.numpy() for name, p in network.named_parameters()}
    return found | {name: buffer.numpy() for name, buffer in network.named_buffers()}


def test_two_ranks_have_the_gradients_of_the_whole_batch() -> None:
    first, second = on_ranks(_gradients)
    whole = _gradients(None)
    assert "decoder.linear_fuse.bn.running_var" in whole and "encoder.block4.1.attn.q.weight" in whole
    for name, expected in whole.items():
        np.testing.assert_array_equal(first[name], second[name])
        np.testing.assert_allclose(first[name], expected, rtol=1e-8, atol=1e-12, err_msg=name)
