"""Tensor names of the published SLRNet code, and ours."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from mcc_core.networks.wide_resnet38 import own_name, sizes_of

# Published name prefixes and ours.
_PUBLISHED = {
    **{f"aspp.aspp1.{old}.": f"aspp.point.{new}." for old, new in (("atrous_conv", 0), ("bn", 1))},
    **{
        f"aspp.aspp{i + 2}.{old}.": f"aspp.dilated.{i}.{new}."
        for i in range(3)
        for old, new in (("atrous_conv", 0), ("bn", 1))
    },
    **{"aspp.global_avg_pool.1.": "aspp.image.0.", "aspp.global_avg_pool.2.": "aspp.image.1."},
    **{"aspp.conv1.": "aspp.merge.0.", "aspp.bn1.": "aspp.merge.1."},
    **{"fc8_skip.": "skip.", "fc8_x.": "merge."},
    **{
        "shallow_mask.fc_deep.": "cues.deep.",
        "shallow_mask.fc_skip.": "cues.skip.",
        "shallow_mask.fc_cls.": "cues.out.",
    },
    "factorization_reconstruction.transform1.": "factorisation.before.",
    "factorization_reconstruction.transform2.": "factorisation.after.",
    **{"aux_head.0.": "aux_head.0.0.", "aux_head.1.": "aux_head.0.1.", "aux_head.4.": "aux_head.2."},
    **{"last_conv.0.": "seg_head.0.0.", "last_conv.1.": "seg_head.0.1.", "last_conv.4.": "seg_head.2.0."},
    **{"last_conv.5.": "seg_head.2.1.", "last_conv.8.": "seg_head.4."},
}


def from_published(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """State dict of an SLRNet from a published one, with or without `module.` before each name.

    The published file holds the new layers twice, and constants of the refinement; those are left out.
    """
    ours: dict[str, Tensor] = {}
    for published, tensor in state.items():
        name = published.removeprefix("module.")
        if name.startswith("backbone."):
            ours["backbone." + own_name(name.removeprefix("backbone."))] = tensor
            continue
        for old, new in _PUBLISHED.items():
            if name.startswith(old):
                ours[new + name.removeprefix(old)] = tensor
    return ours


def fields(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Fields of the experiment that tensors of a published checkpoint, or of the backbone alone, decide: sizes."""
    sizes = sizes_of({name.removeprefix("backbone."): tensor for name, tensor in state.items()})
    named = {f"model.{name}": size for name, size in sizes.items()}
    for field, head in (("channels", "aux_head.0.weight"), ("skip_channels", "fc8_skip.0.weight")):
        if (tensor := state.get(head)) is not None:
            named[f"model.{field}"] = len(tensor)
    return named
