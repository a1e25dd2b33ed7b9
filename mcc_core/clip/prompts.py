"""Prompts: what a text encoder is told about classes and about what lies behind them."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path

from pydantic import Field, field_validator, model_validator

from mcc_core.config import Strict
from mcc_core.errors import UsageError
from mcc_core.structured_files import read_yaml
from mcc_core.validation import validate

SHIPPED = Path(__file__).parent / "shipped"


class Prompts(Strict):
    """A file of prompts."""

    templates: tuple[str, ...] = Field(min_length=1, description="texts with {} for a name, averaged")
    classes: dict[str, str] = Field(
        default_factory=dict, description="what stands for the name of a class; default: the name"
    )
    backgrounds: tuple[str, ...] = Field(min_length=1, description="what images show beside the classes")
    companions: dict[str, tuple[str, ...]] = Field(
        default_factory=dict,
        description="of CLIMS: what is often seen with a class and is not it; default: the backgrounds",
    )

    @field_validator("templates")
    @classmethod
    def _one_place(cls, templates: tuple[str, ...]) -> tuple[str, ...]:
        for template in templates:
            if template.count("{}") != 1 or template.replace("{}", "").count("{") or "}" in template.replace("{}", ""):
                raise ValueError(f"{template!r}: expected one {{}} for the name, and no other braces")
        return templates

    @model_validator(mode="after")
    def _distinct(self) -> Prompts:
        companions = [text for texts in self.companions.values() for text in texts]
        for name in (*self.backgrounds, *self.classes.values(), *companions):
            if not name.strip():
                raise ValueError("backgrounds, companions and classes: an empty text says nothing")
        for i, name in enumerate(self.backgrounds):
            if name in self.backgrounds[:i]:
                raise ValueError(f"backgrounds: {name!r} is there twice")
        return self

    def texts(self, classes: Sequence[str]) -> list[str]:
        """What stands for each of the classes."""
        return [self.classes.get(name, name.replace("_", " ")) for name in classes]

    def filled(self, name: str) -> list[str]:
        """The templates with a name in them."""
        return [template.replace("{}", name) for template in self.templates]


def prompts_file(source: str) -> Path:
    """The file of shipped prompts of a name, or the YAML file itself. Raises UsageError."""
    names = sorted(file.stem for file in SHIPPED.glob("*.yaml"))
    path = SHIPPED / f"{source}.yaml" if source in names else Path(source).expanduser()
    if source not in names and not path.is_file():
        raise UsageError(f"clip.prompts: {source}: no such file, and none of the shipped {', '.join(names)}")
    return path


def load_prompts(source: str, classes: Sequence[str]) -> Prompts:
    """The shipped prompts of a name, or those of a YAML file, checked against the classes of a dataset.

    Raises UsageError, one line per mistake.
    """
    path = prompts_file(source)
    prompts = validate(Prompts, read_yaml(path), str(path))
    for section in ("classes", "companions"):
        if unknown := [name for name in getattr(prompts, section) if name not in classes]:
            close = difflib.get_close_matches(unknown[0], classes, n=1)
            meant = f"did you mean {close[0]}?" if close else f"they are {', '.join(classes[:5])}, ..."
            raise UsageError(f"{path}: {section}.{unknown[0]}: no class of the data; {meant}")
    texts = prompts.texts(classes)
    if both := [name for name in prompts.backgrounds if name in texts]:
        raise UsageError(f"{path}: backgrounds: {both[0]!r} is a class too, whose pixels it would take away")
    for name, others in prompts.companions.items():
        if prompts.texts([name])[0] in others:
            raise UsageError(f"{path}: companions.{name}: holds the class itself, whose pixels it would take away")
    if twice := [text for i, text in enumerate(texts) if text in texts[:i]]:
        raise UsageError(f"{path}: classes: {twice[0]!r} stands for two classes, which no text would tell apart")
    return prompts
