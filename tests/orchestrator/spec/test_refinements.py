"""Refinements of sweep files: what cannot be done is said before anything is trained."""

from __future__ import annotations

from typing import Any

import pytest
from trained import smallest

from mcc_core.errors import UsageError
from mcc_core.methods.registry import METHODS, method_of
from orchestrator.spec.refinements import refinement


@pytest.mark.parametrize(
    ("method", "fields", "said"),
    [
        ("recam", {"kind": "irn"}, "irn.network: is missing: .*; method recam finds no boundaries"),
        ("recam", {"kind": "none", "certainty": 0.8}, "certainty: is of a label set without confidence"),
        ("recam", {"kind": "none", "seeds": "aux_cam"}, "seeds: 'aux_cam': method recam has cam"),
        ("segmentation", {"kind": "none"}, "method segmentation has no class maps to refine"),
        (None, {"kind": "random_walk"}, "needs a network's attention"),
        (None, {"kind": "none", "threshold": 0.3}, "threshold: is of class maps"),
        (None, {"kind": "irn"}, "irn.network: is missing"),
    ],
)
def test_what_cannot_be_done_is_one_line(method: str | None, fields: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=rf"^a\.yaml\.refine: .*{said}") as error:
        refinement(fields, "a.yaml", None if method is None else smallest(method))
    assert "\n" not in str(error.value)


def test_a_method_says_of_itself_whether_it_finds_boundaries() -> None:
    assert refinement({"kind": "irn"}, "a.yaml", smallest("irn")).chain == ("irn",)
    for name in METHODS:
        experiment = smallest(name)
        found = type(method_of(experiment).network(experiment, 3)).has_boundaries
        assert METHODS[name].finds_boundaries == found
