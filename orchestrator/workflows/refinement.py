"""Label sets made by hand: from the name of a network, a label set or CLIP to a checked request, and made."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mcc_core import checkpoint as checkpoints
from mcc_core.clip.config import ClipConfig
from mcc_core.clip.seeds import ClipSeeds
from mcc_core.config import DataConfig
from mcc_core.data.index import DataIndex, build_index
from mcc_core.data.label_maps import LABELS, LabelSet, read_label_set
from mcc_core.device import chosen_device
from mcc_core.errors import UsageError
from mcc_core.experiment_files import merge
from mcc_core.files import file_digest
from mcc_core.refinement.base import Refinement
from mcc_core.refinement.make import Refined, Split, refine
from mcc_core.refinement.seeds import LabelSeeds, NetworkSeeds, Seeds
from mcc_core.validation import validate
from orchestrator.evaluation.map_cache import MapCache
from orchestrator.evaluation.request import data_fields
from orchestrator.settings import Settings
from orchestrator.workflows.networks import find_network

_CACHE = 4 * 10**9  # bytes of disk for what networks said, as `mcc sweep` of evaluation parameters keeps
_DATA = "data."
CLIP = "clip"  # names no file and no trial: seeds of a frozen CLIP, and its section of fields


@dataclass(frozen=True)
class Prepared:
    """Seeds, what is to be done with them, and the images."""

    seeds: Seeds
    refinement: Refinement
    index: DataIndex


def prepared(
    source: str,
    kind: str,
    changes: Mapping[str, Any],
    settings: Settings,
    *,
    data: str | None = None,
    device: str = "auto",
) -> Prepared:
    """Check what is asked for.

    Args:
        source: a network by any name of it, the folder or zip of a label set, or `clip`, a frozen network.
        kind: `crf`, or a chain such as `random_walk,crf`.
        changes: dotted fields of the refinement, of the experiment's `data` section, and of `clip`.
        data: a preset or a dataset's folder; default: what the network was trained on.

    Raises UsageError, one line per mistake; DataError for broken data.
    """
    apart = (_DATA, f"{CLIP}.") if source == CLIP else (_DATA,)
    fields = {key: value for key, value in changes.items() if not key.startswith(apart)}
    if "kind" in fields:
        raise UsageError("--set kind: --kind says it")
    refinement = validate(Refinement, merge({}, {**fields, "kind": kind}, "--set"), "--set")
    if (labels := label_set_at(source)) is not None:
        return Prepared(LabelSeeds(labels, refinement), refinement, index_of(None, data, changes, settings))
    if source == CLIP:
        given = {key: value for key, value in changes.items() if key.startswith(f"{CLIP}.")}
        config = validate(ClipConfig, merge({CLIP: {}}, given, "--set")[CLIP], "--set clip")
        index = index_of(None, data, changes, settings)
        return Prepared(ClipSeeds(config, index.classes, refinement, chosen_device(device)), refinement, index)
    file = find_network(source, settings)
    saved = checkpoints.load(file)
    index = index_of(saved.experiment.data, data, changes, settings)
    digest = file_digest(file)
    seeds = NetworkSeeds(saved, refinement, chosen_device(device), name=source, digest=digest)
    seeds.maps_of = MapCache(settings.home / "maps", _CACHE, seeds.scorer, digest, index.fingerprint).maps
    return Prepared(seeds, refinement, index)


def make(
    asked: Prepared,
    out: Path,
    *,
    splits: Sequence[Split] = ("train",),
    limit: int | None = None,
    processes: int = 0,
    on_image: Callable[[int, int], None] = lambda done, total: None,
) -> Refined:
    """Make the label set."""
    return refine(
        asked.seeds,
        asked.refinement,
        asked.index,
        out,
        splits=splits,
        limit=limit,
        processes=processes,
        on_image=on_image,
    )


def label_set_at(source: str) -> LabelSet | None:
    """The label set of a folder or zip; None where a path is none. Raises DataError for a broken one."""
    path = Path(source)
    return read_label_set(path) if (path / LABELS).is_file() or path.suffix == ".zip" else None


def index_of(trained: DataConfig | None, data: str | None, changes: Mapping[str, Any], settings: Settings) -> DataIndex:
    """The dataset of `--data`, or of what was trained on. Raises UsageError, DataError."""
    if trained is None and data is None:
        raise UsageError("--data: is missing: neither a label set nor CLIP says where images are; a preset or a folder")
    before = {} if trained is None else trained.model_dump(mode="json")
    fields = {key: value for key, value in changes.items() if key.startswith(_DATA)}
    section = merge({"data": data_fields(before, data)}, fields, "--set")["data"]
    return build_index(validate(DataConfig, section, "--set data"), settings.home)


def split_names(text: str) -> list[Split]:
    """`train`, `val` or both. Raises UsageError."""
    known: tuple[Split, ...] = ("train", "val")
    names = [name.strip() for name in text.split(",")]
    if wrong := [name for name in names if name not in known]:
        raise UsageError(f"--split {wrong[0]}: not one of {', '.join(known)}")
    return [name for name in known if name in names]
