"""Label sets made by hand: from the name of a network, a label set or CLIP to a checked request, and to the set."""

from __future__ import annotations

import fcntl
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mcc_core import checkpoint as checkpoints
from mcc_core.clip.config import ClipConfig
from mcc_core.config import DataConfig
from mcc_core.data.index import DataIndex, build_index
from mcc_core.data.label_maps import DATASET, LABELS, LabelSet, read_label_set
from mcc_core.data.label_source import local_zip, refuse_copies, stored_identity
from mcc_core.device import chosen_device
from mcc_core.errors import MCCError, UsageError
from mcc_core.experiment_files import merge
from mcc_core.files import file_digest, json_digest, partial_folder, whole
from mcc_core.refinement.base import LEARNED, Refinement
from mcc_core.refinement.clip_seeds import ClipSeeds
from mcc_core.refinement.make import Refined, Split, refine
from mcc_core.refinement.progress import PROGRESS
from mcc_core.refinement.seeds import LabelSeeds, NetworkSeeds, Seeds
from mcc_core.validation import validate
from orchestrator.evaluation.map_cache import MapCache
from orchestrator.evaluation.request import data_fields
from orchestrator.records import layout
from orchestrator.records.lookup import trial_of
from orchestrator.settings import Settings
from orchestrator.storage.store import Storage
from orchestrator.text import reason
from orchestrator.workflows.networks import find_network

_CACHE = 4 * 10**9  # bytes of disk for what networks said, as `mcc sweep` of evaluation parameters keeps
_DATA = "data."
_NETWORKS = tuple(f"{kind}.network" for kind in LEARNED)  # fields that name a second network
CLIP = "clip"  # names no file and no trial: seeds of a frozen CLIP, and its section of fields


@dataclass(frozen=True)
class Prepared:
    """Seeds, what is to be done with them, and the images."""

    seeds: Seeds
    refinement: Refinement
    index: DataIndex
    home: Path  # MCC's, where locks lie


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

    The label set will say in its origin which dataset it is of.

    Args:
        source: a network by any name of it, the folder or zip of a label set, or `clip`, a frozen network.
        kind: `crf`, or a chain such as `random_walk,crf`.
        changes: dotted fields of the refinement, in which a network has any name of it, of the experiment's `data`
            section, and of `clip`.
        data: a preset or a dataset's folder; default: what the network was trained on.

    Raises UsageError, one line per mistake; DataError for broken data.
    """
    apart = (_DATA, f"{CLIP}.") if source == CLIP else (_DATA,)
    fields = {key: value for key, value in changes.items() if not key.startswith(apart)}
    if "kind" in fields:
        raise UsageError("--set kind: --kind says it")
    for field in _NETWORKS:
        if isinstance(named := fields.get(field), str):
            fields[field] = str(find_network(named, settings, field))
    refinement = validate(Refinement, merge({}, {**fields, "kind": kind}, "--set"), "--set")
    if (labels := find_labels(source, settings)) is not None:
        dataset = dataset_of(labels_dataset(labels), data, changes)
        seeds: Seeds = LabelSeeds(labels, refinement, chosen_device(device))
        seeds.origin = {**seeds.origin, DATASET: dataset.model_dump(mode="json")}
        index = build_index(dataset, settings.home)
        refuse_copies(labels, index)  # which, once refined, nobody could tell from weak ones
        return Prepared(seeds, refinement, index, settings.home)
    if source == CLIP:
        given = {key: value for key, value in changes.items() if key.startswith(f"{CLIP}.")}
        config = validate(ClipConfig, merge({CLIP: {}}, given, "--set")[CLIP], "--set clip")
        dataset = dataset_of(None, data, changes)
        index = build_index(dataset, settings.home)
        seeds = ClipSeeds(config, index.classes, refinement, chosen_device(device))
        seeds.origin = {**seeds.origin, DATASET: dataset.model_dump(mode="json")}
        return Prepared(seeds, refinement, index, settings.home)
    file = find_network(source, settings)
    saved = checkpoints.load(file)
    dataset = dataset_of(saved.experiment.data, data, changes)
    index = build_index(dataset, settings.home)
    digest = file_digest(file)
    maps = NetworkSeeds(saved, refinement, chosen_device(device), name=source, digest=digest)
    maps.maps_of = MapCache(settings.home / "maps", _CACHE, maps.scorer, digest, index.fingerprint).maps
    maps.origin = {**maps.origin, DATASET: dataset.model_dump(mode="json")}
    return Prepared(maps, refinement, index, settings.home)


def make(
    asked: Prepared,
    out: Path,
    *,
    splits: Sequence[Split] = ("train",),
    limit: int | None = None,
    processes: int = 0,
    on_image: Callable[[int, int], None] = lambda done, total: None,
) -> Refined:
    """Make the label set.

    What a run that was cut off has made waits beside `out`, and the same one goes on with the other images.

    Raises UsageError where `out` is there already.
    """
    target = out.resolve()  # of `.` too the folder that it lies in
    with _only_run(asked.home / "locks" / f"refine-{json_digest(str(target), 16)}", out):
        partial_folder(out, str(out)).rmdir()  # says what is wrong with it
        unfinished = target.parent / f".{target.name}.unfinished"
        made = refine(
            asked.seeds,
            asked.refinement,
            asked.index,
            unfinished,
            splits=splits,
            limit=limit,
            processes=processes,
            on_image=on_image,
            goes_on=True,
        )
        unfinished.joinpath(PROGRESS).unlink()
        unfinished.rename(target)  # over an empty folder too
    return replace(made, labels=LabelSet(out, made.labels.file))


@contextmanager
def _only_run(lock: Path, out: Path) -> Iterator[None]:
    """Keep others from making the same label set meanwhile. The system takes the lock from a process that dies."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("a") as held:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(f"{out}: another run is making it; wait for its end, or give another --out") from None
        yield


def find_labels(source: str, settings: Settings) -> LabelSet | None:
    """A label set by its folder or zip, its key `labels/IDENTITY` in storage, or the trial SWEEP/TRIAL that made it.

    None where the name is none's. Raises DataError for a broken one, MCCError where storage does not answer.
    """
    path = Path(source)
    if (path / LABELS).is_file() or (path.suffix == ".zip" and path.is_file()):
        return read_label_set(path)
    identity = stored_identity(path)
    if identity is None and not path.exists() and "/" in source:
        with suppress(UsageError):  # then it is no trial, and `find_network` says what it is not
            identity = trial_of(source, settings)
    if identity is None:
        return None
    storage, key = Storage(settings.storage), layout.label_set(identity)
    try:
        if not storage.exists(key):
            return None
        file = local_zip(identity, settings.home)
        if not file.is_file():
            with whole(file) as partial:
                storage.download(key, partial)
    except OSError as error:
        raise MCCError(f"{source}: {reason(error)}; mcc storage check says more") from None
    return read_label_set(file)


def labels_dataset(labels: LabelSet) -> DataConfig | None:
    """The dataset that a label set says it is of; None where it says nothing."""
    fields = labels.origin.get(DATASET)
    return None if fields is None else validate(DataConfig, fields, f"{labels.path}: origin.{DATASET}")


def dataset_of(before: DataConfig | None, data: str | None, changes: Mapping[str, Any]) -> DataConfig:
    """The dataset of `--data`, else the one before, with `data.*` fields changed. Raises UsageError."""
    if before is None and data is None:
        raise UsageError("--data: is missing: the seeds do not say where their images are; a preset or a folder")
    fields = {key: value for key, value in changes.items() if key.startswith(_DATA)}
    section = {} if before is None else before.model_dump(mode="json")
    merged = merge({"data": data_fields(section, data)}, fields, "--set")["data"]
    return validate(DataConfig, merged, "--set data")


def split_names(text: str) -> list[Split]:
    """`train`, `val` or both. Raises UsageError."""
    known: tuple[Split, ...] = ("train", "val")
    names = [name.strip() for name in text.split(",")]
    if wrong := [name for name in names if name not in known]:
        raise UsageError(f"--split {wrong[0]}: not one of {', '.join(known)}")
    return [name for name in known if name in names]
