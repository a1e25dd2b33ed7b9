"""Ablation as a design: named loss terms are left out, or added to nothing, one at a time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from mcc_core.config import Strict
from mcc_core.errors import UsageError
from mcc_core.methods.base import Method
from mcc_core.methods.registry import method_of_fields

FULL = "full"
NONE = "none"
Term = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,40}$")]


class Design(Strict):
    """Points made of terms. A term is a name for loss weights that are switched off together, to 0.

    leave-one-out: `full`, and `without-TERM` for each; differences are to `full`.
    add-one-in: `none` (every term off), `with-TERM` for each, and `full`; differences are to `none`.
    """

    kind: Literal["leave-one-out", "add-one-in"]
    terms: dict[Term, tuple[str, ...]] = Field(
        min_length=2, description="name to loss weights, such as contrast: [loss.mcc]"
    )

    @field_validator("terms")
    @classmethod
    def _not_empty(cls, terms: dict[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
        for term, keys in terms.items():
            if not keys:
                raise ValueError(f"{term}: empty: expected loss weights, such as loss.seg")
        return terms

    @property
    def reference(self) -> str:
        """Name of the point that the others are compared with."""
        return FULL if self.kind == "leave-one-out" else NONE

    def names(self) -> list[str]:
        """Names of the points, the reference first."""
        if self.kind == "leave-one-out":
            return [FULL, *(f"without-{term}" for term in self.terms)]
        return [NONE, *(f"with-{term}" for term in self.terms), FULL]

    def points(self, fields: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
        """Name to changed fields.

        Raises UsageError for what is no loss weight of the method of `fields` (raw fields of the base), and for a term
        that is off there.
        """
        method = method_of_fields(fields)
        known = weights(method)
        for term, keys in self.terms.items():
            if wrong := [key for key in keys if key not in known]:
                raise UsageError(f"design.terms.{term}: {wrong[0]}: expected some of {', '.join(known)}")
            if all(_given(fields, method, key) == 0 for key in keys):
                raise UsageError(f"design.terms.{term}: {', '.join(keys)} is 0 in the base, so it makes no difference")
        if self.kind == "leave-one-out":
            return {FULL: {}} | {f"without-{term}": dict.fromkeys(keys, 0) for term, keys in self.terms.items()}
        everything = [key for keys in self.terms.values() for key in keys]
        alone = {f"with-{term}": {key: 0 for key in everything if key not in keys} for term, keys in self.terms.items()}
        return {NONE: dict.fromkeys(everything, 0)} | alone | {FULL: {}}


def weights(method: Method) -> tuple[str, ...]:
    """Dotted fields of a method's loss weights."""
    return tuple(f"loss.{term}" for term in (*method.terms, *method.optional_terms))


def _given(fields: Mapping[str, Any], method: Method, key: str) -> Any:
    name = key.removeprefix("loss.")
    schema: Any = method.experiment.model_fields["loss"].annotation
    return (fields.get("loss") or {}).get(name, schema.model_fields[name].default)
