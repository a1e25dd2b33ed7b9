"""What a network said of each image, on disk, so that evaluation parameters can be tried without the network."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from mcc_core.data.index import Item
from mcc_core.evaluation.protocols import Maps
from mcc_core.evaluation.scoring import Scorer
from mcc_core.files import whole
from mcc_core.precision import named_precision


class MapCache:
    """Maps at token resolution in float16, one file per image, within a budget of bytes.

    Everything that decides the maps names their folder: the checkpoint, the data and what the network was run on. When
    the budget is used up, further images are computed each time. Scores from the cache are those of maps rounded to
    float16; an image is rounded whether it comes from the disk or not, so that the budget changes no score.
    """

    def __init__(self, home: Path, budget: int, scorer: Scorer, checkpoint: str, data: str) -> None:
        decisive = scorer.config.model_dump(include={"style", "crop", "scales", "cam_scales"}, mode="json")
        decisive |= named_precision(scorer.model.precision)
        key = json.dumps([checkpoint, data, sorted(scorer.protocols), decisive], sort_keys=True)
        self.folder = home / hashlib.sha256(key.encode()).hexdigest()[:16]
        self.scorer, self.budget = scorer, budget
        self.used = sum(f.stat().st_size for f in home.rglob("*.npz")) if home.exists() else 0

    def maps(self, item: Item) -> Maps:
        """Maps of an image, from the disk where they are there and whole."""
        file = self.folder / f"{item.name}.npz"
        try:
            with np.load(file, allow_pickle=False) as content:
                return Maps.of_arrays(dict(content))
        except (OSError, ValueError, EOFError, KeyError, BadZipFile):
            arrays = self.scorer.maps(item).arrays("float16")
        size = sum(array.nbytes for array in arrays.values())
        if self.used + size <= self.budget:
            with whole(file) as partial, partial.open("wb") as stream:
                np.savez(stream, **arrays)  # type: ignore[arg-type]  # numpy's stub takes a keyword for allow_pickle
            self.used += file.stat().st_size
        return Maps.of_arrays(arrays)
