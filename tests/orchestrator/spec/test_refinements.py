"""Refinements of sweep files: what cannot be done is said before anything is trained."""

from __future__ import annotations

from typing import Any

import pytest
from trained import smallest

from mcc_core.errors import UsageError
from orchestrator.spec.refinements import refinement


@pytest.mark.parametrize(
    ("method", "fields", "said"),
    [
        ("recam", {"kind": "irn"}, "network: is missing: irn takes a trained network"),
        ("recam", {"kind": "none", "certainty": 0.8}, "certainty: is of a label set without confidence"),
        ("recam", {"kind": "none", "seeds": "aux_cam"}, "seeds: 'aux_cam': method recam has cam"),
        ("recam", {"kind": "random_walk"}, "kind: random_walk: the network of method recam has no attention"),
        ("segmentation", {"kind": "none"}, "method segmentation has no class maps to refine"),
        (None, {"kind": "random_walk"}, "needs a network's attention"),
        (None, {"kind": "none", "threshold": 0.3}, "threshold: is of class maps"),
        (None, {"kind": "irn"}, "network: is missing: irn takes a trained network"),
    ],
)
def test_what_cannot_be_done_is_one_line(method: str | None, fields: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=rf"^a\.yaml\..*{said}") as error:
        refinement(fields, "a.yaml", None if method is None else smallest(method))
    assert "\n" not in str(error.value)


def test_certainty_of_labels_that_have_confidence_is_refused() -> None:
    fields = {"kind": "none", "certainty": 0.8}
    assert refinement(fields, "a.yaml", None).certainty == 0.8
    with pytest.raises(UsageError, match=r"^a\.yaml\.refine: certainty: .*those of the stage before have it"):
        refinement(fields, "a.yaml", None, confident=True)


def test_a_network_of_the_method_is_its_own_second_network() -> None:
    assert refinement({"kind": "irn"}, "a.yaml", smallest("irn")).chain == ("irn",)
