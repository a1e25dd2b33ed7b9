"""Rows of a table that take several stages: the stages as they are shipped, at both scales."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from pydantic import Field, model_validator

from mcc_core.config import Strict
from mcc_core.structured_files import read_yaml
from mcc_core.validation import validate
from orchestrator.spec.stages_file import Stage
from orchestrator.spec.sweep_file import Slug

FOLDER = Path(__file__).parents[1] / "reproduction" / "pipelines"
BETWEEN = "-"  # a row's name and that of its stage, in the sweep of a whole table


class OnOtherData(Strict):
    """What differs in a stage that trains on other data than the pipeline's."""

    base: str
    set: dict[str, Any] = Field({}, description="dotted fields, over those of the pipeline's stage")


class Pipeline(Strict):
    """The stages of a row."""

    last: Slug = Field(description="the stage whose network is the row's")
    stages: dict[Slug, Stage] = Field(min_length=1, description="name of a stage to the stage, at the paper's scale")
    tiny: dict[Slug, Stage] = Field(min_length=1, description="the same stages at tiny scale")

    @model_validator(mode="after")
    def _whole(self) -> Pipeline:
        if [*self.stages] != [*self.tiny]:
            raise ValueError(f"tiny: has stages {', '.join(self.tiny)}; expected {', '.join(self.stages)}")
        if self.last not in self.stages or not self.stages[self.last].trains:
            raise ValueError(f"last: {self.last!r}: expected a stage that trains")
        return self

    def named(self, row: str, scale: str, other: Mapping[str, OnOtherData]) -> dict[str, Stage]:
        """The stages, called `ROW-STAGE`, of a row at a scale.

        Args:
            other: what differs in stages at the paper's scale.
        """
        chosen = self.tiny if scale == "tiny" else self.stages
        made = {}
        for name, stage in chosen.items():
            links = {
                field: stage_name(row, getattr(stage, field)) for field in ("of", "network") if getattr(stage, field)
            }
            changes: dict[str, Any] = dict(links)
            if scale != "tiny" and name in other:
                changes |= {"base": other[name].base, "set": stage.set | other[name].set}
            made[stage_name(row, name)] = stage.model_copy(update=changes)
        return made


def stage_name(row: str, stage: str) -> str:
    """What a stage of a row is called in the sweep of the whole table."""
    return f"{row}{BETWEEN}{stage}"


@lru_cache
def load_pipeline(name: str) -> Pipeline:
    """A shipped pipeline. Raises UsageError."""
    file = FOLDER / f"{name}.yaml"
    return validate(Pipeline, read_yaml(file), file.name)
