"""Files of this machine that a sweep on a distant cluster reads: sent to a storage that its nodes share, or refused.

A file lies there under its SHA-256, so that one name always means the same content. What is absolute and not here is
the cluster's own; a folder of data is read where the cluster has it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mcc_core.errors import MCCError, UsageError
from mcc_core.experiment_files import preset_names
from mcc_core.files import file_digest
from mcc_core.refinement.base import LEARNED
from mcc_core.structured_files import read_yaml
from orchestrator.records import layout
from orchestrator.spec.stages_file import LABELS, REFINE
from orchestrator.storage.store import Storage
from orchestrator.text import reason

# Fields that may name a file, of an experiment and of a refinement; label sets travel on their own.
FILES = (
    *("model.weights", "data.classes", "clip.weights", "clip.prompts"),
    *(f"{REFINE}.{kind}.network" for kind in LEARNED),
)
_SENT = (*FILES, LABELS)


def with_sent_files(sweep: Path, changes: Sequence[str], storage: Storage, base: str | None = None) -> list[str]:
    """The KEY=VALUE of `--set` with paths in a shared storage in place of files of this machine, which are sent there.

    Those that the sweep file, a stage or a base of theirs names become further changes.

    Args:
        base: what the sweep is on in place of its own base.

    Raises UsageError for a file that the cluster could not read: where the storage is a bucket, one by a relative path;
    one of a point, of its base or of a list of values, unless it lies in the shared storage. MCCError where storage
    does not take it.
    """
    given = dict(change.split("=", 1) for change in changes if "=" in change)
    fields = on_base(read_yaml(sweep), base)
    for where, value in _varied(fields):
        if (file := _file(value, folders=True)) is not None and not _shared(file, storage):
            raise UsageError(
                f"{sweep}: {where}: {value}: a file of this machine, which a cluster may lack; only those of `set`, "
                "--set and a base of the whole sweep or stage are sent to it: name it by its whole path in the shared "
                "storage"
            )
    own = {key: value for key, value in named(fields, FILES) if key not in given and _field(key) not in given}
    sent: dict[str, str] = {}
    for key, value in (own | given).items():
        if (file := _file(value)) is not None and _field(key):
            new = _sent(file.expanduser(), storage, key)
            if new != value:
                sent[key] = new
    kept = [change for change in changes if change.split("=", 1)[0] not in sent]
    return [*kept, *(f"{key}={value}" for key, value in sent.items())]


def on_base(fields: Mapping[str, Any], base: str | None) -> Mapping[str, Any]:
    """The fields of a sweep file not checked yet on a base, with what its `bases` say differs there."""
    chosen, variants = base or fields.get("base"), fields.get("bases")
    variant = variants.get(chosen) if isinstance(variants, Mapping) else None
    changed = {key: value for key, value in (variant or {}).items() if value is not None}
    return {**fields, **changed, **({"base": chosen} if chosen is not None else {})}


def _shared(file: Path, storage: Storage) -> bool:
    """Whether the cluster can be expected to read a path: into the shared storage, or beside a bucket its own."""
    root = storage.local("")
    if root is None:
        return file.is_absolute()
    return file.is_absolute() and file.resolve().is_relative_to(root.resolve())


def _field(key: str) -> str:
    """The field among `FILES` that a key of `--set` is of, with or without its stage; empty where it is of none."""
    return next((field for field in FILES if key == field or key.endswith(f".{field}")), "")


def _file(value: object, *, folders: bool = False) -> Path | None:
    """The file here that a value names; a bare word is the name of a download or of shipped prompts.

    Args:
        folders: whether a folder counts, as of a label set.
    """
    if not isinstance(value, str | Path):
        return None
    path = Path(value)
    plain = not path.suffix and path.parent == Path(".")
    there = path.expanduser().exists() if folders else path.expanduser().is_file()
    return path if not plain and there else None


def _sent(file: Path, storage: Storage, key: str) -> str:
    """The path by which the cluster reads a file. A bucket has none: there an absolute path is the cluster's own."""
    if storage.local("") is None:
        if file.is_absolute():
            return str(file)
        raise UsageError(
            f"{key}: {file}: a file of this machine, which a cluster cannot read from a bucket: put it onto its nodes "
            "and name it by its whole path there, or set MCC_STORAGE to a folder that they share, where it is sent to"
        )
    try:
        place = layout.sent_file(file_digest(file), file.name)
        target = storage.local(place)
        assert target is not None
        if not target.is_file() or file_digest(target) != file_digest(file):
            storage.upload(file, place)
    except OSError as error:
        raise MCCError(f"{key}: {file}: {reason(error)}; mcc storage check says more") from None
    return str(target.resolve())


def named(fields: Mapping[str, Any], known: Collection[str]) -> Iterator[tuple[str, Any]]:
    """(key of `--set`, value) of the `known` fields that a sweep file not checked yet gives to all of it or of a stage,
    bases before what is set over them. Later ones count.
    """
    for stage, part in _parts(fields):
        yield from ((f"{stage}{key}", value) for key, value in _of_base(part.get("base"), known))
        if isinstance(refine := part.get("refine"), Mapping):
            yield from ((f"{stage}{key}", value) for key, value in _in({"refine": refine}, known))
        if isinstance(fixed := part.get("set"), Mapping):
            yield from ((f"{stage}{key}", value) for key, value in fixed.items() if key in known)


def _of_base(base: object, known: Collection[str]) -> Iterator[tuple[str, Any]]:
    """(field, value) of the `known` fields that an experiment file gives, where a base is one."""
    if isinstance(base, str) and base not in preset_names() and Path(base).is_file():
        yield from _in(read_yaml(Path(base)), known)


def _in(content: Mapping[str, Any], known: Collection[str]) -> Iterator[tuple[str, Any]]:
    for field in known:
        node: Any = content
        for part in field.split("."):
            node = node.get(part) if isinstance(node, Mapping) else None
        if node is not None:
            yield field, node


def _varied(fields: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """(place, value) of the files that points, their bases and lists of values name."""
    for stage, part in _parts(fields):
        where = f"stages.{stage}" if stage else ""  # which ends with a dot
        parameters, points = part.get("parameters"), part.get("points")
        for key, values in parameters.items() if isinstance(parameters, Mapping) else ():
            if key in _SENT and isinstance(values, list):
                yield from ((f"{where}parameters.{key}", value) for value in values)
        for number, point in enumerate(points if isinstance(points, list) else ()):
            fixed = point.get("set") if isinstance(point, Mapping) else None
            for key, value in fixed.items() if isinstance(fixed, Mapping) else ():
                if key in _SENT:
                    yield f"{where}points[{number}].set.{key}", value
            for key, value in _of_base(point.get("base"), _SENT) if isinstance(point, Mapping) else ():
                yield f"{where}points[{number}].base: {key}", value


def _parts(fields: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """(`STAGE.`, or nothing of the sweep itself; what stands there)."""
    yield "", fields
    stages = fields.get("stages")
    for name, stage in stages.items() if isinstance(stages, Mapping) else ():
        if isinstance(stage, Mapping):
            yield f"{name}.", stage
