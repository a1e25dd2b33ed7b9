"""A checkpoint scored by protocols: resumable image by image, written as JSON and CSV."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from mcc_core.checkpoint import Checkpoint
from mcc_core.config import DataConfig
from mcc_core.data.index import DataIndex, Item, build_index
from mcc_core.device import chosen_device
from mcc_core.errors import DataError, UsageError
from mcc_core.evaluation.metrics import Metric
from mcc_core.evaluation.protocols import needs_crf
from mcc_core.evaluation.scoring import ImageScore, Scorer, Setting, metrics, totals
from mcc_core.files import file_digest, json_digest, made_folder, whole
from mcc_core.precision import named_precision
from mcc_core.pseudo_labels.crf import require_crf
from orchestrator.cluster.session import cluster
from orchestrator.evaluation.map_cache import MapCache
from orchestrator.evaluation.sharding import sharded_scores
from orchestrator.records.scores import ScoresFile
from orchestrator.settings import Settings

SCORES = "scores.jsonl"
_FEW = 8  # images: so many are scored sooner than other processes have started


@dataclass(frozen=True)
class Request:
    """What is scored, and how. `blind`: images without masks are allowed, for the label maps alone."""

    checkpoint: Path
    saved: Checkpoint = field(repr=False)  # what the file holds
    data: DataConfig
    split: str
    settings: tuple[Setting, ...]
    limit: int | None = None
    keep_masks: bool = False
    blind: bool = False


@dataclass(frozen=True)
class ExecutionOptions:
    """What the work is done with: none of it changes a score."""

    device: str = "auto"
    processes: int = 0  # per worker, for label maps and CRF
    workers: int = 0  # Ray workers; 0: this process
    cache_bytes: int = 0  # disk for what the network says, to be used again by other settings


@dataclass(frozen=True)
class Evaluation:
    """The scores of one checkpoint on one split, by the names of the settings."""

    header: Mapping[str, object]
    metrics: Mapping[str, list[Metric]]
    classes: tuple[str, ...]
    images: tuple[str, ...]
    folder: Path

    def masks(self, setting: str) -> Path:
        """Folder of the label maps, where they were kept."""
        return self.folder / "masks" / setting


def evaluate_checkpoint(
    request: Request,
    out: Path,
    settings: Settings,
    options: ExecutionOptions = ExecutionOptions(),
    on_image: Callable[[int, int], None] = lambda done, total: None,
) -> Evaluation:
    """Score a checkpoint; an interrupted run with the same request goes on where it stopped.

    Writes `out/scores.jsonl` (pixel counts of each image), `out/metrics.json`, `out/metrics.csv`, and label maps as
    `out/masks/<setting>/<image>.png` when the request keeps them.

    Raises UsageError when `out` holds another evaluation's scores, or classes differ; DataError for broken data.
    """
    if any(needs_crf(setting.protocol) for setting in request.settings):
        require_crf()
    saved = request.saved
    index = _index(request, saved, settings.home)
    items = [
        item
        for item in (index.train if request.split == request.data.train_split else index.val)
        if request.blind or item.name in index.masks
    ][: request.limit]
    if not items:
        raise DataError(f"no image of {request.split} has a mask: nothing to score (--masks and mcc predict need none)")
    header = _header(request, saved, index)
    strange = [s.name for s in request.settings if any((out / "masks" / s.name).glob("*.png"))]
    if strange and not (out / SCORES).exists():
        raise UsageError(
            f"{out / 'masks' / strange[0]}: label maps, and no {SCORES} says of which checkpoint; give another --out "
            "or remove the folder"
        )
    scores = ScoresFile(made_folder(out, "--out") / SCORES, header)
    result = Evaluation(header, {}, saved.classes, tuple(item.name for item in items), out)
    left = [item for item in items if item.name not in scores.known or not _has_masks(result, request, item)]
    done = len(items) - len(left)
    on_image(done, len(items))
    if left:
        with _source(request, saved, index, left, settings, options, header) as ready:
            for number, score in enumerate(ready, start=done + 1):
                for name, content in score.masks.items():
                    _write_mask(result.masks(name) / f"{score.image}.png", content)
                scores.add(score.image, score.counts)
                on_image(number, len(items))
    counted = [scores.known[item.name] for item in items]
    sums = totals(counted, len(saved.classes) + 1)
    found_metrics = {
        s.name: metrics(sums[s.name], request.split, s.protocol, saved.classes)
        for s in request.settings
        if s.name in sums
    }
    result = Evaluation(header, found_metrics, saved.classes, result.images, out)
    _write(result)
    return result


def scores_identity(request: Request, settings: Settings) -> str:
    """16 hexadecimal digits of all that decides the scores. Raises UsageError; DataError for broken data."""
    header = _header(request, request.saved, _index(request, request.saved, settings.home))
    return json_digest(header, 16)


def _header(request: Request, saved: Checkpoint, index: DataIndex) -> dict[str, object]:
    return {
        "checkpoint": file_digest(request.checkpoint),
        "data": index.fingerprint,
        "split": request.split,
        "classes": list(saved.classes),
        "settings": [
            {"name": s.name, "protocol": s.protocol, "config": s.config.model_dump(mode="json")}
            for s in request.settings
        ],
        **named_precision(saved.experiment.compute.precision),
    }


@contextmanager
def _source(
    request: Request,
    saved: Checkpoint,
    index: DataIndex,
    items: Sequence[Item],
    settings: Settings,
    options: ExecutionOptions,
    header: Mapping[str, object],
) -> Iterator[Iterable[ImageScore]]:
    """Where scores come from: this process, or workers of a Ray cluster."""
    if options.workers:
        with cluster(settings) as capacity:
            yield sharded_scores(
                request.checkpoint,
                request.settings,
                items,
                index.masks,
                capacity,
                workers=options.workers,
                processes=options.processes,
                keep_masks=request.keep_masks,
            )
        return
    device = chosen_device(options.device)
    network = saved.network().to(device)
    processes = options.processes if len(items) > _FEW else 0
    with Scorer(network, request.settings, index.masks, device, processes, request.keep_masks) as scorer:
        cache = MapCache(
            settings.home / "maps", options.cache_bytes, scorer, str(header["checkpoint"]), str(header["data"])
        )
        yield scorer.scores(items, cache.maps, cache.lacks) if options.cache_bytes else scorer.scores(items)


def _index(request: Request, saved: Checkpoint, home: Path) -> DataIndex:
    data = request.data
    if data.name == "shapes" and request.split not in (data.train_split, data.val_split):
        # They would be drawn under any name.
        raise UsageError(
            f"--split {request.split}: generated shapes have {data.train_split} and {data.val_split} alone"
        )
    changes = {} if request.split == data.train_split else {"val_split": request.split}
    index = build_index(data.model_copy(update=changes), home, blind=request.blind)
    if index.classes != saved.classes:
        raise UsageError(
            f"{request.checkpoint}: was trained on {len(saved.classes)} classes ({', '.join(saved.classes[:3])}, ...), "
            f"the data has {len(index.classes)} ({', '.join(index.classes[:3])}, ...); --set data.classes=FILE names "
            "them"
        )
    return index


def _has_masks(result: Evaluation, request: Request, item: Item) -> bool:
    names = [s.name for s in request.settings] if request.keep_masks else []
    return all((result.masks(name) / f"{item.name}.png").is_file() for name in names)


def _write_mask(file: Path, content: bytes) -> None:
    with whole(file) as partial:
        partial.write_bytes(content)


def _write(result: Evaluation) -> None:
    """`metrics.json` and `metrics.csv`. A setting's values stand under its name; each says what it measured."""
    content = (
        {"precision": "float32"}
        | dict(result.header)
        | {
            "images": len(result.images),
            "metrics": {name: {m.key: m.value for m in metrics} for name, metrics in result.metrics.items()},
        }
    )
    (result.folder / "metrics.json").write_text(json.dumps(content, indent=1))
    with (result.folder / "metrics.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(["setting", "split", "stage", "protocol", "name", "value"])
        for name, metrics in result.metrics.items():
            writer.writerows([name, m.split, m.stage, m.protocol, m.name, m.value] for m in metrics)
