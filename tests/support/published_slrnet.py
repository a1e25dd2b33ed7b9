"""Files in the layout of the published SLRNet code, of any width."""

from __future__ import annotations

import torch
from torch import Tensor

from mcc_core.methods.slrnet.network import SLRNet
from mcc_core.methods.slrnet.published import from_published

NORM = ("weight", "bias", "running_mean", "running_var")


def backbone_shapes(width: int = 64) -> dict[str, tuple[int, ...]]:
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


def backbone_tensors(width: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {name: torch.rand(shape, generator=generator) for name, shape in backbone_shapes(width).items()}


def head_names() -> list[str]:
    """Names of the tensors of a published checkpoint behind its backbone."""
    norm = ("weight", "bias", "running_mean", "running_var")
    names = [f"aspp.aspp{i}.atrous_conv.weight" for i in range(1, 5)]
    names += [f"aspp.aspp{i}.bn.{n}" for i in range(1, 5) for n in norm]
    names += ["aspp.global_avg_pool.1.weight", "aspp.conv1.weight"]
    names += [f"{bn}.{n}" for bn in ("aspp.global_avg_pool.2", "aspp.bn1") for n in norm]
    for block in ("fc8_skip", "fc8_x", "shallow_mask.fc_deep", "shallow_mask.fc_skip", "shallow_mask.fc_cls"):
        affine = norm[2:] if block == "shallow_mask.fc_skip" else norm
        names += [f"{block}.0.weight", *(f"{block}.1.{n}" for n in affine)]
    names += [f"aux_head.{n}" for n in ("0.weight", "4.weight", "4.bias", *(f"1.{n}" for n in norm))]
    names += [f"last_conv.{n}" for n in ("0.weight", "4.weight", "8.weight", "8.bias")]
    names += [f"last_conv.{i}.{n}" for i in (1, 5) for n in norm]
    names += [f"factorization_reconstruction.transform{i}.{n}" for i in (1, 2) for n in ("weight", "bias")]
    return names


def checkpoint_tensors(network: SLRNet, width: int) -> dict[str, Tensor]:
    """A published checkpoint of a network's sizes: new layers twice, constants of the refinement beside them."""
    own = network.state_dict()
    backbone = {f"backbone.{name}": tensor for name, tensor in backbone_tensors(width).items()}
    generator = torch.Generator().manual_seed(1)
    heads: dict[str, Tensor] = {}
    for name in head_names():
        (ours,) = from_published({name: torch.zeros(1)})
        heads[name] = torch.rand(own[ours].shape, generator=generator)
    doubled = {
        f"newly_added.0.{n.removeprefix('aspp.')}": t.detach() for n, t in heads.items() if n.startswith("aspp.")
    }
    return backbone | heads | doubled | {"_aff.aff_x.kernel": torch.zeros(8, 1, 3, 3)}
