"""Sizes of mix transformers (SegFormer's encoder, NeurIPS 2021, table 6)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field, model_validator

from mcc_core.config import Strict
from mcc_core.errors import UsageError
from mcc_core.validation import validate

Positive = Annotated[int, Field(ge=1)]
FourNumbers = tuple[Positive, Positive, Positive, Positive]  # of stages 1 to 4


class MixSizes(Strict):
    """What a mix transformer is made of."""

    embed_dims: FourNumbers
    depths: FourNumbers
    num_heads: FourNumbers = (1, 2, 5, 8)
    sr_ratios: FourNumbers = (8, 4, 2, 1)  # keys and values are of squares of so many tokens a side
    mlp_ratios: FourNumbers = (4, 4, 4, 4)

    @model_validator(mode="after")
    def _heads_divide(self) -> MixSizes:
        for width, heads in zip(self.embed_dims, self.num_heads, strict=True):
            if width % heads:
                raise ValueError(f"num_heads: {heads} heads cannot share {width} channels")
        return self


MIX_TRANSFORMERS = {
    "mit_b0": MixSizes(embed_dims=(32, 64, 160, 256), depths=(2, 2, 2, 2)),
    "mit_b1": MixSizes(embed_dims=(64, 128, 320, 512), depths=(2, 2, 2, 2)),
    "mit_b2": MixSizes(embed_dims=(64, 128, 320, 512), depths=(3, 4, 6, 3)),
    "mit_b3": MixSizes(embed_dims=(64, 128, 320, 512), depths=(3, 4, 18, 3)),
    "mit_b4": MixSizes(embed_dims=(64, 128, 320, 512), depths=(3, 8, 27, 3)),
    "mit_b5": MixSizes(embed_dims=(64, 128, 320, 512), depths=(3, 6, 40, 3)),
}


def mix_sizes(backbone: str, overrides: Mapping[str, Any]) -> MixSizes:
    """Sizes of a named mix transformer with some of them overridden. Raises UsageError."""
    if backbone not in MIX_TRANSFORMERS:
        known = ", ".join(MIX_TRANSFORMERS)
        raise UsageError(f"model.backbone: {backbone!r} is not a mix transformer: expected one of {known}")
    fields = MIX_TRANSFORMERS[backbone].model_dump() | dict(overrides)
    return validate(MixSizes, fields, "model.backbone_args")
