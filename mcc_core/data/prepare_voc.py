"""PASCAL VOC 2012 with the SBD-augmented training list: 10,582 / 1,449 / 1,456 images.

- `train`, `val`, `test`: the official lists of ImageSets/Segmentation (test only where its archive was given).
- `train_aug`: everything that SBD or VOC has segmented, less VOC's val.
- Image-level labels: the objects of the XML annotation, difficult ones included: they are visible, and the published
  lists have them.
- Masks are for evaluation alone: VOC's where it has one, else SBD's (`GTcls.Segmentation` of the .mat file, written as
  PNG), or those of an unpacked SegmentationClassAug folder.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from mcc_core.data.archives import opened
from mcc_core.data.prepare import Draft, Entry, Progress, make_folder
from mcc_core.data.voc import VOC_CLASSES, palette_png, read_labels, read_split
from mcc_core.errors import DataError
from mcc_core.files import whole
from mcc_core.parallel import each

OFFICIAL = {"train_aug": 10_582, "train": 1_464, "val": 1_449, "test": 1_456}


def draft_voc(sources: Sequence[Path], out: Path, progress: Progress = lambda *_: None) -> Draft:
    """Describe VOC 2012 from archives and folders in any order. Raises DataError naming what is missing."""
    make_folder(out)
    folders = opened(sources, out / "unpacked", progress)
    devkits = _holding(folders, "JPEGImages")
    if not devkits:
        raise DataError(f"{sources[0]}: no JPEGImages in it: give VOCtrainval_11-May-2012.tar or its VOCdevkit/VOC2012")
    trained = [kit for kit in devkits if (kit / "ImageSets" / "Segmentation" / "train.txt").is_file()]
    if len(trained) > 1:
        raise DataError(f"{trained[0]}: and {trained[1]}: two training sets; give the folder of one, such as VOC2012")
    root = trained[0] if trained else devkits[0]
    tests = [kit for kit in devkits if kit != root]
    splits = {name: read_split(root, name) for name in ("train", "val")}
    masks = {
        p.stem: p
        for folder in _holding(folders, "SegmentationClassAug")
        for p in _pngs(folder / "SegmentationClassAug")
    }
    made, problems = _sbd_masks(folders, out / "masks", progress)
    masks |= made
    masks |= {p.stem: p for p in _pngs(root / "SegmentationClass")}
    held = set(splits["val"])
    splits["train_aug"] = sorted(name for name in masks if name not in held)
    for folder in (root, *tests):
        if (folder / "ImageSets" / "Segmentation" / "test.txt").is_file():
            splits["test"] = read_split(folder, "test")
            masks = {name: path for name, path in masks.items() if name not in set(splits["test"])}
    draft = Draft("voc", VOC_CLASSES, splits, {}, problems)
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
    inside = {file.stem for kit in (root, *tests) for file in (kit / "JPEGImages").glob("[!.]*.jpg")}
    if unlisted := sorted(inside.difference(*splits.values())):
        draft.notes.append(f"JPEGImages: left out {len(unlisted)} images of no split, such as {unlisted[0]}")
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


def _sbd_masks(folders: Sequence[Path], out: Path, progress: Progress) -> tuple[dict[str, Path], list[str]]:
    """SBD's masks as PNGs by image, and what is wrong with others; those that are there already are kept."""
    files = sorted(file for folder in _holding(folders, "cls") for file in (folder / "cls").glob("*.mat"))
    files = [file for file in files if not file.name.startswith(".")]
    masks: dict[str, Path] = {}
    problems = []
    for done, (source, mask) in enumerate(zip(files, each(partial(_convert, out=out), files), strict=True), start=1):
        progress("converting SBD masks", done, len(files))
        if isinstance(mask, str):
            problems.append(mask)
        else:
            masks[source.stem] = mask
    return masks, problems


def _convert(source: Path, out: Path) -> Path | str:
    """The PNG of an SBD mask, called after the content of its source; or what is wrong with the source."""
    from scipy.io import loadmat

    try:
        content = source.read_bytes()
        target = out / f"{source.stem}-{hashlib.sha256(content).hexdigest()[:16]}.png"
        if target.is_file():
            return target
        label = np.asarray(loadmat(io.BytesIO(content))["GTcls"]["Segmentation"][0][0])
    except OSError as error:
        return f"{source}: {error.strerror or 'not a MATLAB file'}"
    except Exception:  # a damaged file raises whatever the reader stumbles over
        return f"{source}: not a mask of SBD: expected a MATLAB file with GTcls.Segmentation"
    if label.ndim != 2 or label.dtype.kind not in "iu" or not label.size or label.min() < 0 or label.max() > 255:
        return f"{source}: GTcls.Segmentation: {label.dtype} {label.shape}; expected labels 0 to 255, height x width"
    write_mask(label.astype(np.uint8), target)
    return target


def write_mask(label: np.ndarray, target: Path) -> None:
    """A label map H,W uint8 as a palette PNG, whole or not at all."""
    with whole(target) as partial:
        partial.write_bytes(palette_png(label))


def _holding(folders: Sequence[Path], name: str) -> list[Path]:
    """Folders, at most four levels below those given, that have a folder of this name."""
    holding = []
    for folder in folders:
        for pattern in ("", "*/", "*/*/", "*/*/*/"):
            inside = sorted(p.parent for p in folder.glob(f"{pattern}{name}") if p.is_dir())
            if inside:
                holding += inside
                break
    return holding


def _pngs(folder: Path) -> list[Path]:
    return sorted(file for file in folder.glob("*.png") if not file.name.startswith("."))
