"""Means between two log records: a record that is cut by a checkpoint is the record of an undisturbed run."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mcc_core.methods.base import Step
from mcc_core.training.running_means import RunningMeans

CPU = torch.device("cpu")
LOSSES = st.floats(-1e3, 1e3, width=32)


def step(cls: float, seg: float | None) -> Step:
    terms = {"cls": torch.tensor(cls)} | ({} if seg is None else {"seg": torch.tensor(seg)})
    return Step(torch.stack(list(terms.values())).sum(), terms, images=2)


@given(st.lists(st.tuples(LOSSES, st.none() | LOSSES), min_size=1, max_size=8), st.integers(0, 8))
def test_a_window_that_was_cut_is_whole_to_the_bit(losses: list[tuple[float, float | None]], cut: int) -> None:
    whole, first = RunningMeans(), RunningMeans()
    for cls, seg in losses:
        whole.add(step(cls, seg), {"mask/ratio": cls})
    for cls, seg in losses[:cut]:
        first.add(step(cls, seg), {"mask/ratio": cls})
    second = RunningMeans()
    second.restore(first.state())
    for cls, seg in losses[cut:]:
        second.add(step(cls, seg), {"mask/ratio": cls})
    expected, got = whole.close(CPU, 1), second.close(CPU, 1)
    assert expected.pop("images_per_second") > 0 and got.pop("images_per_second") > 0
    assert got == expected


def test_a_term_is_averaged_over_the_steps_that_had_it() -> None:
    means = RunningMeans()
    for cls, seg in ((1.0, None), (2.0, 6.0), (3.0, 8.0)):
        means.add(step(cls, seg), {})
    record = means.close(CPU, 1)
    assert (record["loss/cls"], record["loss/seg"]) == (2.0, 7.0)
    assert record["images_per_second"] * means.lasted == pytest.approx(6)


def test_time_before_a_checkpoint_counts_and_time_between_two_runs_does_not() -> None:
    first = RunningMeans()
    first.began -= 5
    state = first.state()
    second = RunningMeans()
    second.restore(state)
    second.began -= 100  # loading took long
    second.resume()
    second.add(step(1, None), {})
    second.close(CPU, 1)
    assert 5 <= second.lasted < 6
