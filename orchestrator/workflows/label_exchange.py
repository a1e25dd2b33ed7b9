"""Label sets to annotation tools and back, by the names that users give."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from mcc_core.data.index import build_index
from mcc_core.data.label_maps import LabelSet, Supervision
from mcc_core.errors import DataError, UsageError
from mcc_core.exporting.label_formats.exchange import Corrected, Written, corrected_labels, write_labels
from mcc_core.exporting.label_formats.formats import label_format
from orchestrator.settings import Settings
from orchestrator.workflows.refinement import dataset_of, find_labels, labels_dataset, make, prepared


@dataclass(frozen=True)
class Exported:
    """What was written, and of which label set."""

    labels: LabelSet
    written: Written
    title: str  # of the format
    broken: tuple[str, ...] = ()  # images that a network could not be asked of


def export_labels(
    source: str,
    format: str,
    out: Path,
    settings: Settings,
    *,
    split: str = "train",
    kind: str = "none",
    changes: Mapping[str, Any] = {},
    data: str | None = None,
) -> Exported:
    """Write the label maps of a label set, or of a network, for a tool.

    Of a network a label set is made first, in a folder called as `out` with `-labels` behind it.

    Raises UsageError, one line per mistake; DataError for broken data.
    """
    form = label_format(format)
    if split not in ("train", "val"):
        raise UsageError(f"--split {split}: not one of train, val")
    chosen = cast("Literal['train', 'val']", split)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"--out {out}: is there already; give a folder that is not, or is empty")
    labels = find_labels(source, settings)
    broken: tuple[str, ...] = ()
    if labels is None:
        place = out if out.name else out.resolve()
        beside = place.with_name(f"{place.name}-labels")
        if beside.exists() and (not beside.is_dir() or any(beside.iterdir())):
            raise UsageError(
                f"--out {out}: {beside}, where the label maps go, is there already, perhaps of an export that was cut "
                f"off: mcc export labels {beside} --format {format} --out {out} writes what it has; or remove it"
            )
        asked = prepared(source, kind, changes, settings, data=data)
        made = make(asked, beside, splits=[chosen])
        labels, broken, index = made.labels, made.broken, asked.index
    else:
        if wrong := [key for key in changes if not key.startswith("data.")] or (["kind"] if kind != "none" else []):
            raise UsageError(f"{wrong[0]}: is of a network's label maps; {source} is a label set, whose maps are made")
        index = build_index(dataset_of(labels_dataset(labels), data, changes), settings.home)
        if index.classes != labels.classes:
            raise DataError(
                f"{labels.path}: classes: {', '.join(labels.classes)}; the data has {', '.join(index.classes)}"
            )
    items = index.train if chosen == "train" else index.val
    return Exported(labels, write_labels(labels, items, form, out, split=split), form.title, broken)


def import_labels(
    source: Path,
    format: str,
    out: Path,
    settings: Settings,
    *,
    of: str | None = None,
    data: str | None = None,
    changes: Mapping[str, Any] = {},
    supervision: str | None = None,
    skip_broken: bool = False,
) -> Corrected:
    """Make a label set of what a tool wrote.

    Raises UsageError, one line per mistake; DataError with a line for each broken image.
    """
    form = label_format(format)
    if supervision not in (None, "weak", "full"):
        raise UsageError(f"--supervision {supervision}: expected weak or full")
    if of is None and data is None:
        raise UsageError("--of: is missing: the label set that was corrected, or --data: whose images these are")
    if wrong := [key for key in changes if not key.startswith("data.")]:
        raise UsageError(f"--set {wrong[0]}: data.* alone can be set here")
    base = None if of is None else find_labels(of, settings)
    if of is not None and base is None:
        raise UsageError(f"--of {of}: no label set: expected its folder, its zip, labels/IDENTITY or SWEEP/TRIAL")
    before = None if base is None else labels_dataset(base)
    dataset = dataset_of(before, data, changes) if data is not None or before is not None else None
    if changes and dataset is None:
        raise UsageError(f"--set {next(iter(changes))}: changes the data of --data, which is missing")
    index = None if dataset is None else build_index(dataset, settings.home)
    classes = base.classes if base is not None else index.classes if index is not None else ()
    if index is not None and index.classes != classes:
        raise DataError(
            f"--data {data or ''}: classes: {', '.join(index.classes)}; the label set has {', '.join(classes)}"
        )
    default: Supervision = "full" if base is None else base.supervision
    return corrected_labels(
        source,
        form,
        out,
        classes=classes,
        base=base,
        items=None if index is None else (*index.train, *index.val),
        supervision=cast("Supervision", supervision) if supervision else default,
        dataset=None if dataset is None else dataset.model_dump(mode="json"),
        skip_broken=skip_broken,
    )
