"""Label sets out to annotation tools, and what people corrected there back into a label set."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mcc_core.data.index import Item
from mcc_core.data.label_maps import LabelSet, LabelSetWriter, Supervision
from mcc_core.data.pixels import stored_size
from mcc_core.errors import DataError, UsageError
from mcc_core.exporting.label_formats.base import LabelFormat, Picture, Pictures, Reading
from mcc_core.files import partial_folder

_SHOWN = 20  # problems


@dataclass(frozen=True)
class Written:
    """What was written for a tool."""

    images: int
    notes: tuple[str, ...]
    without: tuple[str, ...]  # names of images that have no label map


@dataclass(frozen=True)
class Corrected:
    """A label set with what people corrected."""

    labels: LabelSet
    changed: dict[str, int]  # image to pixels that are another than in the set it was made of
    same: int  # images that were read and are as they were
    kept: int  # images of the set that were not among those read
    new: int  # images that the set has no map of, or all where there is no such set
    problems: tuple[str, ...]
    notes: tuple[str, ...]


def write_labels(
    labels: LabelSet,
    items: Sequence[Item],
    form: LabelFormat,
    out: Path,
    *,
    split: str = "train",
    on_image: Callable[[int, int], None] = lambda done, total: None,
) -> Written:
    """Write the label maps of images in a tool's format, into a folder that is not there yet or empty: whole, or not.

    Raises UsageError for such a folder, or where a library is missing; DataError where no image has a map, or a class
    is called as tools call pixels of no class.
    """
    mapped = set(labels.names)
    chosen = [item for item in items if item.name in mapped]
    if not chosen:
        raise DataError(f"{labels.path}: no map of an image of {split}; it has {labels.names[0]}")
    partial = partial_folder(out, f"--out {out}")  # relative paths from within are those of its place
    try:
        notes = form.write(partial, _written(labels, chosen, on_image), labels.classes, split)
        partial.rename(out.resolve())  # over an empty folder too
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    said = tuple(note.replace(str(partial), str(out)) for note in notes)
    return Written(len(chosen), said, tuple(item.name for item in items if item.name not in mapped))


def corrected_labels(
    source: Path,
    form: LabelFormat,
    out: Path,
    *,
    classes: Sequence[str],
    base: LabelSet | None = None,
    items: Sequence[Item] | None = None,
    supervision: Supervision = "weak",
    dataset: Mapping[str, Any] | None = None,
    skip_broken: bool = False,
    on_image: Callable[[int], None] = lambda done: None,
) -> Corrected:
    """Make a label set of files in a tool's format; it is there whole, or not at all.

    Args:
        source: folder or file.
        base: the set that was corrected: images that are not in the source keep its maps, and pixels that are as they
            were keep its confidence; what was changed has confidence 1.
        items: the images; default: those of `base`.
        dataset: the data section of these images, for the record.
        skip_broken: leave out what cannot be read, and go on; its images keep the maps of `base`.

    Raises DataError with a line for each mistake: an unknown class, an image that is not there, another size, an empty
    or damaged file.
    """
    if base is None and items is None:
        raise UsageError("--of: is missing: the label set that was corrected, or --data: whose images these are")
    if base is not None and (base.supervision, supervision) == ("full", "weak"):
        raise UsageError(
            f"--supervision weak: {base.path} was made of masks that people drew, and so are maps that it leaves"
        )
    if not source.exists():
        raise DataError(f"{source}: no such file or folder")
    reading, changed, counts = Reading(), dict[str, int](), {"same": 0, "new": 0}
    before = set(base.names) if base is not None else set()
    origin: dict[str, Any] = {"corrected": form.name, "of": base.identity if base is not None else None}
    origin |= {} if dataset is None else {"dataset": dict(dataset)}
    done: set[str] = set()
    with LabelSetWriter(out, classes, supervision=supervision, origin=origin) as writer:
        for picture, label in form.read(source, Pictures(_pictures(base, items)), classes, reading):
            name = picture.name
            sure = base.confidence(name) if base is not None and name in before else None
            if base is None or name not in before:
                counts["new"] += 1
            else:
                other = label != base.label(name)
                counts["same"] += not other.any()
                if other.any():
                    changed[name] = int(other.sum())
                    sure = None if sure is None else np.where(other, (label != 255).astype(np.float32), sure)
            writer.add(name, label, sure)
            done.add(name)
            on_image(len(done))
        if reading.problems and not skip_broken:
            more = [f"and {len(reading.problems) - _SHOWN} more"] if len(reading.problems) > _SHOWN else []
            lines = [*reading.problems[:_SHOWN], *more]
            raise DataError("\n".join(lines) + "; --skip-broken leaves such images as they were")
        if not done:
            raise DataError("\n".join([*reading.problems[:_SHOWN], f"{source}: no label map could be read"]))
        kept = [name for name in base.names if name not in done] if base is not None else []
        for name in kept:
            assert base is not None
            writer.add(name, base.label(name), base.confidence(name))
        writer.origin["images"], writer.origin["pixels"] = len(changed), sum(changed.values())
        made = writer.close()
    return Corrected(
        made, changed, counts["same"], len(kept), counts["new"], tuple(reading.problems), tuple(reading.notes)
    )


def _written(
    labels: LabelSet, items: Sequence[Item], on_image: Callable[[int, int], None]
) -> Iterator[tuple[Picture, np.ndarray]]:
    files = relative_files(items)
    for done, item in enumerate(items, 1):
        label = labels.label(item.name)
        height, width = label.shape
        yield Picture(item.name, files[item.name], height, width, item.image), label
        on_image(done, len(items))


def _pictures(base: LabelSet | None, items: Sequence[Item] | None) -> Iterator[Picture]:
    """The images that may be labelled. Sizes are those of the images, else of the maps that there were."""
    if items is None:
        assert base is not None
        for name in base.names:
            height, width = base.label(name).shape
            yield Picture(name, f"{name}.png", height, width)
        return
    files = relative_files(items)
    for item in items:
        width, height = stored_size(item.image)
        yield Picture(item.name, files[item.name], height, width, item.image)


def relative_files(items: Iterable[Item]) -> dict[str, str]:
    """Name to path, with `/`, of images below the folder that all of them lie in."""
    paths = {item.name: item.image.absolute() for item in items}
    top = os.path.commonpath([path.parent for path in paths.values()])
    return {name: path.relative_to(top).as_posix() for name, path in paths.items()}
