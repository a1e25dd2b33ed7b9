"""WideResNet-38: the published file's tensors, its strides and what a wrong file is told."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from published_slrnet import backbone_shapes, backbone_tensors

from mcc_core.errors import UsageError
from mcc_core.networks.wide_resnet38 import WideResNet38, load_wide_resnet38, own_name


def test_the_published_tensors_are_all_there_is() -> None:
    with torch.device("meta"):
        network = WideResNet38()
    own = {name: tuple(t.shape) for name, t in network.state_dict().items() if "num_batches" not in name}
    assert {own_name(name): shape for name, shape in backbone_shapes().items()} == own
    megabytes = 4 * sum(t.numel() for t in network.state_dict().values()) / 2**20
    assert megabytes == pytest.approx(402, abs=2)  # the published file's size


def test_a_published_file_loads_without_its_classifier(tmp_path: Path) -> None:
    tensors = backbone_tensors(2)
    torch.save(tensors | {"linear1000.weight": torch.zeros(1000, 128)}, tmp_path / "rna-a1.pth")
    network = WideResNet38(width=2)
    load_wide_resnet38(network, tmp_path / "rna-a1.pth")
    state = network.state_dict()
    assert all(torch.equal(state[own_name(name)], tensor) for name, tensor in tensors.items())


def test_a_file_that_lacks_or_misshapes_a_tensor_is_one_line(tmp_path: Path) -> None:
    tensors = backbone_tensors(2)
    torch.save({name: t for name, t in tensors.items() if not name.startswith("b5_2")}, tmp_path / "a.pth")
    with pytest.raises(UsageError, match=r"a\.pth: lacks 10 tensors of wide_resnet38, such as stages\.3\.2"):
        load_wide_resnet38(WideResNet38(width=2), tmp_path / "a.pth")
    torch.save(tensors, tmp_path / "b.pth")
    with pytest.raises(UsageError, match=r"model\.width and model\.depths: conv1\.weight is 2x3x3x3, not 4x3"):
        load_wide_resnet38(WideResNet38(width=4), tmp_path / "b.pth")
    with pytest.raises(UsageError, match="no such file"):
        load_wide_resnet38(WideResNet38(width=2), tmp_path / "none.pth")


def test_strides_and_recomputing() -> None:
    torch.manual_seed(0)
    network = WideResNet38(width=1, depths=(1, 1, 1, 1)).train()
    images = torch.randn(2, 3, 33, 40)
    shallow, deep = network(images)
    assert shallow.shape == (2, 4, 9, 10) and deep.shape == (2, 64, 5, 5)
    gradients = []
    for recompute in (False, True):
        network.recompute = recompute
        network.zero_grad()
        torch.manual_seed(1)
        network(images)[1].square().mean().backward()
        gradients.append([p.grad.clone() for p in network.parameters() if p.grad is not None])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))
