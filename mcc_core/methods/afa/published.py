"""Tensors of the published AFA code as ours."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

_COUNTER = "decoder.linear_fuse.bn.num_batches_tracked"


def from_published(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """State dict of an AFANet from a published one, with or without `module.` before each name.

    Names are the same. The ImageNet head, which AFA does not use, is left out; the counter of batches, which nothing
    reads, is 0 where it is missing.
    """
    named = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    ours = {name: tensor for name, tensor in named.items() if not name.startswith("encoder.head.")}
    return {_COUNTER: torch.tensor(0)} | ours
