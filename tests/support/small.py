"""The smallest experiment that exercises everything, for tests that train for real."""

from __future__ import annotations

from typing import Any

SMALL: dict[str, Any] = {
    "model.backbone_args": {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 2},
    "model.aux_block": 2,
    "train.crop": 32,
    "train.batch_size": 2,
    "train.iterations": 6,
    "train.eval_every": 3,
    "train.log_every": 1,
    "train.eval_images": 4,
    "train.panels": 1,
    "loss.seg_start": 1,
    "par.dilations": [1, 2],
    "data.shapes_train": 8,
    "data.shapes_val": 4,
    "data.shapes_size": 48,
}
