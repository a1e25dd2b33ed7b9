"""The smallest SLRNet that still has every part."""

from __future__ import annotations

from typing import Any

SMALL_SLRNET: dict[str, Any] = {
    "model.width": 2,
    "model.channels": 8,
    "model.skip_channels": 4,
    "model.dilations": [1, 2, 3],
    "pseudo_label.dilations": [1, 2],
    "pseudo_label.iterations": 2,
    "train.crop": 32,
    "train.batch_size": 2,
    "train.iterations": 6,
    "train.eval_every": 3,
    "train.log_every": 1,
    "train.eval_images": 4,
    "train.panels": 1,
    "loss.seg_start": 2,
    "optim.decay_start": 2,
    "data.shapes_train": 8,
    "data.shapes_val": 4,
    "data.shapes_size": 48,
}
