"""A checkpoint scored by protocols: resumable image by image, written as JSON and CSV."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from mcc_core import checkpoint as checkpoints
from mcc_core.config import DataConfig
from mcc_core.data.index import build_index
from mcc_core.errors import UsageError
from mcc_core.metrics import Metric
from mcc_core.protocols import EvaluationConfig, ProtocolName
from mcc_core.scoring import Counts, Scorer, Setting, matrices, metrics


@dataclass(frozen=True)
class Evaluation:
    """The scores of one checkpoint on one split."""

    metrics: dict[ProtocolName, list[Metric]]
    classes: tuple[str, ...]
    images: int
    folder: Path


def evaluate_checkpoint(
    file: Path,
    data: DataConfig,
    split: str,
    protocols: Sequence[ProtocolName],
    out: Path,
    home: Path,
    *,
    config: EvaluationConfig | None = None,
    device: torch.device,
    processes: int = 0,
    limit: int | None = None,
    on_image: Callable[[int, int], None] = lambda done, total: None,
) -> Evaluation:
    """Score a checkpoint; an interrupted run with the same checkpoint, data and parameters goes on where it stopped.

    Writes `out/scores.jsonl` (pixel counts of each image), `out/metrics.json` and `out/metrics.csv`.

    Raises UsageError when `out` holds another evaluation's scores, or classes differ; DataError for broken data.
    """
    saved = checkpoints.load(file)
    index = build_index(data.model_copy(update={} if split == data.train_split else {"val_split": split}), home)
    if index.classes != saved.classes:
        raise UsageError(
            f"{file}: was trained on {len(saved.classes)} classes ({', '.join(saved.classes[:3])}, ...), the data has "
            f"{len(index.classes)} ({', '.join(index.classes[:3])}, ...); --set data.classes=FILE names them"
        )
    items = [i for i in (index.train if split == data.train_split else index.val) if i.name in index.masks][:limit]
    config = config or EvaluationConfig.of(saved.experiment, len(saved.classes))
    settings = [Setting(protocol, protocol, config) for protocol in protocols]
    header: dict[str, object] = {
        "checkpoint": _sha256(file),
        "data": index.fingerprint,
        "split": split,
        "protocols": list(protocols),
        "config": config.model_dump(mode="json"),
    }
    scores = _Scores(out / "scores.jsonl", header)
    left = [item for item in items if item.name not in scores.known]
    on_image(len(items) - len(left), len(items))
    if left:
        with Scorer(saved.network().to(device), settings, index.masks, device, processes) as scorer:
            for number, score in enumerate(scorer.scores(left), start=len(items) - len(left) + 1):
                scores.add(score.image, score.counts)
                on_image(number, len(items))
    totals = matrices((scores.known[item.name] for item in items), len(saved.classes) + 1)
    found = {protocol: metrics(totals[protocol], split, protocol, saved.classes) for protocol in protocols}
    result = Evaluation(found, saved.classes, len(items), out)
    _write(result, header)
    return result


class _Scores:
    """Pixel counts per image, appended to a file whose first line says what they are of."""

    def __init__(self, file: Path, header: dict[str, object]) -> None:
        self.file = file
        self.known: dict[str, dict[str, Counts]] = {}
        file.parent.mkdir(parents=True, exist_ok=True)
        lines = file.read_bytes().splitlines(keepends=True) if file.exists() else []
        whole = [line for line in lines if line.endswith(b"\n")]  # a killed run may leave half a line
        if whole and json.loads(whole[0]) != header:
            raise UsageError(f"{file}: scores of another checkpoint, data or setting; give another --out or remove it")
        for line in whole[1:]:
            entry = json.loads(line)
            self.known[entry["image"]] = entry["counts"]
        if len(whole) < max(1, len(lines)):
            file.write_bytes(b"".join(whole) or json.dumps(header).encode() + b"\n")

    def add(self, image: str, counts: dict[str, Counts]) -> None:
        self.known[image] = counts
        with self.file.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps({"image": image, "counts": counts}) + "\n")


def _write(result: Evaluation, header: dict[str, object]) -> None:
    every = [metric for found in result.metrics.values() for metric in found]
    content = header | {"images": result.images, "metrics": {metric.key: metric.value for metric in every}}
    (result.folder / "metrics.json").write_text(json.dumps(content, indent=1))
    with (result.folder / "metrics.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(["split", "stage", "protocol", "name", "value"])
        writer.writerows([m.split, m.stage, m.protocol, m.name, m.value] for m in every)


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
