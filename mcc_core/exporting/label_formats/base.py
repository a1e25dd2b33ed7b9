"""What a format of label maps is: how maps are written in it, and how corrected ones are read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import ClassVar

import numpy as np

from mcc_core.errors import DataError

IGNORE = 255
IGNORED, BACKGROUND = "__ignore__", "_background_"  # what LabelMe calls pixels of 255 and of 0


@dataclass(frozen=True)
class Picture:
    """An image whose labels are exchanged."""

    name: str  # in the index and the label set
    file: str  # as the tool knows it: a path with `/`, relative to the folder of the images
    height: int
    width: int
    path: Path | None = None  # of the image, where it is known


class Pictures:
    """The images of an exchange, found by what a tool calls them."""

    def __init__(self, pictures: Iterable[Picture]) -> None:
        self.by_name = {picture.name: picture for picture in pictures}
        self._by_file = {picture.file: picture for picture in self.by_name.values()}
        tails = Counter(PurePosixPath(picture.file).name for picture in self.by_name.values())
        self._by_tail = {
            tail: picture for picture in self.by_name.values() if tails[tail := PurePosixPath(picture.file).name] == 1
        }

    def find(self, called: str) -> Picture | None:
        """By the whole path, by the file's name where no other image has it, or by the name of the image."""
        path = called.replace("\\", "/")
        tail = path.rsplit("/", 1)[-1]
        bare = path.rsplit(".", 1)[0]
        for name in (path, bare, bare.replace("/", "-"), tail, tail.rsplit(".", 1)[0]):
            if found := self._by_file.get(path) or self.by_name.get(name):
                return found
        return self._by_tail.get(tail)


@dataclass
class Reading:
    """What was found in files of a format beside label maps."""

    problems: list[str] = field(default_factory=list)  # one line each, with the file
    notes: list[str] = field(default_factory=list)  # of what was left out or changed: counted, one named

    def note(self, where: Sequence[str], what: str) -> None:
        """Count what happened at least once."""
        if where:
            self.notes.append(f"{len(where)} {what}, such as {where[0]}")

    def once(self, named: Sequence[tuple[str, Picture | None]]) -> list[bool]:
        """Whether no other place has the same image, of each place; which of several counts, nobody can say.

        Args:
            named: where something is said of an image, and of which; None is a place that is read all the same.
        """
        by_name: dict[str, list[str]] = {}
        for where, picture in named:
            if picture is not None:
                by_name.setdefault(picture.name, []).append(where)
        for name, (first, *others) in by_name.items():
            self.problems += [f"{other}: of the image {name}, as {first} is: neither is read" for other in others]
        return [picture is None or len(by_name[picture.name]) == 1 for _, picture in named]


COVERS_NOTHING = "shapes left out, which cover no pixel of their image"


class LabelFormat:
    """A format of label maps."""

    name: ClassVar[str]
    title: ClassVar[str]

    def write(
        self, out: Path, maps: Iterable[tuple[Picture, np.ndarray]], classes: Sequence[str], split: str
    ) -> list[str]:
        """Write label maps H,W uint8 (0 background, 255 open) into an empty folder; gives notes on what is there."""
        raise TypeError(f"{self.name} is not written")

    def read(
        self, source: Path, pictures: Pictures, classes: Sequence[str], reading: Reading
    ) -> Iterator[tuple[Picture, np.ndarray]]:
        """Label maps in files of the format, one of an image. Raises DataError where the source is none of it.

        What is wrong with single images is among the problems of `reading`; such images are not given.
        """
        raise TypeError(f"{self.name} is not read")


def class_numbers(classes: Sequence[str]) -> dict[str, int]:
    """Name to label, with those of background and open pixels."""
    return {**{name: number for number, name in enumerate(classes, 1)}, BACKGROUND: 0, IGNORED: IGNORE}


def names_of_labels(classes: Sequence[str]) -> dict[int, str]:
    """Label to name. Raises DataError where a class has the name of pixels that are none's."""
    if wrong := [name for name in classes if name in (BACKGROUND, IGNORED)]:
        raise DataError(f"class {wrong[0]!r}: has the name that tools give to pixels of no class; rename it")
    return {number: name for name, number in class_numbers(classes).items()}


def unknown_class(where: str, name: object, classes: Sequence[str]) -> str:
    """The line on a class that is none."""
    known = ", ".join([*classes[:8], *(["..."] if len(classes) > 8 else []), IGNORED, BACKGROUND])
    return f"{where}: class {name!r}: expected one of {known}"


def other_size(where: str, width: object, height: object, picture: Picture) -> str:
    """The line on labels of another size than their image."""
    return f"{where}: {width}x{height} pixels, the image {picture.name} has {picture.width}x{picture.height}"


def no_image(where: str, called: object) -> str:
    """The line on labels of an image that is not there."""
    return f"{where}: {called!r}: no image of that name among those that are labelled"
