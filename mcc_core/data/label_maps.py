"""Label sets: label maps of a dataset's images in a folder or zip, with what made them.

`labels.json` says classes, supervision, origin and the digest of every file; `maps/<image>.png` is a palette PNG of
class numbers 0..C (0 background, 255 ignored); `confidence/<image>.png`, where there is one, is grey, 255 for 1.0.
"""

from __future__ import annotations

import hashlib
import io
import lzma
import os
import re
import shutil
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import numpy as np
from PIL import Image
from pydantic import Field

from mcc_core.config import Strict
from mcc_core.data.index import Item
from mcc_core.data.pixels import decode_bytes, decode_mask, stored_size
from mcc_core.data.voc import palette_png, valid_classes
from mcc_core.errors import DataError, UsageError
from mcc_core.files import json_digest, partial_folder, whole
from mcc_core.structured_files import parse_json
from mcc_core.validation import validate

Supervision = Literal["weak", "full"]

LABELS = "labels.json"
DATASET = "dataset"  # in the origin of a set: the data section of its images
FORMAT = 1
_MAPS, _CONFIDENCE = "maps", "confidence"
_DIGEST = "^[0-9a-f]{64}$"
_NAME = re.compile(r"(?!/)(?:(?!\.\.?(?:/|$))[^/\\\0]+(?:/(?=.)|$))+")  # cannot leave the folder
_MOST_BYTES = 1 << 28  # of a file in a zip, which may say little of what it grows to
# What reading a file of a zip raises, by how it was packed; OSError of folders too.
_DAMAGED = (
    *(OSError, KeyError, zipfile.BadZipFile, zlib.error, lzma.LZMAError),
    *(EOFError, NotImplementedError, RuntimeError),
)
_SEALED = (1980, 1, 1, 0, 0, 0)  # the time of every file in a zip, so that equal sets are equal files


class MapFile(Strict):
    """Digests (SHA-256) of one image's files."""

    sha256: str = Field(pattern=_DIGEST)
    confidence_sha256: str | None = Field(None, pattern=_DIGEST)


class LabelsFile(Strict):
    """`labels.json`."""

    format: int = FORMAT
    identity: str = Field(pattern="^[0-9a-f]{16}$", description="of what made it; of a set made by hand, its content")
    content: str = Field(pattern="^[0-9a-f]{16}$", description="digest of classes, supervision and maps")
    classes: tuple[str, ...] = Field(min_length=1, max_length=254, description="foreground names")
    supervision: Supervision = Field(description="full: made of masks that people drew")
    origin: dict[str, Any] = Field(default_factory=dict, description="what made it")
    maps: dict[str, MapFile] = Field(min_length=1, description="by the name of the image")


@dataclass(frozen=True)
class LabelSet:
    """A checked label set. It can be pickled, and read in several processes."""

    path: Path  # folder or zip
    file: LabelsFile

    @property
    def identity(self) -> str:
        """16 hexadecimal digits: of the stage that made it, known before it has run, or of the content."""
        return self.file.identity

    @property
    def classes(self) -> tuple[str, ...]:
        """Foreground names."""
        return self.file.classes

    @property
    def supervision(self) -> Supervision:
        """`full` where it was made of a dataset's masks."""
        return self.file.supervision

    @property
    def origin(self) -> Mapping[str, Any]:
        """What made it."""
        return self.file.origin

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the images that have a map."""
        return tuple(self.file.maps)

    @property
    def has_confidence(self) -> bool:
        """Whether any image has a confidence map."""
        return any(entry.confidence_sha256 for entry in self.file.maps.values())

    def label(self, name: str) -> np.ndarray:
        """Class numbers H,W uint8, 255 ignored. Raises DataError naming the file, KeyError for an unknown name."""
        entry = self.file.maps[name]
        member = f"{_MAPS}/{name}.png"
        content = _content(self.path, member, entry.sha256)
        return decode_mask(io.BytesIO(content), self.path / member, len(self.classes))

    def confidence(self, name: str) -> np.ndarray | None:
        """H,W float32 in [0, 1], or None where there is none. Raises as `label` does."""
        digest = self.file.maps[name].confidence_sha256
        if digest is None:
            return None
        member = f"{_CONFIDENCE}/{name}.png"
        content = _content(self.path, member, digest)
        return decode_bytes(io.BytesIO(content), self.path / member).astype(np.float32) / 255

    def check(self, items: Sequence[Item], classes: Sequence[str]) -> tuple[Item, ...]:
        """The items that have a map, whose size is the image's. Raises DataError for other classes or sizes, or none.

        Reads the headers of images and maps, no pixels.
        """
        if tuple(classes) != self.classes:
            raise DataError(f"{self.path / LABELS}: classes: {_difference(self.classes, classes)}")
        labelled = tuple(item for item in items if item.name in self.file.maps)
        if not labelled:
            some = f"it has {self.names[0]}, " if self.names else ""
            raise DataError(f"{self.path}: no map of a training image: {some}the first of the split is {items[0].name}")
        for item in labelled:
            size = stored_size(item.image)
            for kind in (_MAPS, _CONFIDENCE) if self.file.maps[item.name].confidence_sha256 else (_MAPS,):
                member = f"{kind}/{item.name}.png"
                found = _png_size(_member(self.path, member), self.path / member)
                if found != size:
                    raise DataError(
                        f"{self.path / member}: {found[0]}x{found[1]} pixels; its image {item.image} has "
                        f"{size[0]}x{size[1]}"
                    )
        return labelled


class LabelSetWriter:
    """Writes a label set beside its folder and renames it at the end: it is there whole, or not at all.

    Args:
        folder: where it will be; raises UsageError where there is something already, unless `goes_on`.
        identity: 16 hexadecimal digits of what makes it; None: that of its content.
        supervision: `full` where the maps come from masks that people drew of a dataset.
        origin: what makes it; JSON.
        goes_on: write into the folder itself, and leave there what is written when it ends early, for another writer to
            `adopt`. It is a label set once `labels.json`, the last file, is there.
    """

    def __init__(
        self,
        folder: Path,
        classes: Sequence[str],
        *,
        identity: str | None = None,
        supervision: Supervision = "weak",
        origin: Mapping[str, Any] | None = None,
        goes_on: bool = False,
    ) -> None:
        self._goes_on = goes_on
        self.folder, self.classes = folder, valid_classes(classes, str(folder))
        self.identity, self.supervision, self.origin = identity, supervision, dict(origin or {})
        self._maps: dict[str, MapFile] = {}
        self._closed = False
        if not goes_on:
            self._partial = partial_folder(folder, str(folder))
            return
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"{folder}: cannot be made a folder: {error.strerror or error}") from None
        self._partial = folder

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        if not self._closed:
            if kind is None:
                self.close()
            elif not self._goes_on:
                self.discard()

    def adopt(self, maps: Mapping[str, MapFile]) -> set[str]:
        """Take in what an earlier writer left of these images; names of those whose files are whole.

        Every other file of a map is removed: half written, or of an image that is not among them.
        """
        (self._partial / LABELS).unlink(missing_ok=True)
        for name, entry in maps.items():
            try:
                _content(self._partial, f"{_MAPS}/{name}.png", entry.sha256)
                if entry.confidence_sha256:
                    _content(self._partial, f"{_CONFIDENCE}/{name}.png", entry.confidence_sha256)
            except DataError:
                continue
            self._maps[name] = entry
        kept = {f"{_MAPS}/{name}.png" for name in self._maps}
        kept |= {f"{_CONFIDENCE}/{name}.png" for name, entry in self._maps.items() if entry.confidence_sha256}
        for member in _members(self._partial) - kept:
            (self._partial / member).unlink()
        return set(self._maps)

    def add(self, name: str, label: np.ndarray, confidence: np.ndarray | None = None) -> MapFile:
        """Add an image's label map H,W (0..C, 255 ignored) and confidence H,W in [0, 1]; the digests of its files.

        Raises ValueError for what no label map may be.
        """
        if not _NAME.fullmatch(name) or name in self._maps:
            raise ValueError(f"{name!r}: {'added twice' if name in self._maps else 'not the name of an image'}")
        if label.ndim != 2 or not label.size or label.dtype.kind not in "iu":
            raise ValueError(f"{name}: {label.dtype} of shape {label.shape}; expected whole numbers H,W")
        if (wrong := label[(label != 255) & ((label < 0) | (label > len(self.classes)))]).size:
            raise ValueError(f"{name}: label {wrong[0]}; expected 0..{len(self.classes)} or 255")
        digest = self._write(_MAPS, name, palette_png(np.ascontiguousarray(label.astype(np.uint8))))
        sure = None
        if confidence is not None:
            if confidence.shape != label.shape or not ((confidence >= 0) & (confidence <= 1)).all():
                raise ValueError(f"{name}: confidence: expected {label.shape} in [0, 1], found {confidence.shape}")
            sure = self._write(_CONFIDENCE, name, _grey_png(np.round(confidence * 255).astype(np.uint8)))
        self._maps[name] = MapFile(sha256=digest, confidence_sha256=sure)
        return self._maps[name]

    def close(self) -> LabelSet:
        """Write `labels.json`, put the set in its place, and give it back. Raises UsageError when it has no map."""
        if not self._maps:
            self.discard()
            raise UsageError(f"{self.folder}: no label map was made")
        maps = dict(sorted(self._maps.items()))
        content = _content_digest(self.classes, self.supervision, maps)
        file = LabelsFile(
            identity=self.identity or content,
            content=content,
            classes=self.classes,
            supervision=self.supervision,
            origin=self.origin,
            maps=maps,
        )
        with whole(self._partial / LABELS) as partial:
            partial.write_text(file.model_dump_json(indent=1, exclude_none=True), encoding="utf-8")
        if not self._goes_on:
            self._partial.rename(self.folder.resolve())  # over an empty folder too
        self._closed = True
        return LabelSet(self.folder, file)

    def discard(self) -> None:
        """Remove what was written."""
        shutil.rmtree(self._partial, ignore_errors=True)
        self._closed = True

    def _write(self, kind: str, name: str, content: bytes) -> str:
        with whole(self._partial / kind / f"{name}.png") as partial:
            partial.write_bytes(content)
        return hashlib.sha256(content).hexdigest()


def read_label_set(path: Path) -> LabelSet:
    """A label set, folder or zip, whose every file is there and has the content that `labels.json` says.

    Raises DataError, one line naming the file: a missing, further or changed map, no label set at all.
    """
    where = path / LABELS
    if not path.exists():
        raise DataError(f"{path}: no such folder or file; expected a label set (a folder with {LABELS}, or its zip)")
    members = _members(path)
    if LABELS not in members:
        raise DataError(f"{where}: no such file; a label set is a folder with {LABELS} and {_MAPS}/, or its zip")
    try:
        text = _member(path, LABELS).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise DataError(f"{where}: not UTF-8 text") from None
    file = validate(LabelsFile, _mapping(parse_json(text, str(where)), where), str(where))
    if file.format != FORMAT:
        raise DataError(f"{where}: format {file.format}, expected {FORMAT}")
    valid_classes(file.classes, str(where))
    expected: dict[str, str] = {}
    for name, entry in file.maps.items():
        if not _NAME.fullmatch(name):
            raise DataError(f"{where}: maps: {name!r}: not the name of an image")
        expected[f"{_MAPS}/{name}.png"] = entry.sha256
        if entry.confidence_sha256:
            expected[f"{_CONFIDENCE}/{name}.png"] = entry.confidence_sha256
    for member in sorted(expected.keys() - members):
        raise DataError(f"{path / member}: no such file; {LABELS} lists it")
    for member in sorted(m for m in members - expected.keys() if m.startswith((f"{_MAPS}/", f"{_CONFIDENCE}/"))):
        raise DataError(f"{path / member}: {LABELS} does not list it; mcc data labels makes a set of changed maps")
    for member, digest in expected.items():
        _content(path, member, digest)
    if file.content != _content_digest(file.classes, file.supervision, file.maps):
        raise DataError(f"{where}: has been changed by hand; mcc data labels makes a set of changed maps")
    return LabelSet(path, file)


def pack_label_set(labels: LabelSet, target: Path) -> Path:
    """The set as one zip file, the same bytes for the same set."""
    members = [LABELS]
    for name, entry in labels.file.maps.items():
        members += [f"{_MAPS}/{name}.png"] + ([f"{_CONFIDENCE}/{name}.png"] if entry.confidence_sha256 else [])
    with whole(target) as partial, zipfile.ZipFile(partial, "w", zipfile.ZIP_STORED) as archive:
        for member in members:
            archive.writestr(zipfile.ZipInfo(member, _SEALED), _member(labels.path, member))
    return target


def _content_digest(classes: Sequence[str], supervision: str, maps: Mapping[str, MapFile]) -> str:
    digests = {name: [entry.sha256, entry.confidence_sha256] for name, entry in maps.items()}
    return json_digest({"classes": list(classes), "supervision": supervision, "maps": digests}, 16)


def _mapping(content: Any, where: Path) -> dict[str, Any]:
    if not isinstance(content, dict):
        raise DataError(f"{where}: expected a mapping of fields, found {type(content).__name__}")
    return content


def _difference(there: Sequence[str], expected: Sequence[str]) -> str:
    """What is different between two lists of classes."""
    if sorted(there) == sorted(expected):
        return f"the dataset's in another order ({', '.join(there[:5])}; expected {', '.join(expected[:5])})"
    if more := [name for name in there if name not in expected]:
        return f"{more[0]} is no class of the dataset ({', '.join(expected[:5])})"
    return f"{next(name for name in expected if name not in there)}, a class of the dataset, is not among them"


def _members(path: Path) -> set[str]:
    """Names of the files of a folder or zip, relative to it."""
    if path.is_dir():
        roots = [path / _MAPS, path / _CONFIDENCE]
        inside = {file.relative_to(path).as_posix() for root in roots for file in root.rglob("*") if file.is_file()}
        return inside | ({LABELS} if (path / LABELS).is_file() else set())
    return {name for name in _archive(path, os.getpid(), path.stat().st_mtime_ns).namelist() if name[-1] != "/"}


def _content(path: Path, member: str, digest: str) -> bytes:
    """The content of a file. Raises DataError unless it has the digest."""
    content = _member(path, member)
    if hashlib.sha256(content).hexdigest() != digest:
        raise DataError(
            f"{path / member}: has changed since {LABELS} was written; mcc data labels makes a set of changed maps"
        )
    return content


def _member(path: Path, member: str) -> bytes:
    try:
        if path.is_dir():
            return (path / member).read_bytes()
        archive = _archive(path, os.getpid(), path.stat().st_mtime_ns)
        if (size := archive.getinfo(member).file_size) > _MOST_BYTES:
            raise DataError(f"{path / member}: {size:,} bytes; at most {_MOST_BYTES:,} are read")
        return archive.read(member)
    except _DAMAGED as error:
        if isinstance(error, OSError) and error.strerror:
            raise DataError(f"{path / member}: {error.strerror}") from None
        raise DataError(f"{path / member}: cannot be read: the zip is damaged, or of a kind that is not read") from None


@lru_cache(maxsize=8)
def _archive(path: Path, _process: int, _touched: int) -> zipfile.ZipFile:
    """An open zip, kept. Not for a forked process, which would share the place in the file, nor once it has changed."""
    try:
        return zipfile.ZipFile(path)
    except (OSError, zipfile.BadZipFile) as error:
        said = getattr(error, "strerror", None) or "neither a folder nor a zip, or a damaged one"
        raise DataError(f"{path}: {said}; expected a label set") from None


def _png_size(content: bytes, where: Path) -> tuple[int, int]:
    try:
        with Image.open(io.BytesIO(content)) as image:
            return image.size
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        raise DataError(f"{where}: cannot be read as a mask") from None


def _grey_png(values: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(values), mode="L").save(stream, format="PNG")
    return stream.getvalue()
