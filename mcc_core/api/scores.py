"""A network's scores on a dataset with masks, by named protocols."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from mcc_core.api.experiments import home_folder
from mcc_core.api.model import Model, load
from mcc_core.data.index import DataIndex, build_index
from mcc_core.errors import DataError, UsageError
from mcc_core.evaluation.protocols import ProtocolName
from mcc_core.evaluation.scoring import Scorer, metrics, protocol_settings, totals


@dataclass(frozen=True)
class Scores:
    """What a network reached. In a notebook it shows as a table."""

    values: dict[str, dict[str, float]]  # protocol to name (miou, pixel_accuracy, iou/<class>) to value in [0, 1]
    images: int
    split: str

    @property
    def miou(self) -> dict[str, float]:
        """Mean IoU over classes, background among them, by protocol."""
        return {protocol: scores["miou"] for protocol, scores in self.values.items()}

    def __repr__(self) -> str:
        scores = ", ".join(f"{name} {100 * value:.1f}" for name, value in self.miou.items())
        return f"<Scores mIoU in percent on {self.images} images of {self.split}: {scores}>"

    def _repr_html_(self) -> str:
        names = dict.fromkeys(name for scores in self.values.values() for name in scores)
        head = [f"{self.images} images of {self.split}, percent", *self.values]
        body = [
            [name, *(f"{100 * scores[name]:.1f}" if name in scores else "-" for scores in self.values.values())]
            for name in names
        ]
        rows = ["".join(f"<td>{html.escape(cell)}</td>" for cell in row) for row in [head, *body]]
        return f"<table>{''.join(f'<tr>{row}</tr>' for row in rows)}</table>"


def evaluate(
    model: Model | str | Path,
    index: DataIndex | None = None,
    *,
    protocols: str | Sequence[str] = ("single",),
    split: str = "val",
    limit: int | None = None,
    processes: int = 0,
    changes: Mapping[str, Any] | None = None,
) -> Scores:
    """Score a network by named protocols, as `mcc evaluate` does.

    Args:
        model: a Model, or what `load` takes.
        index: the dataset; default: the one it was trained on. Its classes must be the model's.
        protocols: of cam, aux_cam, cam_crf, refined, single, ms, ms_crf.
        split: `val`, or `train` for training images that have masks.
        limit: the first so many images only.
        processes: other processes for label maps, CRF and counting.
        changes: parameters of the protocols that differ from the published ones, such as `{"scales": [1.0]}`.

    Raises UsageError for an unknown protocol or other classes, DataError where no image has a mask or one cannot be
    read.
    """
    model = model if isinstance(model, Model) else load(model)
    names = [protocols] if isinstance(protocols, str) else list(protocols)
    if wrong := [name for name in names if name not in get_args(ProtocolName)]:
        raise UsageError(f"protocols: {wrong[0]!r}: not one of {', '.join(get_args(ProtocolName))}")
    if split not in ("val", "train"):
        raise UsageError(f"split: {split!r}: not val or train")
    index = build_index(model.experiment.data, home_folder(None)) if index is None else index
    if index.classes != model.classes:
        raise UsageError(
            f"index: has the classes {', '.join(index.classes[:3])}, ..., the model {', '.join(model.classes[:3])}, ..."
        )
    settings = protocol_settings(model.experiment, len(model.classes), names, changes or {}, "changes")  # type: ignore[arg-type]  # checked
    items = [item for item in (index.val if split == "val" else index.train) if item.name in index.masks][:limit]
    if not items:
        raise DataError(f"index: no image of {split} has a mask: nothing to score")
    with Scorer(model.network, settings, index.masks, model.device, processes) as scorer:
        sums = totals((score.counts for score in scorer.scores(items)), len(model.classes) + 1)
    values = {
        s.name: {m.name: m.value for m in metrics(sums[s.name], split, s.protocol, model.classes)} for s in settings
    }
    return Scores(values, len(items), split)
