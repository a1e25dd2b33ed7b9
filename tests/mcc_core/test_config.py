"""What a user may write in an experiment, and what a mistake says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from experiments import mcc_experiment
from hypothesis import given, settings
from hypothesis import strategies as st

from mcc_core.errors import UsageError
from mcc_core.experiment_files import preset_names, resolve
from mcc_core.methods.mcc.config import Experiment
from mcc_core.schedules import value_at
from mcc_core.validation import field_names, flatten


@pytest.mark.parametrize("name", preset_names())
def test_presets_are_valid_and_say_what_they_are_for(name: str) -> None:
    assert resolve(name).description
    first = (Path(__file__).parents[2] / "mcc_core" / "presets" / f"{name}.yaml").read_text().splitlines()[:3]
    assert all(line.startswith("#") for line in first[:2]) and any("Command:" in line for line in first)


def test_published_defaults() -> None:
    """The recipe table of the published code."""
    e = mcc_experiment("voc")
    assert (e.thresholds.foreground, e.thresholds.background, e.thresholds.score) == (0.70, 0.25, 0.50)
    assert (e.loss.aff, e.loss.mcc, e.loss.seg, e.loss.reg) == (0.2, 0.5, 0.1, 0.05)
    assert (e.mask.ratio, e.mask.scale, e.mask.views) == (0.95, 4, 8)
    assert (e.contrast.temperature, e.contrast.momentum, e.thresholds.positiveness) == (0.5, 0.9, 0.2)
    assert (e.train.iterations, e.train.crop, e.loss.seg_start) == (20_000, 448, 2000)
    assert e.train.batch_size * e.train.workers == 4
    assert (e.cam.positiveness_aux_until, e.cam.pseudo_label_aux_until) == (12_000, 0)
    coco = mcc_experiment("coco")
    assert (coco.thresholds.foreground, coco.thresholds.score) == (0.65, 0.45)
    assert (coco.cam.positiveness_aux_until, coco.cam.pseudo_label_aux_until) == (None, 12_000)
    assert (coco.train.iterations, coco.loss.seg_start) == (80_000, 8000)
    assert coco.train.batch_size * coco.train.workers == 8


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ({"mask.rato": 0.5}, "tiny with --set: mask.rato: unknown field, did you mean mask.ratio?"),
        ({"mask.ratio": 1.2}, "mask.ratio: 1.2: 1.2 is out of range: must be at least 0 and at most 1"),
        ({"thresholds.background": 0.8}, "thresholds.background (0.8) must be below thresholds.foreground (0.7)"),
        ({"mask.ratio": {"schedule": "linea"}}, "'linear', 'cosine', 'step'"),
        ({"mask.ratio": {"schedule": "linear", "start": 1}}, "mask.ratio.end: is missing"),
        ({"mask.ratio": {"schedule": "linear", "start": 0.5, "end": 2}}, "mask.ratio: 2 is out of range"),
        ({"mask.scale": 0}, "mask.scale: 0: 0 is out of range: must be at least 1"),
        ({"train.iterations": "many"}, "train.iterations: 'many'"),
        ({"mask": 3}, "mask: 3:"),
        ({"mask.ratio.start": 3}, "mask.ratio: expected a number, or a mapping with schedule: constant, linear"),
    ],
)
def test_mistakes_are_one_line_each(override: dict[str, Any], expected: str) -> None:
    with pytest.raises(UsageError) as caught:
        resolve("tiny", override)
    assert expected in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_thresholds_may_not_cross_during_a_schedule() -> None:
    with pytest.raises(UsageError, match=r"must be below thresholds.foreground \(0.7\) at iteration"):
        resolve("tiny", {"thresholds.background": {"schedule": "linear", "start": 0.2, "end": 0.9}})


def test_unreadable_files(tmp_path: Path) -> None:
    broken = tmp_path / "broken.yaml"
    broken.write_text("a: [1,\nb: 2")
    listed = tmp_path / "list.yaml"
    listed.write_text("- 1")
    cases: list[tuple[str | Path, str]] = [
        (tmp_path / "none.yaml", "No such file"),
        (broken, "line 2"),
        (listed, "expected a mapping"),
        ("nonsense", "neither a preset (afa, "),
    ]
    for base, message in cases:
        with pytest.raises(UsageError) as caught:
            resolve(base)
        assert message in str(caught.value)


def test_yaml_cannot_construct_objects(tmp_path: Path) -> None:
    evil = tmp_path / "evil.yaml"
    evil.write_text("description: !!python/object/apply:os.system ['touch pwned']")
    with pytest.raises(UsageError, match="not valid YAML"):
        resolve(evil)


def test_numeric_fields_of_losses_thresholds_and_masking_can_be_scheduled() -> None:
    ramp = {"start": 0.5, "end": 0.6}
    sections = {
        "loss": {"seg_start", "aff_form", "seg_form"},
        "thresholds": {"foreground_inclusive"},
        "mask": {"drop_tokens", "uncertain_start"},
    }
    for section, fixed in sections.items():
        for name in field_names(Experiment):
            if name.startswith(section + ".") and name.split(".")[1] not in fixed:
                low = {"mask.scale": 1, "mask.views": 1}.get(name, 0)
                overrides: dict[str, Any] = {name: {"schedule": "cosine"} | {k: v + low for k, v in ramp.items()}}
                if name == "thresholds.background":
                    overrides = {name: {"schedule": "cosine", "start": 0.1, "end": 0.2}}
                elif name == "thresholds.foreground":
                    overrides = {name: {"schedule": "cosine", "start": 0.7, "end": 0.6}}
                experiment = resolve("tiny", overrides)
                value = getattr(getattr(experiment, section), name.split(".")[1])
                assert value_at(value, 0, 100) != value_at(value, 99, 100)
                assert "cosine" in flatten(experiment)[name]


@settings(deadline=None)
@given(
    st.dictionaries(
        st.sampled_from([n for n in field_names(Experiment) if "." in n]),
        st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), st.lists(st.integers())),
        max_size=4,
    )
)
def test_any_override_is_taken_or_refused_in_lines(overrides: dict[str, Any]) -> None:
    try:
        experiment = resolve("tiny", overrides)
    except UsageError as error:
        assert all(line.startswith("tiny with --set") or "--set" in line for line in str(error).splitlines())
    else:
        assert Experiment.model_validate(experiment.model_dump(mode="json")) == experiment
