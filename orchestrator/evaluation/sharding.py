"""An evaluation's images shared out among Ray workers. Counts are whole numbers, so any sharing gives the same sums."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mcc_core.data.index import Item
from mcc_core.errors import MCCError, UsageError
from mcc_core.evaluation.scoring import ImageScore, Scorer, Setting
from orchestrator.cluster.session import Capacity

_CHUNK = 8  # images given out at a time: small, so that no worker is left with a long rest
_TRIES = 3  # starts of a worker beyond the first, and of the images it held


class _Shard:
    """One worker: the network, and the processes beside it."""

    def __init__(self, checkpoint: bytes, settings: Sequence[Setting], processes: int, keep_masks: bool) -> None:
        import torch

        from mcc_core import checkpoint as checkpoints

        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        network = checkpoints.load(io.BytesIO(checkpoint)).network().to(device)
        self.scorer = Scorer(network, settings, {}, device, processes, keep_masks).__enter__()

    def score(self, items: Sequence[Item], masks: Mapping[str, Path]) -> list[ImageScore]:
        self.scorer.masks = masks
        return list(self.scorer.scores(items))


def sharded_scores(
    checkpoint: Path,
    settings: Sequence[Setting],
    items: Sequence[Item],
    masks: Mapping[str, Path],
    capacity: Capacity,
    *,
    workers: int,
    processes: int = 0,
    keep_masks: bool = False,
) -> Iterator[ImageScore]:
    """Scores of `items` in the order in which they are ready; Ray must be connected. Images are read by the workers.

    A worker that dies is started again and does its images again. A worker has `max(1, processes)` CPUs, and a GPU
    where the cluster has one for each.

    Raises UsageError when the cluster is too small, DataError for an unreadable image, MCCError when a worker dies
    again and again.
    """
    import ray
    from ray.exceptions import RayActorError, RayTaskError
    from ray.util import ActorPool

    cpus = max(1, processes)
    if workers * cpus > capacity.cpus:
        raise UsageError(f"--workers {workers}: they need {workers * cpus} CPUs and {capacity.cpus:g} are there")
    options: dict[str, Any] = {"num_cpus": cpus, "num_gpus": 1 if capacity.gpus >= workers else 0}
    kind = ray.remote(_Shard).options(**options, max_restarts=_TRIES, max_task_retries=_TRIES)
    content = ray.put(checkpoint.read_bytes())
    size = max(1, min(_CHUNK, len(items) // (4 * workers)))
    chunks = [items[i : i + size] for i in range(0, len(items), size)]
    pool = ActorPool([kind.remote(content, tuple(settings), processes, keep_masks) for _ in range(workers)])
    try:
        for scores in pool.map_unordered(
            lambda actor, chunk: actor.score.remote(chunk, {i.name: masks[i.name] for i in chunk if i.name in masks}),
            chunks,
        ):
            yield from scores
    except RayTaskError as error:
        raise error.cause from None
    except RayActorError as error:
        raise MCCError(
            f"an evaluation worker died {_TRIES + 1} times; the same command goes on: {str(error).splitlines()[0]}"
        ) from None
