"""What `mcc compare` does: evaluate what is not evaluated yet, compare, draw."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import cast, get_args

from mcc_core.data.index import build_index
from mcc_core.errors import UsageError
from mcc_core.evaluation.protocols import ProtocolName
from orchestrator.analysis.images import ImageComparison, Scored, compare_images, over_seeds, read_scored
from orchestrator.evaluation.request import evaluation_request
from orchestrator.evaluation.run import ExecutionOptions, evaluate_checkpoint, scores_identity
from orchestrator.records.lookup import networks_by_seed
from orchestrator.reports.gallery import Side, write_gallery
from orchestrator.settings import Settings
from orchestrator.workflows.networks import find_network


def compare_networks(
    first: str,
    second: str,
    settings: Settings,
    *,
    split: str = "val",
    protocol: str | None = None,
    limit: int | None = None,
    processes: int = 0,
    on_image: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[ImageComparison, tuple[Side | None, Side | None]]:
    """Compare two checkpoints, trials or evaluation folders; a side is None where a folder was given.

    Two configurations (SWEEP/CONFIGURATION of several seeds) are compared over their shared seeds; no side is one
    network then. Scores of networks are kept in the home, and used again. Raises UsageError.
    """
    if protocol is not None and protocol not in get_args(ProtocolName):
        raise UsageError(f"--protocol {protocol}: not one of {', '.join(get_args(ProtocolName))}")
    if first == second:
        raise UsageError(f"{first}: compared with itself")

    def scored(name: str, argument: str) -> tuple[Scored, Side | None]:
        if Path(name).is_dir():
            return read_scored(Path(name), protocol, name), None
        file = find_network(name, settings, argument)
        chosen = cast(ProtocolName, protocol or "ms")
        request = evaluation_request(file, [chosen], split, {}, limit=limit)
        # By all that decides the scores: after a change of the data they are made anew, not refused.
        out = settings.home / "compare" / f"{scores_identity(request, settings)}-{limit or 'all'}"
        evaluate_checkpoint(request, out, settings, ExecutionOptions(processes=processes), on_image)
        return read_scored(out, chosen, name), Side(name, request.saved)

    seeds, other_seeds = (networks_by_seed(name, settings) for name in (first, second))
    if seeds and other_seeds:
        if not (shared := sorted(seeds.keys() & other_seeds.keys())):
            raise UsageError(f"{first} and {second}: have no seed in common")
        pairs = [(scored(seeds[s], "FIRST")[0], scored(other_seeds[s], "SECOND")[0]) for s in shared]
        comparison = over_seeds(pairs)
        return replace(
            comparison, first=replace(comparison.first, label=first), second=replace(comparison.second, label=second)
        ), (
            None,
            None,
        )
    (first_side, side), (other, other_side) = scored(first, "FIRST"), scored(second, "SECOND")
    return compare_images(first_side, other), (side, other_side)


def draw_gallery(
    comparison: ImageComparison,
    sides: tuple[Side | None, Side | None],
    settings: Settings,
    split: str,
    out: Path,
    on_image: Callable[[int, int], None] = lambda done, total: None,
) -> Path:
    """The page of `write_gallery`. Raises UsageError where only the folder of an evaluation is known."""
    first_side, other = sides
    if first_side is None or other is None:
        raise UsageError("--gallery: needs two networks: give checkpoint files or SWEEP/TRIAL")
    data = first_side.saved.experiment.data
    index = build_index(
        data if split == data.train_split else data.model_copy(update={"val_split": split}), settings.home
    )
    images = {item.name: item.image for item in (*index.train, *index.val)}
    return write_gallery(comparison, (first_side, other), images, index.masks, out, on_image=on_image)
