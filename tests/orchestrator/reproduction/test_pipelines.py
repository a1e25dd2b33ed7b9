"""Rows of several stages: one sweep of a whole table, what it trains, costs and scores."""

from __future__ import annotations

import zipfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from staged import SHAPES
from tiny_clip import SMALL

from mcc_core import checkpoint as checkpoints
from mcc_core.checkpoint import Checkpoint
from mcc_core.data.index_file import IndexFile, write_index
from mcc_core.data.voc import VOC_CLASSES
from mcc_core.errors import UsageError
from mcc_core.experiment_files import resolve
from mcc_core.validation import validate
from orchestrator.execution.choose_queue import queue_of
from orchestrator.planning.configurations import Trial
from orchestrator.planning.plan import Plan
from orchestrator.planning.stage_plan import plan_stages
from orchestrator.records import layout
from orchestrator.records.budget import Meter
from orchestrator.reproduction.bundle import write_bundle
from orchestrator.reproduction.costs import cost_rows, row_costs
from orchestrator.reproduction.numbers import numbers
from orchestrator.reproduction.report import write_reproduction
from orchestrator.reproduction.runs import experiments, plan_table, table_sweep
from orchestrator.reproduction.scores import given, score, trained
from orchestrator.reproduction.stages import row_of
from orchestrator.settings import Settings
from orchestrator.spec.budget import Budget
from orchestrator.spec.paper_table import differences, load_table, table_experiment, with_given, with_rows
from orchestrator.spec.pipeline import FOLDER, Pipeline, load_pipeline
from orchestrator.spec.stages_file import StagesFile, load_stages
from orchestrator.storage.store import Storage
from orchestrator.worker.assignment import Assignment
from orchestrator.worker.loop import train_loop

SWEEPS = Path(__file__).parents[3] / "sweeps"
PIPELINES = sorted(file.stem for file in FOLDER.glob("*.yaml"))


def sweep(only: str, scale: str = "tiny", changes: dict[str, Any] | None = None) -> StagesFile:
    made = table_sweep(with_rows(load_table("voc-table1"), only.split(",")), scale, Path("data"), (0,), changes)
    assert isinstance(made, StagesFile)
    return made


@pytest.mark.parametrize("name", PIPELINES)
def test_a_shipped_sweep_is_the_row_at_tiny_scale(name: str) -> None:
    """So that its trials are the same, and what one trained the other finds."""
    pipeline = load_pipeline(name)
    assert load_stages(SWEEPS / f"{name}_pipeline.yaml").stages == pipeline.tiny
    assert [(s.of, s.network, s.trains) for s in pipeline.stages.values()] == [
        (s.of, s.network, s.trains) for s in pipeline.tiny.values()
    ]


def test_a_table_is_one_plan_whose_pipelines_are_those_of_the_sweep_files(settings: Settings) -> None:
    table = with_rows(load_table("voc-table1"), ["mcc", "RECAM"])
    plan = plan_table(table, "voc-table1", "tiny", Path("data"), (0,), dict(SHAPES), settings, estimate=False)
    stages = ["ReCAM-seeds", "MCC", "ReCAM-unsure", "ReCAM-boundaries", "ReCAM-walk", "ReCAM-segment"]
    assert [trial.stage for trial in plan.trials] == stages and plan.file.name == "voc-table1-tiny"
    assert [row_of(table, trial) for trial in plan.trials] == [None, "MCC", None, None, None, "ReCAM"]
    file = SWEEPS / "recam_pipeline.yaml"
    alone = plan_stages(load_stages(file), str(file), dict(SHAPES), settings=settings, estimate=False)
    assert {t.identity for t in alone.trials} == {t.identity for t in plan.trials if t.stage != "MCC"}
    again = with_rows(load_table("voc-table1"), ["mcc"])
    (mcc,) = plan_table(again, "t", "tiny", Path("data"), (0,), dict(SHAPES), settings, estimate=False).trials
    assert mcc.identity in {t.identity for t in plan.trials} and row_of(again, mcc) == "MCC"


def test_fields_go_to_a_row_or_to_a_stage_of_it() -> None:
    changes = {"recam:train.eval_every": 7, "ReCAM:seeds.optim.lr": 0.5, "amn:walk.refine.threshold": 0.6}
    made = sweep("recam,amn,toco", changes=changes | {"toco:loss.seg_start": 9, "train.panels": 0})
    values = {name: stage.set for name, stage in made.stages.items()}
    lasting = {name for name, fields in values.items() if fields.get("train.eval_every") == 7}
    assert lasting == {"ReCAM-seeds", "ReCAM-boundaries", "ReCAM-segment"}
    assert [name for name, fields in values.items() if fields.get("optim.lr") == 0.5] == ["ReCAM-seeds"]
    assert values["AMN-walk"] == {"refine.threshold": 0.6} and values["ToCo"]["loss.seg_start"] == 9
    assert all((fields.get("train.panels") == 0) == made.stages[name].trains for name, fields in values.items())
    with pytest.raises(UsageError, match=r"--set: ReCAM-seeds\.loss\.nothing: no stage has it"):
        sweep("recam", changes={"recam:loss.nothing": 1})


def test_a_row_that_needs_what_is_not_given_stays_printed_and_is_named() -> None:
    for name, values in (("voc-table1", {"val": 0.711, "test": 0.714}), ("coco-table1", {"val": 0.454})):
        whole = load_table(name)
        table, (line,) = with_given(whole, ())
        assert "CLIP-ES" in whole.points and "CLIP-ES" not in table.points and "MCC" in table.points
        assert {p.method: p.values for p in table.printed}["CLIP-ES (multi-stage, ResNet101, I+L)"] == values
        assert line.startswith("CLIP-ES is not trained: give --set CLIP-ES:clip.weights=FILE")
        for given_field in ("clip.weights", "clip-es:clip.weights", "CLIP-ES:seeds.clip.weights"):
            assert with_given(whole, [given_field]) == (whole, [])
    with pytest.raises(UsageError, match="--only CLIP-ES: CLIP-ES is not trained: give"):
        with_given(with_rows(whole, ["clip-es"]), (), ["clip-es"])


def test_a_row_that_begins_with_a_frozen_clip_is_planned(settings: Settings) -> None:
    table = with_rows(load_table("voc-table1"), ["clip-es"])
    changes = dict(SHAPES) | {f"CLIP-ES:{name}": value for name, value in SMALL.items()}
    plan = plan_table(table, "voc-table1", "tiny", Path("data"), (0,), changes, settings, estimate=False)
    assert [(t.stage, row_of(table, t)) for t in plan.trials] == [
        ("CLIP-ES-seeds", None),
        ("CLIP-ES-segment", "CLIP-ES"),
    ]
    coco = load_table("coco-table1")
    made = table_sweep(coco, "paper", Path("x"), (0,))
    assert isinstance(made, StagesFile)
    seeds = made.stages["CLIP-ES-seeds"]
    assert seeds.frozen and seeds.set["clip.prompts"] == "coco" and seeds.set["data.root"] == "x"


def test_a_row_at_the_papers_scale_has_the_published_sizes() -> None:
    trained = dict(experiments(sweep("recam,amn", "paper", {"data.root": "x"})))
    assert trained["AMN-seeds"].train.iterations == 3305 and trained["ReCAM-seeds"].train.iterations == 5949
    assert all(str(experiment.data.root) == "x" for experiment in trained.values())
    coco = load_table("coco-table1")
    made = dict(experiments(table_sweep(coco, "paper", Path("x"), (0,))))
    assert made["AMN-seeds"].train.iterations == made["AMN-amn"].train.iterations == 25865
    assert table_experiment(coco, "MCTformer").train.iterations == 100_000
    assert {e.data.train_split for e in made.values()} == {"train"}


def test_the_costs_of_a_row_are_those_of_its_stages(settings: Settings) -> None:
    table = with_rows(load_table("voc-table1"), ["recam", "mcc"])
    made = row_costs(table, table_sweep(table, "paper", Path("x"), (0, 1)), None, settings)
    told = {cost.point: cost for cost in made}
    assert [*told] == [*(f"ReCAM: {s}" for s in ("seeds", "unsure", "boundaries", "walk", "segment")), "MCC"]
    segment = told["ReCAM: segment"]
    assert segment.images == 2 * 200_000 and segment.pflop == pytest.approx(400_000 * 3.10 * 145 / 1e6)
    assert segment.gpu_hours and told["MCC"].gpu_hours == pytest.approx(2 * 2.733 * 4 * 13.86 / 42.8, rel=0.01)
    lines = {line[0]: line for line in cost_rows(made, "A100-40G", "GPU")}
    assert lines["ReCAM: walk (labels)"][3:5] == ["-", "-"] and lines["all"][-2].startswith("≥ ")


def test_a_segmentation_network_that_is_given_is_a_named_row_and_not_held_against_the_paper(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, storage=str(tmp_path), tracking_uri="")
    write_index(IndexFile(source="voc", classes=VOC_CLASSES, splits={"val": ()}, images={}), tmp_path)
    table, file = load_table("voc-table1"), tmp_path / "segment.pt"
    experiment = resolve("segmentation", {"data.root": str(tmp_path), "model.weights": "random"})
    checkpoints.save(Checkpoint(experiment, VOC_CLASSES, 1, 3, {}, None, {}), file)
    with pytest.raises(UsageError, match=r"the last stage of ReCAM, AMN, MCTformer, CLIP-ES: give ROW="):
        given(table, [str(file)], tmp_path, settings)
    assert [*given(table, [f"amn={file}"], tmp_path, settings).networks] == [("AMN", 3)]
    assert "of ours" in differences(table, "AMN", file, tmp_path)["configuration"]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"tiny": {"a": {"base": "tiny"}}}, "p: tiny: has stages a; expected a, b"),
        ({"last": "c"}, "p: last: 'c': expected a stage that trains"),
    ],
)
def test_a_pipeline_that_is_not_whole_is_refused(changes: dict[str, Any], expected: str) -> None:
    stages = {"a": {"base": "tiny"}, "b": {"of": "a", "refine": {"kind": "none"}}}
    with pytest.raises(UsageError, match=expected):
        validate(Pipeline, {"last": "a", "stages": stages, "tiny": stages} | changes, "p")


def run_here(plan: Plan, settings: Settings) -> None:
    """Run a plan's trials in this process, in the order in which its queue hands them out."""
    storage = Storage(settings.storage)

    def assign(trial: Trial, **changes: Any) -> Assignment:
        metric = plan.scored_by.get(trial.stage, plan.file.metric)
        return Assignment(
            **{name: getattr(trial, name) for name in ("identity", "name", "seed", "fingerprint", "input", "network")},
            experiment=trial.experiment.model_dump(mode="json"),
            refine=trial.refine,
            metric=metric,
            mode="max",
            storage=settings.storage,
            home=str(settings.home),
            stop_key="stop",
            launch="here",
            cpus_per_worker=1.0,
            gpus_per_worker=0.0,
        )

    queue = queue_of(plan, plan.trials, storage, assign, Meter(storage, plan.sweep, Budget()))
    while (task := queue.take()) is not None:
        storage.write(layout.environment(task.identity), b'{"mcc": "here"}')
        train_loop(asdict(task), by_itself=True)
        queue.ended(task.identity)
    assert queue.over()


@pytest.mark.slow
def test_a_row_of_several_stages_end_to_end(settings: Settings, tmp_path: Path) -> None:
    """Trained, scored by its own protocol and by MCC's, on the page with its ladder, and in the bundle."""
    table = with_rows(load_table("voc-table1"), ["recam"])
    resnet = {"layers": [1, 1, 1, 1], "channels": [4, 4, 8, 8]}
    few = SHAPES | {"train.iterations": 4, "train.batch_size": 2, "train.crop": 32, "train.eval_every": 2}
    few |= {f"recam:{stage}.model.backbone_args": resnet for stage in ("seeds", "boundaries")}
    few |= {"recam:seeds.loss.recam_start": 2, "recam:seeds.optim.restart": 2, "recam:boundaries.relations.radius": 3}
    few |= {"recam:segment.model.backbone_args": resnet | {"stem_width": 8}}
    plan = plan_table(table, "voc-table1", "tiny", Path("data"), (0,), few, settings, estimate=False)
    run_here(plan, settings)
    networks = trained(plan, "tiny", settings, table)
    assert [*networks.networks] == [("ReCAM", 0)]
    lines = score(table, networks, settings, tmp_path / "out", 0, lambda what, done, total: None)
    line = next(line for line in lines if line.seeds)
    assert line.target.point == "ReCAM" and line.common and "begins from ImageNet" in line.verdict
    said = numbers(lines, table, networks.networks)
    pages = write_reproduction("voc-table1", table, lines, plan, settings, tmp_path / "out", "as MCC's", said)
    text = pages[1].read_text()
    assert "What each stage reached" in text and "| ReCAM-walk | - | labels |" in text
    assert "mcc reproduce voc-table1 --scale tiny --only ReCAM" in text
    bundle = write_bundle(
        tmp_path / "all.zip",
        "voc-table1",
        table,
        lines,
        said,
        networks.networks,
        plan,
        settings,
        tmp_path / "out",
        ["mcc"],
    )
    with zipfile.ZipFile(bundle) as archive:
        walk = next(trial for trial in plan.trials if trial.stage == "ReCAM-walk")
        assert (
            f"inputs:\n- {walk.input}\n- {walk.network}"
            in archive.read(f"all/trials/{walk.identity}/experiment.yaml").decode()
        )
        assert b"ReCAM" in archive.read("all/table.tex")
