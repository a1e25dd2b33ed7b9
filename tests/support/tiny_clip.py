"""The smallest CLIP: open_clip's, with random weights."""

from __future__ import annotations

from typing import Any

import torch

from mcc_core.clip.config import ClipConfig

CPU = torch.device("cpu")
SIZES: dict[str, Any] = {
    "embed_dim": 12,
    "vision_cfg": {"layers": 3, "width": 16, "head_width": 8, "patch_size": 8, "image_size": 32},
    "text_cfg": {"width": 16, "heads": 2, "layers": 1},
}
TINY = ClipConfig(model_args=SIZES, weights="random", attention_blocks=2)
# The same as fields of an experiment.
SMALL: dict[str, Any] = {f"clip.{name}": value for name, value in (("model_args", SIZES), ("weights", "random"))}
SMALL |= {"clip.attention_blocks": 2, "clip.prompts": "default"}
