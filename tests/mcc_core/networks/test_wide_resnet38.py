"""WideResNet-38: the published file's tensors, its strides and what a wrong file is told."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from mcc_core.errors import UsageError
from mcc_core.networks.wide_resnet38 import WideResNet38, load_wide_resnet38, own_name

NORM = ("weight", "bias", "running_mean", "running_var")


def published_shapes(width: int = 64) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors of `ilsvrc-cls_rna-a1_cls1000_ep-0001.pth`, without its classifier."""
    w = width
    shapes: dict[str, tuple[int, ...]] = {"conv1a.weight": (w, 3, 3, 3)}
    shapes |= {f"bn7.{name}": (64 * w,) for name in NORM}

    def add(block: str, norms: dict[str, int], convolutions: dict[str, tuple[int, ...]]) -> None:
        shapes.update({f"{block}.bn_branch{at}.{name}": (size,) for at, size in norms.items() for name in NORM})
        shapes.update({f"{block}.conv_branch{at}.weight": shape for at, shape in convolutions.items()})

    blocks = [
        *[("b2", w, 2 * w, 2 * w), ("b2_1", 2 * w, 2 * w, 2 * w), ("b2_2", 2 * w, 2 * w, 2 * w)],
        *[("b3", 2 * w, 4 * w, 4 * w), ("b3_1", 4 * w, 4 * w, 4 * w), ("b3_2", 4 * w, 4 * w, 4 * w)],
        ("b4", 4 * w, 8 * w, 8 * w),
        *[(f"b4_{i}", 8 * w, 8 * w, 8 * w) for i in range(1, 6)],
        *[("b5", 8 * w, 8 * w, 16 * w), ("b5_1", 16 * w, 8 * w, 16 * w), ("b5_2", 16 * w, 8 * w, 16 * w)],
    ]
    for block, a, m, b in blocks:
        convolutions: dict[str, tuple[int, ...]] = {"2a": (m, a, 3, 3), "2b1": (b, m, 3, 3)}
        if "_" not in block:
            convolutions["1"] = (b, a, 1, 1)
        add(block, {"2a": a, "2b1": m}, convolutions)
    for block, a, b in (("b6", 16 * w, 32 * w), ("b7", 32 * w, 64 * w)):
        add(
            block,
            {"2a": a, "2b1": b // 4, "2b2": b // 2},
            {
                **{"2a": (b // 4, a, 1, 1), "2b1": (b // 2, b // 4, 3, 3)},
                **{"2b2": (b, b // 2, 1, 1), "1": (b, a, 1, 1)},
            },
        )
    return shapes


def published_tensors(width: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {name: torch.rand(shape, generator=generator) for name, shape in published_shapes(width).items()}


def test_the_published_tensors_are_all_there_is() -> None:
    with torch.device("meta"):
        network = WideResNet38()
    own = {name: tuple(t.shape) for name, t in network.state_dict().items() if "num_batches" not in name}
    assert {own_name(name): shape for name, shape in published_shapes().items()} == own
    megabytes = 4 * sum(t.numel() for t in network.state_dict().values()) / 2**20
    assert megabytes == pytest.approx(402, abs=2)  # the published file's size


def test_a_published_file_loads_without_its_classifier(tmp_path: Path) -> None:
    tensors = published_tensors(2)
    torch.save(tensors | {"linear1000.weight": torch.zeros(1000, 128)}, tmp_path / "rna-a1.pth")
    network = WideResNet38(width=2)
    load_wide_resnet38(network, tmp_path / "rna-a1.pth")
    state = network.state_dict()
    assert all(torch.equal(state[own_name(name)], tensor) for name, tensor in tensors.items())


def test_a_file_that_lacks_or_misshapes_a_tensor_is_one_line(tmp_path: Path) -> None:
    tensors = published_tensors(2)
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
