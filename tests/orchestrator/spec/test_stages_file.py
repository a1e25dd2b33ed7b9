"""Sweep files of stages: what they may say, and what is wrong with one in a line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from staged import BOUNDARIES, staged

from mcc_core.errors import UsageError
from orchestrator.spec.stages_file import is_staged, load_stages, with_overrides, with_run_options

HEAD = "name: s\nstages:\n"
SEEDS = "  seeds: {base: tiny}\n"
REFINE = "  refine: {of: seeds, refine: {kind: none}}\n"


def mistakes(folder: Path, stages: str) -> list[str]:
    file = folder / "s.yaml"
    file.write_text(HEAD + stages)
    assert is_staged(file)
    with pytest.raises(UsageError) as caught:
        load_stages(file)
    return str(caught.value).replace(f"{file}: ", "").splitlines()


@pytest.mark.parametrize(
    ("stages", "expected"),
    [
        (
            SEEDS + "  refine: {of: seed, refine: {kind: none}}\n",
            "stages.refine.of: 'seed': no such stage, did you",
        ),
        (SEEDS + "  x: {of: seeds}\n", "stages.x: needs base (what it trains) or refine (how it makes labels)"),
        (SEEDS + "  x: {of: seeds, base: tiny, refine: {kind: none}}\n", "stages.x: has base and refine"),
        (SEEDS + "  x: {refine: {kind: none}}\n", "stages.x.of: is missing: the stage whose maps it refines"),
        (
            "  a: {of: b, refine: {kind: none}}\n  b: {of: a, refine: {kind: none}}\n",
            "stages.a.of: goes in a circle: a of b of a",
        ),
        (
            SEEDS + "  a: {of: seeds, network: c, refine: {kind: irn}}\n  b: {of: a, refine: {}}\n"
            "  c: {of: b, base: irn-tiny}\n",
            "stages.a.network: goes in a circle: a network c of b of a",
        ),
        (SEEDS + "  x: {network: seeds, base: tiny}\n", "stages.x.network: is of a stage with refine; one that"),
        (
            SEEDS + "  x: {of: seeds, network: seds, refine: {}}\n",
            "stages.x.network: 'seds': no such stage, did you mean",
        ),
        (
            SEEDS + REFINE + "  x: {of: seeds, network: refine, refine: {kind: irn}}\n",
            "stages.x.network: 'refine' makes labels and trains no network",
        ),
        ("  a: {of: a, base: tiny}\n", "stages.a.of: goes in a circle: a of a"),
        (SEEDS + "  x: {of: seeds, base: tiny}\n", "stages.x.of: 'seeds' trains a network, which is no set of labels"),
        (
            SEEDS + REFINE + "  x: {of: refine, base: tiny, set: {labels.source: here}}\n",
            "stages.x.set: labels.source: is what stage refine makes; take one out",
        ),
        (
            SEEDS + "  x: {of: seeds, refine: {kind: none}, set: {loss.mcc: 0}}\n",
            "stages.x.set: loss.mcc: the stage trains nothing; its fields are refine.…",
        ),
        (
            SEEDS + "  x: {of: seeds, refine: {kind: none}, parameters: {refine.threshold: {uniform: [0, 1]}}}\n",
            "stages.x.parameters.refine.threshold: a range; a stage is a grid, which takes lists",
        ),
        (
            SEEDS + "  x: {of: seeds, refine: {kind: none}, parameters: {refine.threshold: 0.4}}\n",
            "stages.x.parameters: refine.threshold: 0.4: expected a list of values",
        ),
        (
            SEEDS + "  x: {of: seeds, refine: {kind: none}, parameters: {refine.threshold: []}}\n",
            "stages.x.parameters: refine.threshold: needs at least 1 of them",
        ),
        (SEEDS + "  on: {of: seeds, refine: {}}\n", "stages: True: expected a name; put it in quotes, or YAML reads"),
        (SEEDS + "  x: {of: seeds, refines: {kind: none}}\n", "stages.x.refines: unknown field"),
        (SEEDS + "metrics: x\n", "metrics: unknown field, did you mean metric?"),
        (SEEDS + "search: {kind: random, points: 3}\n", "search: unknown field"),
    ],
)
def test_a_mistake_is_one_line_with_the_stage_and_field(tmp_path: Path, stages: str, expected: str) -> None:
    (line,) = mistakes(tmp_path, stages)
    assert line.startswith(expected)


def test_stages_come_after_what_they_take_in_any_order_of_the_file() -> None:
    file = staged(
        stages={"b": {"of": "a", "refine": {"kind": "none"}}, "a": {"base": "tiny"}, "full": {"base": "tiny"}}
    )
    assert file.ordered() == ["a", "full", "b"] and file.last() == ["b", "full"]
    assert file.line("b") == ["a", "b"]


def test_a_stage_of_two_comes_after_both() -> None:
    file = staged(**BOUNDARIES)
    assert file.ordered() == file.line("refine") == ["seeds", "unsure", "boundaries", "refine"]
    assert file.last() == ["refine"] and file.stages["refine"].inputs == ("seeds", "boundaries")


def test_fields_of_the_command_line_go_to_one_stage_or_to_all_that_have_them() -> None:
    file = staged(again={"of": "refine", "refine": {"kind": "par"}}, other={"base": "tiny"})
    changed = with_overrides(
        file, {"train.iterations": 9, "seeds.loss.mcc": 0, "again.refine.par.iterations": 2}, "s.yaml"
    )
    assert {name: stage.set.get("train.iterations") for name, stage in changed.stages.items()} == {
        "seeds": 9,
        "refine": None,
        "again": None,
        "other": 9,
    }
    assert changed.stages["seeds"].set["loss.mcc"] == 0 and "loss.mcc" not in changed.stages["other"].set
    assert changed.stages["again"].set == {"refine.par.iterations": 2}
    assert "metric" not in changed.model_fields_set


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"train.iteration": 9}, "--set: train.iteration: no stage has it, did you mean train.iterations?"),
        (
            {"refine.threshold": 0.4},
            "--set: refine.threshold: stages.refine of s.yaml varies it; remove one of",
        ),
        (
            {"seeds.refine.threshold": 0.4},
            "--set: seeds.refine.threshold: no stage has it, did you mean refine.",
        ),
    ],
)
def test_a_field_that_no_stage_takes_is_one_line(changes: dict[str, Any], expected: str) -> None:
    with pytest.raises(UsageError) as caught:
        with_overrides(staged(), changes, "s.yaml")
    assert str(caught.value).startswith(expected) and len(str(caught.value).splitlines()) == 1


def test_seeds_and_trials_at_a_time_of_the_command_line() -> None:
    file = with_run_options(staged(), (3, 4), 1)
    assert file.seeds == (3, 4) and file.resources.max_concurrent == 1 and "metric" not in file.model_fields_set
