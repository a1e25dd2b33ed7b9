"""Functions that are compiled once for any number of tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

# Of one function: widths of stages, with and without gradients, one image and several. PyTorch's default is 8, after
# which a function runs as it is.
VARIANTS = 32


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function that is compiled at its first use, for sizes that may change."""
    from torch._dynamo import config  # takes a second, which nobody else should wait for

    config.recompile_limit = max(config.recompile_limit, VARIANTS)
    return torch.compile(function, dynamic=True)
