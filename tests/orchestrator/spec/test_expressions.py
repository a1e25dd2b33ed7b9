"""Arithmetic in sweep files: what it computes, and that nothing else is ever run."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcc_core.errors import UsageError
from orchestrator.spec.expressions import Expression

FIELDS = {"thresholds.background": 0.25, "mask.views": 4, "data.name": "shapes", "loss.mcc": 0}


def value(text: Any) -> Any:
    return Expression(text, "s.yaml: derived.x").value(FIELDS.__getitem__)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1 - thresholds.background", 0.75),
        ("-mask.views ** 2 + 7 // 2 % 2", -15.0),
        ("max(0.1, min(mask.views, 2) / 4)", 0.5),
        ("round(log(exp(3)))", 3),
        ("0.1 < thresholds.background <= 0.25 and not loss.mcc", True),
        ("data.name == 'voc' or mask.views != 4", False),
        (3, 3),
    ],
)
def test_values(text: Any, expected: Any) -> None:
    assert value(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').system('true')",
        "().__class__",
        "[x for x in (1,)]",
        "lambda: 1",
        "mask.views[0]",
        "open('/etc/passwd')",
        "f'{mask.views}'",
        "max(key=1)",
        "mask.views if 1 else 2",
        "(1).real",
        "a := 1",
        "1 -",
        "1" * 500,
        "(" * 150,
        None,
    ],
)
def test_what_is_not_arithmetic_is_refused_before_a_field_is_looked_up(text: Any) -> None:
    with pytest.raises(UsageError, match=r"^s\.yaml: derived\.x: "):
        Expression(text, "s.yaml: derived.x")


@pytest.mark.parametrize("text", ["1 / loss.mcc", "9 ** 9 ** 9 ** 9", "1 + data.name", "sqrt(-1)", "1e308 * 10"])
def test_what_cannot_be_computed_is_one_line(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        value(text)
    assert len(str(caught.value).splitlines()) == 1


@given(st.text(max_size=60))
def test_any_text_gives_a_value_or_a_usage_error(text: str) -> None:
    with suppress(UsageError):
        Expression(text, "s").value(lambda name: 1.0)
