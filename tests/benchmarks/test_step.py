"""Every method's step can be measured; its plain form has ours' losses, and needs no fewer operations."""

from __future__ import annotations

import io
import re
from unittest import mock

import pytest
import step
from operations import operations_of
from rich.console import Console

from mcc_core.methods import registry

SMALL = {"mctformer": "deit_tiny_patch16_224"}


@pytest.mark.parametrize("method", ["afa", "fsr", pytest.param("slrnet", marks=pytest.mark.slow)])
def test_plain_forms_have_the_same_losses(method: str) -> None:
    form = step.METHODS[method]
    size = step.Size(method, form.backbone, 64, 1, 0, "cpu")
    ours, plain = step.Case(size), step.Case(size, plainly=True)
    found = [case.run() for case in (ours, plain)]
    assert set(found[0]) == {*ours.objective.terms, "total"}
    assert found[0] == pytest.approx(found[1], rel=1e-4, abs=1e-6)
    for a, b in zip(ours.model.parameters(), plain.model.parameters(), strict=True):
        if a.requires_grad and a.grad is not None:
            assert b.grad is not None
            assert float((a.grad - b.grad).norm()) <= 1e-3 * float(b.grad.norm()) + 1e-6
    counted = [step.gflop(case.run) for case in (ours, plain)]
    assert counted[0] <= counted[1]


def test_no_method_is_left_out() -> None:
    assert set(step.METHODS) == set(registry.METHODS)


SLOW = {"clims"}  # makes a CLIP
WITHOUT_PLAIN = [name for name, form in step.METHODS.items() if form.plain is None]


@pytest.mark.parametrize(
    "method", [pytest.param(n, marks=pytest.mark.slow if n in SLOW else ()) for n in WITHOUT_PLAIN]
)
def test_steps_without_a_plain_form_are_measured(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step, "peak_gib", lambda size, **options: step.Peak(1.25, 0.5))  # takes a process of its own
    out = io.StringIO()
    console = Console(file=out, width=110)
    step.against_plain(step.Size(method, SMALL.get(method, "resnet10t"), 96, 1, 0, "cpu"), 1, False, console)
    text = out.getvalue()
    assert "GFLOP each): ours" in text and "no plain form" in text and "ratio" not in text
    assert re.search(r"of it not imports +0\.75", text)
    assert {"backward", "step", "peak"} <= {line.split()[0] for line in text.splitlines() if line}


def test_a_step_asks_a_gpu_for_few_operations() -> None:
    size = step.Size("mcc", "deit_tiny_patch16_224", 64, 4, 8, "cpu")
    with step.as_on_a_gpu():
        case = step.Case(size, {"precision": "bfloat16"})
        nothing = mock.MagicMock()
        case.bare(nothing)  # constants are made once
        found = operations_of(lambda: case.bare(nothing))
    assert found.kernels.total() <= 2000 and found.constants == 0
