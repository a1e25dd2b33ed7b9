"""Tensor names of the published MCC and ToCo code, which are alike, and ours."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

# Published name prefixes and ours, the longer first.
_PUBLISHED = (
    ("proj_head_t.last_layer.weight_v", "momentum_projector.last.direction"),
    ("proj_head_t.last_layer.weight_g", "momentum_projector.last.gain"),
    ("proj_head_t.", "momentum_projector."),
    ("proj_head.last_layer.weight_v", "projector.last.direction"),
    ("proj_head.last_layer.weight_g", "projector.last.gain"),
    ("proj_head.", "projector."),
    ("encoder.", "encoder.vit."),
)


def from_published(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """State dict of a `ContrastNet` from a published one, with or without `module.` before each name.

    The ImageNet head, which neither uses, is left out.
    """
    ours: dict[str, Tensor] = {}
    for published, tensor in state.items():
        name = published.removeprefix("module.")
        if name.startswith("encoder.head."):
            continue
        for old, new in _PUBLISHED:
            if name.startswith(old):
                name = new + name.removeprefix(old)
                break
        ours[name] = tensor
    return ours
