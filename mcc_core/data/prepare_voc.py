"""PASCAL VOC 2012 with the SBD-augmented training list: 10,582 / 1,449 / 1,456 images.

- `train`, `val`, `test`: the official lists of ImageSets/Segmentation (test only where its archive was given).
- `train_aug`: everything that SBD or VOC has segmented, less VOC's val.
- Image-level labels: the objects of the XML annotation, difficult ones included: they are visible, and the published
  lists have them.
- Masks are for evaluation alone: VOC's where it has one, else SBD's (`GTcls.Segmentation` of the .mat file, written as
  PNG), or those of an unpacked SegmentationClassAug folder.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from mcc_core.data.archives import is_archive, unpack
from mcc_core.data.prepare import Draft, Entry, Progress
from mcc_core.data.voc import VOC_CLASSES, palette_png, read_labels, read_split
from mcc_core.errors import DataError
from mcc_core.files import whole
from mcc_core.parallel import each

OFFICIAL = {"train_aug": 10_582, "train": 1_464, "val": 1_449, "test": 1_456}


def draft_voc(sources: Sequence[Path], out: Path, progress: Progress = lambda *_: None) -> Draft:
    """Describe VOC 2012 from archives and folders in any order. Raises DataError naming what is missing."""
    folders = []
    for number, source in enumerate(sources):
        progress("unpacking", number, len(sources))
        if not source.exists():
            raise DataError(f"{source}: no such file or folder")
        if source.is_file() and not is_archive(source):
            raise DataError(f"{source}: neither a folder nor an archive (.tar, .tgz, .tar.gz, .zip)")
        folders.append(unpack(source, out / "unpacked") if is_archive(source) else source)
    devkits = _holding(folders, "JPEGImages")
    if not devkits:
        raise DataError(f"{sources[0]}: no JPEGImages in it: give VOCtrainval_11-May-2012.tar or its VOCdevkit/VOC2012")
    root = next((kit for kit in devkits if (kit / "ImageSets" / "Segmentation" / "train.txt").is_file()), devkits[0])
    tests = [kit for kit in devkits if kit != root]
    splits = {name: read_split(root, name) for name in ("train", "val")}
    masks = {
        p.stem: p
        for folder in _holding(folders, "SegmentationClassAug")
        for p in _pngs(folder / "SegmentationClassAug")
    }
    masks |= _sbd_masks(folders, out / "masks", progress)
    masks |= {p.stem: p for p in _pngs(root / "SegmentationClass")}
    held = set(splits["val"])
    splits["train_aug"] = sorted(name for name in masks if name not in held)
    for folder in (root, *tests):
        if (folder / "ImageSets" / "Segmentation" / "test.txt").is_file():
            splits["test"] = read_split(folder, "test")
            masks = {name: path for name, path in masks.items() if name not in set(splits["test"])}
    draft = Draft("voc", VOC_CLASSES, splits, {})
    tried: set[str] = set()
    for split, names in splits.items():
        expected = OFFICIAL[split]
        if len(names) != expected:
            draft.notes.append(f"{split}: {len(names)} images; the official data has {expected}")
        for name in names:
            if name not in tried:
                tried.add(name)
                _add(draft, name, [root, *tests], masks.get(name), labelled=split != "test")
    # The counts above are of the lists; what could not be read of them is among the problems.
    draft.splits = {split: [name for name in names if name in draft.entries] for split, names in splits.items()}
    if len(splits["train_aug"]) == len(splits["train"]):
        draft.notes.append("train_aug is train alone: give SBD's benchmark.tgz or SegmentationClassAug as well")
    return draft


def _add(draft: Draft, name: str, roots: Sequence[Path], mask: Path | None, *, labelled: bool) -> None:
    image = next((f for root in roots if (f := root / "JPEGImages" / f"{name}.jpg").is_file()), None)
    if image is None:
        draft.problems.append(f"{roots[0] / 'JPEGImages' / name}.jpg: no such file")
        return
    try:
        labels = read_labels(image.parents[1], name, draft.classes) if labelled else ()
    except DataError as error:
        draft.problems.append(str(error))
        return
    draft.entries[name] = Entry(name, image, labels, mask)


def _sbd_masks(folders: Sequence[Path], out: Path, progress: Progress) -> dict[str, Path]:
    """SBD's masks as PNGs; those that are there already and no older than their source are kept."""
    files = sorted(file for folder in _holding(folders, "cls") for file in (folder / "cls").glob("*.mat"))
    found = {}
    for done, mask in enumerate(each(partial(_convert, out=out), files), start=1):
        found[mask.stem] = mask
        progress("converting SBD masks", done, len(files))
    return found


def _convert(source: Path, out: Path) -> Path:
    from scipy.io import loadmat

    target = out / f"{source.stem}.png"
    if is_current(target, source):
        return target
    try:
        label = np.asarray(loadmat(str(source))["GTcls"]["Segmentation"][0][0], np.uint8)
    except (OSError, ValueError, KeyError, IndexError, TypeError, NotImplementedError) as error:
        raise DataError(f"{source}: cannot be read as an SBD mask: {error}") from None
    write_mask(label, target)
    return target


def is_current(made: Path, source: Path) -> bool:
    """Whether a file made of a source is there and no older than it, as in make."""
    return made.is_file() and made.stat().st_mtime_ns >= source.stat().st_mtime_ns


def write_mask(label: np.ndarray, target: Path) -> None:
    """A label map H,W uint8 as a palette PNG, whole or not at all."""
    with whole(target) as partial:
        partial.write_bytes(palette_png(label))


def _holding(folders: Sequence[Path], name: str) -> list[Path]:
    """Folders, at most four levels below those given, that have a folder of this name."""
    found = []
    for folder in folders:
        for pattern in ("", "*/", "*/*/", "*/*/*/"):
            inside = sorted(p.parent for p in folder.glob(f"{pattern}{name}") if p.is_dir())
            if inside:
                found += inside
                break
    return found


def _pngs(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.png"))
