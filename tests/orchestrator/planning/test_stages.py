"""Plans of sweeps of stages: what is trained once, what follows what, what is wrong."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from staged import BOUNDARIES, SEEDS, SHAPES, staged, staged_plan
from tiny import tiny_plan
from trained import smallest

from mcc_core.checkpoint import Checkpoint, save
from mcc_core.errors import UsageError
from mcc_core.files import file_digest
from mcc_core.methods.registry import random_network
from orchestrator.cli.show import print_plan
from orchestrator.planning import identity
from orchestrator.planning.configurations import Trial
from orchestrator.planning.plan import plan_document
from orchestrator.planning.stage_estimate import estimate_stages, makespan
from orchestrator.planning.stage_plan import plan_stages
from orchestrator.planning.stages import StageTrials
from orchestrator.records.events import write_end
from orchestrator.records.label_scores import LABEL_SCORE
from orchestrator.records.plans import followers, last_stages
from orchestrator.records.speeds import Speed, refinement_profile, speed_profile, speed_record
from orchestrator.records.status import TrialStatus
from orchestrator.settings import Settings
from orchestrator.spec.stages_file import load_stages
from orchestrator.storage.store import Storage

AUXILIARY = {"of": "seeds", "refine": {"seeds": "aux_cam"}}


def thresholds(*values: float) -> dict[str, Any]:
    return {"of": "seeds", "refine": {"kind": "none"}, "parameters": {"refine.threshold": list(values)}}


def test_a_threshold_more_runs_its_own_labels_alone(settings: Settings, storage: Storage) -> None:
    before = staged_plan(settings)
    assert [(t.name, t.stage) for t in before.trials] == [
        ("seeds", "seeds"),
        ("refine threshold=0.3", "refine"),
        ("refine threshold=0.5", "refine"),
    ]
    seeds, *labels = before.trials
    assert {t.input for t in labels} == {seeds.identity} and all(t.workers == 1 for t in labels)
    for trial in before.trials:
        write_end(storage, trial.identity, TrialStatus.FINISHED, "")
    more = staged_plan(settings, refine=thresholds(0.3, 0.4, 0.5))
    assert {t.name for t in more.trials if t.identity not in more.finished} == {"refine threshold=0.4"}
    assert more.sweep != before.sweep and more.file.metric == LABEL_SCORE
    assert more.scored_by == {"seeds": "val/seg/single/miou"}  # so that the best checkpoint is known of each network


def test_seeds_are_the_trial_of_a_sweep_without_stages(settings: Settings) -> None:
    alone = tiny_plan(settings, set=SEEDS)
    assert staged_plan(settings).trials[0].identity == alone.trials[0].identity


def test_what_follows_a_change_is_other_work(settings: Settings) -> None:
    again = {"of": "refine", "refine": {"kind": "par", "par": {"iterations": 1}}}
    one, other = (staged_plan(settings, again=again, overrides={"seeds.loss.mcc": x}).trials for x in (0.1, 0.2))
    assert not {t.identity for t in one} & {t.identity for t in other}
    changed = staged_plan(
        settings, again=again | {"set": {"refine.par.iterations": 2}}, overrides={"seeds.loss.mcc": 0.1}
    )
    same = {t.name for t in changed.trials if t.identity in {t.identity for t in one}}
    assert same == {"seeds", "refine threshold=0.3", "refine threshold=0.5"}


def test_every_configuration_runs_on_every_one_before_it_with_its_seed(settings: Settings) -> None:
    seeds = {"base": "tiny", "set": SEEDS, "parameters": {"loss.mcc": [0, 0.5]}}
    sure = {"of": "seeds", "refine": {"kind": "none"}, "points": [{"name": "sure", "set": {"refine.confidence": 0.6}}]}
    made = staged_plan(settings, seeds=seeds, other=sure)
    labels = {t.name: t.varied for t in made.trials if t.stage != "seeds"}
    assert labels["refine mcc=0.5 threshold=0.3"] == {"loss.mcc": "0.5", "refine.threshold": "0.3"}
    assert labels["other mcc=0 sure"] == {"loss.mcc": "0", "refine.confidence": "0.6"}
    assert len(made.trials) == 2 * (1 + 2 + 1)


def test_trials_of_several_seeds_share_a_configuration(settings: Settings) -> None:
    file = staged().model_copy(update={"seeds": (0, 1)})
    made = plan_stages(file, "s.yaml", settings=settings, estimate=False)
    by_identity = {t.identity: t for t in made.trials}
    assert [t.name for t in made.trials if t.stage == "seeds"] == ["seeds s0", "seeds s1"]
    assert all(t.seed == by_identity[t.input].seed for t in made.trials if t.input)
    assert len({t.point for t in made.trials}) == 3


def test_equal_configurations_are_planned_once_and_what_follows_them_too(settings: Settings) -> None:
    twice = thresholds(0.3) | {"points": [{"name": "again", "set": {"refine.threshold": 0.3}}]}
    made = staged_plan(settings, refine=twice, after={"of": "refine", "refine": {"kind": "par"}})
    assert made.duplicates == ("refine again",)
    assert [t.name for t in made.trials if t.stage == "after"] == ["after threshold=0.3"]


def test_stages_that_vary_the_same_name_say_whose_it_is(settings: Settings) -> None:
    again = {"of": "refine", "refine": {"kind": "par"}, "parameters": {"refine.confidence": [0.2]}}
    made = staged_plan(settings, refine=thresholds(0.3) | {"parameters": {"refine.confidence": [0.1]}}, again=again)
    last = made.trials[-1]
    assert last.name == "again refine:confidence=0.1 again:confidence=0.2"
    assert last.varied == {"refine/refine.confidence": "0.1", "refine.confidence": "0.2"}


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        (
            {"metric": "val/cam/ms/miou"},
            "s.yaml: metric: 'val/cam/ms/miou': is recorded by stage seeds, not by",
        ),
        (
            {"metric": "val/pseudo_label/ms/mio"},
            "s.yaml: metric: 'val/pseudo_label/ms/mio': labels are not scored so",
        ),
        ({"refine": {"of": "seeds", "refine": {"kind": "crff"}}}, "s.yaml: stages.refine.refine: kind"),
        (
            {"refine": {"of": "seeds", "refine": {"kind": "none", "treshold": 0.4}}},
            "s.yaml: stages.refine.refine: treshold: unknown field, did you mean threshold?",
        ),
        ({"refine": thresholds(0.3, 1.5)}, "s.yaml: stages.refine.refine: threshold: 1.5: must be at most 1"),
        (
            {"again": {"of": "refine", "refine": {"kind": "random_walk"}}},
            "s.yaml: stages.again.refine: kind: random_walk: needs a network's attention",
        ),
        (
            {"again": {"of": "refine", "refine": {"kind": "par", "certainty": 0.8}}},
            "s.yaml: stages.again.refine: certainty: is of a label set without confidence; those of the stage before",
        ),
        (
            {"again": {"of": "refine", "refine": {"kind": "par", "threshold": 0.3}}},
            "s.yaml: stages.again.refine: threshold: is of class maps",
        ),
        (
            {
                "seeds": {"base": "slrnet-tiny", "set": SHAPES},
                "refine": {"of": "seeds", "refine": {"seeds": "aux_cam"}},
            },
            "s.yaml: stages.refine.refine: seeds: 'aux_cam': method slrnet has cam",
        ),
        (
            {"refine": {"of": "seeds", "refine": {"kind": "irn"}}},
            "s.yaml: stages.refine.network: is missing: irn takes a trained network: name a stage of method irn, or",
        ),
        (
            {"other": {"base": "toco-tiny", "set": SHAPES}}
            | {"refine": {"of": "seeds", "network": "other", "refine": {"kind": "irn"}}},
            "s.yaml: stages.refine.network: trains method toco; irn takes one of method irn",
        ),
        (
            BOUNDARIES | {"refine": BOUNDARIES["refine"] | {"set": {"refine.irn.network": "x.pt"}}},
            "s.yaml: stages.refine.refine.irn.network: x.pt: the stage has a network already; take one out",
        ),
        (
            BOUNDARIES | {"refine": {"of": "seeds", "network": "boundaries", "refine": {"kind": "par"}}},
            "s.yaml: stages.refine.network: boundaries: no kind of its refinement takes a trained network",
        ),
        (
            {"segment": {"of": "refine", "base": "tiny", "set": SHAPES}},
            "s.yaml: stages.segment.base: tiny: method mcc trains on image-level labels and takes no label maps",
        ),
        (
            {"seeds": {"base": "tiny", "set": SHAPES | {"loss.mc": 1}}},
            "s.yaml: stages.seeds: set: loss.mc: unknown",
        ),
        ({"seeds": {"base": "tinny", "set": {}}}, "s.yaml: stages.seeds.base: tinny: neither a preset"),
    ],
)
def test_a_mistake_is_one_line(settings: Settings, fields: dict[str, Any], expected: str) -> None:
    with pytest.raises(UsageError) as caught:
        staged_plan(settings, **fields)
    assert str(caught.value).startswith(expected) and len(str(caught.value).splitlines()) == 1


def test_the_plan_is_shown_as_a_tree_with_the_time_of_each(settings: Settings, storage: Storage) -> None:
    made = staged_plan(settings, again={"of": "refine", "refine": {"kind": "par"}})
    seeds, labels, *_ = made.trials
    write_end(storage, seeds.identity, TrialStatus.FINISHED, "")
    storage.write(*speed_record(speed_profile(seeds.experiment, 1.0, 0.0), "a", Speed(10.0, 4.0)))
    profile = refinement_profile(labels.experiment, labels.refine or {}, 1.0, 0.0)
    storage.write(*speed_record(profile, "b", Speed(2.0, None)))
    left = [t for t in made.trials if t is not seeds]
    whole, each = estimate_stages(left, made.indexes, 2, 1.0, 0.0, storage, may_probe=False)
    assert each[labels.identity] == pytest.approx(12 + 2.0 * 12)  # 8 training images and 4 for validation
    assert whole is not None and "1 earlier refinement" in whole.source
    console = Console(width=120, file=io.StringIO())
    print_plan(replace(made, seconds=each, finished=frozenset([seeds.identity])), console)
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert lines[1].startswith("seeds ") and lines[1].rstrip().endswith("done before")
    assert lines[2].startswith("├ refine threshold=0.3") and "36 s" in lines[2]
    assert lines[3].startswith("│ └ again threshold=0.3") and lines[5].startswith("  └ again threshold=0.5")


def test_the_shipped_pipeline_trains_its_seeds_once_and_a_network_on_each_set(settings: Settings) -> None:
    file = Path(__file__).parents[3] / "sweeps" / "pipeline.yaml"
    few = {"data.shapes_train": 8, "data.shapes_val": 4, "data.shapes_size": 48}
    made = plan_stages(load_stages(file), str(file), few, settings=settings, estimate=False)
    assert [t.stage for t in made.trials] == ["seeds", "refine", "refine", "segment", "segment"]
    by_identity = {t.identity: t for t in made.trials}
    for trial in made.trials:
        if trial.stage == "segment":
            assert by_identity[str(trial.input)].stage == "refine"
            source = trial.experiment.model_dump(mode="json")["labels"]["source"]
            assert source == f"labels/{trial.input}" and "labels.source" not in trial.varied
    assert {t.workers for t in made.trials} == {1} and made.file.metric == "val/seg/single/miou"
    rate = few | {"segment.optim.lr": 0.01}
    other = plan_stages(load_stages(file), str(file), rate, settings=settings, estimate=False)
    changed = {t.stage for t in other.trials if t.identity not in by_identity}
    assert changed == {"segment"}


def test_images_of_other_data_than_the_seeds_are_refused(settings: Settings) -> None:
    segment = {"of": "refine", "base": "segmentation-tiny", "set": SHAPES | {"data.shapes_seed": 1}}
    with pytest.raises(UsageError, match=r"stages\.segment: data: other images than those of stage seeds"):
        staged_plan(settings, segment=segment)


def test_a_refinement_that_brings_a_network_along_is_of_both(settings: Settings) -> None:
    made = staged_plan(settings, **BOUNDARIES)
    seeds, unsure, boundaries, walked = made.trials
    assert [t.stage for t in made.trials] == ["seeds", "unsure", "boundaries", "refine"]
    assert walked.inputs == (seeds.identity, boundaries.identity) and boundaries.inputs == (unsure.identity,)
    assert walked.refine == {"kind": ["irn"], "irn": {"log_steps": 2}} and walked.experiment == seeds.experiment
    document = plan_document(made, ["mcc"], None)
    assert document["trials"][-1]["network"] == boundaries.identity and "network" not in document["trials"][1]
    assert followers(document["trials"], [boundaries.identity]) == [boundaries.identity, walked.identity]
    assert last_stages(document) == {"refine"}
    other = staged_plan(settings, **BOUNDARIES, overrides={"boundaries.walk.power": 9}).trials
    assert [one.identity == two.identity for one, two in zip(made.trials, other, strict=True)] == [
        True,
        True,
        False,
        False,
    ]
    console = Console(width=120, file=io.StringIO())
    print_plan(made, console)
    told = console.file.getvalue()  # type: ignore[attr-defined]
    assert "└ refine" in told and "labels, with boundaries" in told


def network_file(method: str, file: Path) -> Path:
    torch.manual_seed(0)
    state = random_network(smallest(method), 3).state_dict()
    save(Checkpoint(smallest(method), ("a", "b", "c"), 6, 0, dict(state), None, {}), file)
    return file


def test_a_networks_file_is_named_whole_checked_and_seen_by_every_machine(
    settings: Settings, storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def made(file: str, *, distant: bool = False) -> Trial:
        stage = {"of": "seeds", "refine": {"kind": "irn", "irn": {"network": file}}}
        return list(StageTrials(staged(refine=stage), "s.yaml", tmp_path, storage, distant=distant).trials.values())[-1]

    file = network_file("irn", tmp_path / "irn.pt")
    monkeypatch.chdir(tmp_path)
    walked = made("irn.pt")
    assert walked.refine is not None
    assert walked.refine["irn"] | {"network": str(file), "digest": file_digest(file)} == walked.refine["irn"]
    where = r"^s\.yaml: stages\.refine\.refine"
    with pytest.raises(UsageError, match=rf"{where}\.irn\.network: .*none\.pt: no such file"):
        made("none.pt")
    network_file("recam", tmp_path / "recam.pt")
    with pytest.raises(UsageError, match=rf"{where}: irn\.network: .*: of the method recam, which finds no boundaries"):
        made("recam.pt")
    with pytest.raises(UsageError, match=r"irn\.pt: other machines of the cluster may lack it"):
        made("irn.pt", distant=True)
    shared = storage.local("networks/irn.pt")
    if shared is not None:
        shared.parent.mkdir(parents=True)
        shared.write_bytes(file.read_bytes())
        assert made(str(shared), distant=True).identity == walked.identity  # where it lies is no part of it
        shared.unlink()
    monkeypatch.setattr(identity, "method_source", lambda method: f"changed {method.name}")
    assert made("irn.pt").identity != walked.identity


def test_a_network_is_brought_to_what_it_comes_of_with_its_seed(settings: Settings) -> None:
    """Of two classifiers and two thresholds: each pair of seeds and boundaries that are of the same classifier."""
    seeds = {"base": "tiny", "set": SEEDS, "parameters": {"loss.mcc": [0, 0.5]}}
    unsure = BOUNDARIES["unsure"] | {"parameters": {"refine.foreground": [0.5, 0.6]}}
    file = staged(**BOUNDARIES | {"seeds": seeds, "unsure": unsure}).model_copy(update={"seeds": (0, 1)})
    made = plan_stages(file, "s.yaml", settings=settings, estimate=False)
    walked = [t for t in made.trials if t.stage == "refine"]
    known = {t.identity: t for t in made.trials}
    assert len(made.trials) == 2 * (2 + 4 + 4 + 4) and len(walked) == 8
    for trial in walked:
        boundaries = known[str(trial.network)]
        assert known[str(boundaries.input)].input == trial.input and boundaries.seed == trial.seed
    assert walked[0].name == "refine mcc=0 foreground=0.5 s0"
    assert walked[0].varied == {"loss.mcc": "0", "refine.foreground": "0.5"}


def test_what_takes_no_network_is_of_its_maps_alone(settings: Settings) -> None:
    kinds = BOUNDARIES["refine"] | {"refine": {"kind": "none"}, "parameters": {"refine.kind": ["none", "irn"]}}
    unsure = BOUNDARIES["unsure"] | {"parameters": {"refine.foreground": [0.5, 0.6]}}
    made = staged_plan(settings, **BOUNDARIES | {"unsure": unsure, "refine": kinds})
    walked = [(t.name, t.network is None) for t in made.trials if t.stage == "refine"]
    assert walked == [
        ("refine kind=none", True),
        ("refine foreground=0.5 kind=irn", False),
        ("refine foreground=0.6 kind=irn", False),
    ]
    assert not made.duplicates


def test_trials_wait_for_their_inputs_in_the_estimate() -> None:
    seconds = {"a": 10.0, "b": 5.0, "c": 5.0, "d": 1.0}
    inputs = {"b": ("a",), "c": ("a",), "d": ("x",)}
    assert makespan(seconds, inputs, 1) == 21 and makespan(seconds, inputs, 2) == 15
    assert makespan(seconds, inputs | {"d": ("b", "c")}, 3) == 16  # what takes from two begins after the later
    assert makespan({}, {}, 2) == 0


def test_records_say_what_follows_a_trial_and_what_the_sweep_is_for(settings: Settings) -> None:
    made = staged_plan(settings, again={"of": "refine", "refine": {"kind": "par"}})
    document = plan_document(made, ["mcc"], None)
    seeds, first, *_ = document["trials"]
    assert followers(document["trials"], [seeds["identity"]]) == [t.identity for t in made.trials]
    assert len(followers(document["trials"], [first["identity"]])) == 2
    assert last_stages(document) == {"again"}
    plain = plan_document(tiny_plan(settings), ["mcc"], None)
    assert last_stages(plain) == {""} and "stage" not in plain["trials"][0]
