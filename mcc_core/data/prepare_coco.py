"""MS COCO 2014: masks rasterised from the instances, image-level labels from the same annotations.

- `train` and `val`: the images with at least one object, as in the paper: 82,081 of 82,783 and 40,137 of 40,504.
- Category ids 1 to 90 become the 80 classes in the order of their ids.
- Where objects overlap the smaller one is on top, as what is in front of something is mostly smaller. Crowds belong to
  their class. Both are decided here: the paper does not say.
- An image is called as its file is; where two files share a name but for folder, split or suffix, these belong to it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from mcc_core.data.archives import is_archive, opened
from mcc_core.data.coco_instances import Annotation, Instances, Picture, read_instances
from mcc_core.data.coco_outlines import EXPECTED, OutlineError, label_map, read_outline
from mcc_core.data.pixels import IMAGE_SUFFIXES
from mcc_core.data.prepare import Draft, Entry, Progress, make_folder, refuse
from mcc_core.data.prepare_voc import write_mask
from mcc_core.errors import DataError, UsageError
from mcc_core.files import file_digest, json_digest
from mcc_core.parallel import each

OFFICIAL = {"train": 82_081, "val": 40_137}
YEAR = 2014
_DRAWING = 1  # a change to how masks are drawn of the same annotations changes this


def draft_coco(
    sources: Sequence[Path], out: Path, progress: Progress = lambda *_: None, *, skip_broken: bool = False
) -> Draft:
    """Describe COCO 2014 from archives and folders in any order.

    Raises DataError naming what is missing, and what is broken before any mask is drawn unless it is to be left out;
    UsageError where pycocotools is not installed.
    """
    try:
        import pycocotools.mask  # noqa: F401
    except ImportError:
        raise UsageError("COCO's masks need pycocotools, which is not installed: pip install 'mcc[coco]'") from None
    make_folder(out)
    within = [file for source in sources if source.is_dir() for file in sorted(source.iterdir()) if is_archive(file)]
    folders = opened([*within, *sources], out / "unpacked", progress)
    splits = {}
    for number, split in enumerate(OFFICIAL):
        progress("reading annotations", number, len(OFFICIAL))
        splits[split] = read_instances(_annotations(folders, split))
    train, val = splits.values()
    if train.classes != val.classes:
        raise DataError(f"{val.file}: categories: other names, or in another order, than in {train.file}")
    draft = Draft("coco", train.classes, {}, {})
    files: dict[str, dict[int, Path]] = {}
    for split, instances in splits.items():
        draft.problems += instances.problems
        draft.notes += instances.notes
        files[split] = _located(draft, split, instances, folders)
    if not skip_broken:
        refuse(draft.problems)
    shared = Counter(path.stem for by_id in files.values() for path in by_id.values())
    for split, instances in splits.items():
        _add(draft, split, instances, files[split], shared, out / "masks" / split, progress)
    return draft


@dataclass(frozen=True)
class _Drawing:
    """What is needed to draw the mask of an image, and where."""

    annotated: Path  # the instances file
    name: str
    image: Picture
    objects: Sequence[Annotation]
    numbers: Mapping[int, int]
    folder: Path


@dataclass(frozen=True)
class _Drawn:
    """A mask, or what is wrong with its annotations."""

    mask: Path | None = None
    problems: tuple[str, ...] = ()
    slivers: int = 0


def _draw(work: _Drawing) -> _Drawn:
    """Write a mask unless it is there. Its name has a digest of everything that decides it."""
    height, width = work.image.height, work.image.width
    outlines, problems = [], []
    for instance in sorted(work.objects, key=lambda instance: (-instance.area, instance.id)):
        try:
            outlines.append(
                (work.numbers[instance.category_id] + 1, read_outline(instance.segmentation, height, width))
            )
        except OutlineError as error:
            problems.append(f"{work.annotated}: annotation {instance.id}: segmentation: {error}; expected {EXPECTED}")
    if problems:
        return _Drawn(problems=tuple(problems))
    decisive = [_DRAWING, height, width, [(label, outline.polygons, outline.counts) for label, outline in outlines]]
    digest = json_digest(decisive, 16)
    mask = work.folder / f"{work.name}-{digest}.png"
    if not mask.is_file():
        write_mask(label_map(outlines, height, width), mask)
    return _Drawn(mask, slivers=sum(outline.slivers for _, outline in outlines))


def _add(
    draft: Draft,
    split: str,
    instances: Instances,
    files: Mapping[int, Path],
    shared: Mapping[str, int],
    masks: Path,
    progress: Progress,
) -> None:
    """Draw the masks of a split and enter its images."""
    drawings: dict[str, _Drawing] = {}
    for image in instances.images:
        if (file := files.get(image.id)) is None:
            continue
        name = file.stem if shared[file.stem] == 1 else f"{split}-{_plain(image.file_name)}"
        if taken := drawings.get(name):
            other = files[taken.image.id]
            draft.problems.append(f"{file}: and {other}: both would be called {name}; give one another name")
        else:
            objects = instances.objects[image.id]
            drawings[name] = _Drawing(instances.file, name, image, objects, instances.numbers, masks)
    names, slivers = [], 0
    drawn = each(_draw, list(drawings.values()))
    for done, (work, result) in enumerate(zip(drawings.values(), drawn, strict=True), start=1):
        progress(f"masks of {split}", done, len(drawings))
        draft.problems += result.problems
        slivers += result.slivers
        if result.mask is not None:
            labels = tuple(sorted({instances.numbers[instance.category_id] for instance in work.objects}))
            draft.entries[work.name] = Entry(work.name, files[work.image.id], labels, result.mask)
            names.append(work.name)
    draft.splits[split] = names
    if slivers:
        draft.notes.append(f"{split}: {slivers} parts of outlines have fewer than three points and are not drawn")
    if len(names) != OFFICIAL[split]:
        draft.notes.append(f"{split}: {len(names)} images; the official data has {OFFICIAL[split]}")


def _located(draft: Draft, split: str, instances: Instances, folders: Sequence[Path]) -> dict[int, Path]:
    """Files by image id of the images with an object. What is missing, double or not listed is said in the draft."""
    folder = _folder(draft, folders, f"{split}{YEAR}")
    places: dict[int, Path] = {}
    owner: dict[Path, int] = {}
    without = []
    for image in instances.images:
        file = _file(folder, image.file_name)
        if not instances.objects.get(image.id):
            without.append(image.file_name)
        elif not file.is_file():
            draft.problems.append(f"{file}: no such file: image {image.id} of {instances.file}")
        elif file in owner:
            draft.problems.append(f"{instances.file}: images {owner[file]} and {image.id} are both {file}")
        else:
            places[image.id] = file
        owner.setdefault(file, image.id)
    if without:
        draft.notes.append(f"{split}: left out {len(without)} images without an object, such as {without[0]}")
    if len(without) == len(instances.images) and not instances.problems:
        raise DataError(f"{instances.file}: no image has an object with an outline: nothing to learn")
    images = (file for file in folder.rglob("*") if file.suffix.lower() in IMAGE_SUFFIXES and file.name[0] != ".")
    if unlisted := sorted(file for file in images if file not in owner):
        draft.notes.append(
            f"{split}: left out {len(unlisted)} files that {instances.file} lacks, such as {unlisted[0]}"
        )
    return places


def _plain(file_name: str) -> str:
    """A file's path as a name: folders and the suffix in it."""
    return file_name.replace("\\", "/").strip("/").replace("/", "-").replace(".", "-")


def _file(folder: Path, file_name: str) -> Path:
    """The file of an image: its path below the folder of its split or beside it, or else its name there."""
    path = PurePosixPath(file_name.replace("\\", "/"))
    if not path.is_absolute() and ".." not in path.parts:
        for file in (folder / path, folder.parent / path):
            if file.is_file():
                return file
    return folder / path.name


def _annotations(folders: Sequence[Path], split: str) -> Path:
    """The instances file of a split."""
    name = f"instances_{split}{YEAR}.json"
    places = [
        file for folder in folders for p in ("", "annotations/", "*/annotations/") for file in folder.glob(p + name)
    ]
    if not places:
        others = sorted({file.name for folder in folders for file in folder.glob("**/instances_*.json")})
        there = f" (there: {', '.join(others[:3])})" if others else ""
        where = ", ".join(map(str, folders))
        raise DataError(f"{name}: not found in {where}{there}: give annotations_trainval{YEAR}.zip or its folder")
    if other := next((file for file in places[1:] if file_digest(file) != file_digest(places[0])), None):
        raise DataError(f"{places[0]}: and {other}: two {name} that differ; give one of them")
    return places[0]


def _folder(draft: Draft, folders: Sequence[Path], name: str) -> Path:
    """The folder of a split's images."""
    places = [p for f in folders for p in (f, f / name, f / "images" / name) if p.name == name and p.is_dir()]
    if not places:
        raise DataError(f"{name}: no such folder in {', '.join(map(str, folders))}: give {name}.zip or its folder")
    inside = [p / name if (p / name).is_dir() else p for p in places]
    different = list(dict.fromkeys(p.resolve() for p in inside))
    if len(different) > 1:
        draft.notes.append(f"{name}: images are those of {inside[0]}, not of {different[1]}")
    return inside[0]
