"""Stages that begin with a frozen CLIP: labels once for every seed, what is told, what is wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from staged import SHAPES
from tiny_clip import SMALL

from mcc_core.errors import UsageError
from orchestrator.planning.configurations import Trial
from orchestrator.planning.plan import Plan
from orchestrator.planning.stage_plan import plan_stages
from orchestrator.settings import Settings
from orchestrator.spec.stages_file import StagesFile, with_overrides

DATA = SHAPES | {"data.name": "shapes", "data.train_split": "train"}
CLIP: dict[str, Any] = {"base": "clip-es", "set": DATA | SMALL, "refine": {"kind": "none", "confidence": 0.3}}
SEGMENT: dict[str, Any] = {"of": "seeds", "base": "segmentation-tiny", "set": SHAPES}


def clip_plan(settings: Settings, seeds: tuple[int, ...] = (0,), *, estimate: bool = False, **stages: Any) -> Plan:
    """The plan of a frozen CLIP's labels and further stages."""
    file = StagesFile.model_validate({"name": "s", "stages": {"seeds": CLIP} | stages, "seeds": seeds})
    return plan_stages(file, "s.yaml", settings=settings, estimate=estimate)


def changed(**fields: Any) -> dict[str, Any]:
    return CLIP | {"set": CLIP["set"] | {key.replace("__", "."): value for key, value in fields.items()}}


def test_labels_of_a_frozen_network_are_made_once_for_every_seed(settings: Settings) -> None:
    labels, *networks = clip_plan(settings, (3, 4), segment=SEGMENT).trials
    assert (labels.name, labels.input, labels.refine) == ("seeds (I+L)", None, {"kind": ["none"], "confidence": 0.3})
    assert [(t.name, t.seed, t.input) for t in networks] == [
        ("segment (I+L) s3", 3, labels.identity),
        ("segment (I+L) s4", 4, labels.identity),
    ]
    again = clip_plan(settings, (5,), segment=SEGMENT).trials
    assert again[0].identity == labels.identity and again[1].identity not in {t.identity for t in networks}


def test_a_network_that_is_brought_along_gives_labels_its_seed(settings: Settings) -> None:
    affinities = {"of": "seeds", "base": "psa-tiny", "set": SHAPES}
    walk = {"of": "seeds", "network": "affinities", "refine": {"kind": "psa"}}
    trials = clip_plan(settings, (0, 1), affinities=affinities, walk=walk, segment=SEGMENT | {"of": "walk"}).trials
    by_stage: dict[str, list[Trial]] = {}
    for trial in trials:
        by_stage.setdefault(trial.stage, []).append(trial)
    assert len(by_stage["seeds"]) == 1
    assert [t.seed for name in ("walk", "segment") for t in by_stage[name]] == [0, 1, 0, 1]
    assert [t.network for t in by_stage["walk"]] == [t.identity for t in by_stage["affinities"]]


def test_what_decides_the_maps_is_part_of_the_identity_and_where_it_lies_is_not(
    settings: Settings, tmp_path: Path
) -> None:
    def identity(**fields: Any) -> str:
        return clip_plan(settings, again=changed(**fields)).trials[-1].identity

    files = [tmp_path / name for name in ("one.yaml", "two.yaml", "other.yaml")]
    for file, background in zip(files, ("sky", "sky", "grass"), strict=True):
        file.write_text(f"templates: ['a {{}}']\nbackgrounds: [{background}]\n")
    one, two, other = (identity(clip__prompts=str(file)) for file in files)
    assert one == two != other
    assert identity(clip__squarings=2) != identity(clip__squarings=3)


def test_both_the_network_and_the_refinement_may_vary(settings: Settings) -> None:
    grid = CLIP | {"parameters": {"clip.squarings": [1, 2], "refine.confidence": [0.2, 0.4]}}
    trials = clip_plan(settings, both=grid).trials
    assert [t.point for t in trials if t.stage == "both"] == [
        f"both squarings={s} (I+L) confidence={c}" for s in (1, 2) for c in (0.2, 0.4)
    ]
    assert trials[-1].varied == {"clip.squarings": "2", "refine.confidence": "0.4"}


def test_the_time_of_labels_is_measured(settings: Settings) -> None:
    made = clip_plan(settings, estimate=True)
    assert made.seconds[made.trials[0].identity] > 0 and made.estimate is not None


@pytest.mark.parametrize(
    ("stage", "said"),
    [
        (CLIP | {"base": "tiny", "set": {}}, "stages.seeds.base: tiny: is trained (method mcc)"),
        (changed(clip__prompts="voc"), "stages.seeds: "),
        (changed(clip__weights="nowhere.pt"), "clip.weights: "),
        (changed(refine__threshold=0.3), "stages.seeds.refine: threshold: is of a trained network's maps"),
        (CLIP | {"refine": {"kind": "random_walk"}}, "stages.seeds.refine: kind: random_walk"),
        ({"base": "clip-es", "set": DATA | SMALL}, "method: clip_es trains nothing: a stage of a sweep with"),
    ],
)
def test_a_mistake_is_one_line(settings: Settings, stage: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError) as caught:
        file = StagesFile.model_validate({"name": "s", "stages": {"seeds": stage}})
        plan_stages(file, "s.yaml", settings=settings, estimate=False)
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_a_field_of_the_command_line_goes_to_the_stage_that_has_it() -> None:
    file = StagesFile.model_validate({"name": "s", "stages": {"seeds": CLIP, "segment": SEGMENT}})
    made = with_overrides(file, {"clip.weights": "w.pt", "data.shapes_train": 9}, "s.yaml")
    assert made.stages["seeds"].set["clip.weights"] == "w.pt" and "clip.weights" not in made.stages["segment"].set
    assert {stage.set["data.shapes_train"] for stage in made.stages.values()} == {9}
    with pytest.raises(UsageError, match=r"--set: train.iterations\b.*no stage has it"):
        with_overrides(StagesFile.model_validate({"name": "s", "stages": {"seeds": CLIP}}), {"train.iterations": 3}, "")
