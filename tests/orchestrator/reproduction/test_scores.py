"""The paper's tables: what is shipped, what is said when data are missing, what a published checkpoint gives."""

from __future__ import annotations

import json
import math
import re
import subprocess
import tarfile
import zipfile
from dataclasses import replace
from pathlib import Path

import archives_mini as mini
import commands
import pytest
import torch
from experiments import mcc_experiment

from mcc_core import checkpoint as checkpoints
from mcc_core.checkpoint import Checkpoint
from mcc_core.data.index_file import IndexedImage, IndexFile, write_index
from mcc_core.data.prepare import finish
from mcc_core.data.prepare_voc import draft_voc
from mcc_core.data.voc import VOC_CLASSES
from mcc_core.errors import UsageError
from mcc_core.experiment_files import resolve
from mcc_core.methods.registry import method_of, random_network
from mcc_core.validation import flatten
from orchestrator.reproduction.lines import Line, Origin, aspects, compared, judged, protocol_text, rows, short_rows
from orchestrator.reproduction.runs import experiments, table_sweep
from orchestrator.reproduction.scores import given
from orchestrator.reproduction.sheet import write_sheet
from orchestrator.settings import Settings
from orchestrator.spec.paper_table import (
    Target,
    differences,
    load_table,
    table_experiment,
    table_names,
    with_points,
    with_rows,
)
from orchestrator.spec.pipeline import stage_name
from orchestrator.spec.stages_file import StagesFile
from orchestrator.spec.sweep_file import SweepFile

LAYOUT = json.loads((Path(__file__).parents[2] / "data" / "golden" / "checkpoint_layout.json").read_text())


def mcc(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    env = {"MCC_HOME": str(folder / "home"), "HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "hf")}
    return commands.run("reproduce", *arguments, cwd=folder, env=env | {"COLUMNS": "160", "OMP_NUM_THREADS": "1"})


@pytest.mark.parametrize("name", table_names())
def test_shipped_tables_are_sweeps_with_targets(name: str) -> None:
    table = load_table(name)
    for scale in ("paper", "tiny"):
        sweep = table_sweep(table, scale, Path("data"), (0, 1))
        rows = table.points or ((sweep.base,) if isinstance(sweep, SweepFile) else ())
        assert table.sheet or table.figure or {target.point for target in table.targets} == {*rows}
        assert [bool(table.figure), bool(table.sheet), bool(table.targets)].count(True) == 1
        assert {*table.rows} <= {*table.points} and table.common in {None, *table.points}
        assert {curve.point for curve in table.curves} <= {*table.points}
        assert sweep.seeds == (0, 1) and (sweep.name == name) == (scale == "paper")
        if isinstance(sweep, StagesFile):
            assert table.pipelines and {*sweep.last()} == {
                stage_name(row, table.pipelines[row].last) if row in table.pipelines else row for row in table.points
            }
            data = "shapes" if scale == "tiny" else "voc"
            assert {experiment.data.name for _, experiment in experiments(sweep)} == {data}
            assert all(table.row(row).note and table.row(row).work for row in table.pipelines)
        else:
            assert [row for row, _ in experiments(sweep)] == [*table.points] or table.figure
            assert sweep.base == ("tiny" if scale == "tiny" else name.split("-")[0])
    with pytest.raises(UsageError, match="voc-table9: no such table; coco-table1, voc-fig3, voc-fig4, voc-table1"):
        load_table("voc-table9")


def test_verdicts() -> None:
    target = Target(point="a", split="val", protocol="ms_crf", value=0.698, where="Table 1")
    key = "val/seg/ms_crf/miou"

    def verdict(scores: dict[int, float], strange: str = "", one: Target = target) -> Line:
        networks = {("a", seed): Path() for seed in scores}
        return judged(one, networks, {("a", seed): {key: value} for seed, value in scores.items()}, strange)

    assert verdict({0: 0.694, 1: 0.697}).verdict == "within 0.5 points"
    assert verdict({0: 0.690, 1: 0.691}).verdict == "outside 0.5 points"
    assert verdict({}).verdict == "not measured" and math.isnan(verdict({}).mean)
    assert verdict({0: 0.698}, "data (x)").verdict == "not comparable: data (x)"
    server = target.model_copy(update={"server": True})
    assert verdict({0: 0.698}, one=server).seeds == {}  # a server's number is never filled in
    table = load_table("voc-table2")
    cells = rows([verdict({0: 0.694, 1: 0.697})], table)[1]
    assert cells[3:7] == ["69.8", "0: 69.4, 1: 69.7", "69.5 ± 0.2", "-0.2"]
    others = rows([], load_table("voc-table1"))[1:]
    assert others and all(row[4:8] == [""] * 4 and row[8] == "not measured: as printed" for row in others)
    drawn = with_points(load_table("voc-fig4"), ["a", "b", "a"])
    assert [(t.point, t.protocol) for t in drawn.targets] == [("a", "cam"), ("a", "ms"), ("b", "cam"), ("b", "ms")]
    figure = verdict({0: 0.694}, "data (x)", drawn.targets[1].model_copy(update={"protocol": "ms_crf"}))
    assert figure.verdict == "no number is printed" and rows([figure], drawn)[1][3:7] == ["", "0: 69.4", "69.4", ""]
    assert len({len(row) for row in short_rows([verdict({})], table)}) == 1
    assert rows([verdict({0: 0.698}, "data (x)")], table)[1][6] == ""  # no difference between unlike numbers
    origin = Origin("ours", "1 x cpu")
    line = verdict({0: 0.694})
    line = replace(line, aspects=aspects(line, {}, origin))
    assert [a.name for a in line.aspects if a.same] == ["data", "configuration", "protocol"]
    assert rows([line], table)[1][7] == "within 0.5 points; code, environment, seed differ"
    assert not aspects(line, {"data": "x"}, origin)[1].same


@pytest.mark.parametrize(
    ("point", "changes", "reason"),
    [
        ("Baseline-MCC", {}, ""),
        ("Baseline", {"loss.mcc": 0}, ""),
        ("Baseline", {}, "loss.mcc=0.5 (published: 0.0)"),
        ("Baseline-MCC", {"loss.mcc": 0}, "loss.mcc=0.0 (published: 0.5)"),
        ("Baseline-MCC", {"model.weights": "random"}, "model.weights=random (published: pretrained on ImageNet)"),
        ("Baseline-MCC", {"model.weights": "/my/deit.pth", "train.workers": 4, "train.batch_size": 1}, ""),
        ("Baseline-MCC", {"train.batch_size": 1}, "1 images a step (published: 4)"),
        ("Baseline-MCC", {"compute.precision": "bfloat16"}, "compute.precision=bfloat16 (published: float32)"),
        ("Baseline-MCC", {"compute.compile": True, "train.panels": 0}, ""),
        (
            "Baseline-MCC",
            {"optim.lr": 1e-4, "train.crop": 224, "mask.scale": 2, "mask.ratio": 0.5},
            "optim.lr=0.0001 (published: 6e-05), train.crop=224 (published: 448), mask.ratio=0.5 (published: 0.95), "
            "and 1 more fields",
        ),
    ],
)
def test_what_differs_from_the_table_is_named(
    tmp_path: Path, point: str, changes: dict[str, object], reason: str
) -> None:
    table = load_table("voc-table2")
    image = IndexedImage(image="x.jpg", bytes=1, digest="0" * 32, size=(1, 1))
    names = tuple(f"{i}" for i in range(1449))
    index = IndexFile(source="voc", classes=VOC_CLASSES, splits={"val": names}, images=dict.fromkeys(names, image))
    write_index(index, tmp_path)
    experiment = mcc_experiment("voc", {"data.root": str(tmp_path)} | changes)
    file = tmp_path / "trained.pt"
    checkpoints.save(Checkpoint(experiment, VOC_CLASSES, 20_000, 0, {}, None, {}), file)
    assert ", ".join(differences(table, point, file, None).values()) == reason
    write_index(index.model_copy(update={"splits": {"val": names[:9]}}), tmp_path)
    assert differences(table, point, file, None)["data"].startswith("data (9 images in val, officially 1449)")
    assert flatten(table_experiment(table, "Baseline"))["loss.mcc"] == "0.0"


def test_rows_are_chosen_and_changed_alone(tmp_path: Path) -> None:
    table = with_rows(load_table("voc-table1"), ["toco", "SLRNET"])
    for scale in ("paper", "tiny"):
        changes = {"slrnet:model.weights": "random", "train.iterations": 10}
        made = dict(experiments(table_sweep(table, scale, tmp_path, (0,), changes)))
        assert [*made] == ["SLRNet", "ToCo"] and made["SLRNet"].model.weights == "random"
        assert {e.train.iterations for e in made.values()} == {10} and made["ToCo"].method == "toco"
    assert {target.point for target in table.targets} == {"SLRNet", "ToCo"}
    with pytest.raises(
        UsageError, match=r"--only: 'x': no such row; expected some of ReCAM, AMN, MCTformer, CLIP-ES, AFA, "
    ):
        with_rows(load_table("voc-table1"), ["x"])
    with pytest.raises(UsageError, match="has no rows but a grid"):
        with_rows(load_table("voc-fig4"), ["mcc"])
    with pytest.raises(UsageError, match=r"--set afa:loss.seg: afa: no row of .*; expected one of SLRNet, ToCo"):
        table_sweep(table, "paper", tmp_path, (0,), {"afa:loss.seg": 1})


def test_each_row_says_how_it_is_scored_and_all_are_scored_alike_too() -> None:
    """Scales, CRF and input size of the authors; beside them scores by one protocol, compared seed by seed."""
    table = load_table("voc-table1")
    told = {}
    for point in table.points:
        experiment = table_experiment(table, point)
        told[point] = protocol_text(method_of(experiment).evaluation(experiment, 20), "ms_crf")
    assert told["AFA"].startswith("long side 512, scales 1, 0.5, 0.75 and flips")
    assert told["AFA"].endswith("Gaussian 3/3, bilateral 64/5/4") and told["SLRNet"].endswith("bilateral 80/13/10")
    assert told["MCC"] == told["ToCo"] == told["FSR"] and "1, 1.25, 1.5" in told["MCC"]
    targets = {t.point: t for t in table.targets if t.split == "val"}
    lines = [
        Line(targets["AFA"], {0: 0.5, 1: 0.52}, "x", protocol=told["AFA"], common={0: 0.40, 1: 0.43}),
        Line(targets["MCC"], {0: 0.6, 1: 0.61}, "x", protocol=told["MCC"], common={0: 0.60, 1: 0.61}),
    ]
    head, *written = rows(lines, table)
    afa = dict(zip(head, written[len(written) - 2], strict=True))
    assert afa["configuration"] == "AFA (MiT-B1)" and afa["protocol"] == told["AFA"]
    assert afa["mean ± std"] == "51.0 ± 1.4" and afa["by MCC's protocol"] == "41.5 ± 2.1"
    assert all(row[2] == "printed" for row in written[:-2])  # the paper's other lines are above
    _, one, reference = compared(lines, table)
    assert one[2].startswith("-19.0 [-31.7, -6.3") and one[3] == "2" and reference[-1] == "reference"


def test_a_checkpoint_is_the_row_of_its_method(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, storage=str(tmp_path), tracking_uri="")
    write_index(IndexFile(source="voc", classes=VOC_CLASSES, splits={"val": ()}, images={}), tmp_path)
    files = {}
    for preset in ("voc", "toco", "slrnet"):
        files[preset] = str(tmp_path / f"{preset}.pt")
        experiment = resolve(preset, {"data.root": str(tmp_path), "model.weights": "random"})
        checkpoints.save(Checkpoint(experiment, VOC_CLASSES, 1, 3, {}, None, {}), Path(files[preset]))
    table = load_table("voc-table1")
    found = given(table, [files["voc"], files["toco"], f"fsr={files['slrnet']}"], tmp_path, settings)
    assert [*found.networks] == [("MCC", 3), ("ToCo", 3), ("FSR", 3)]  # a row that is named is believed
    with pytest.raises(UsageError, match=r"MCC, seed 3, was given before"):
        given(table, [files["voc"], f"mcc={files['voc']}"], tmp_path, settings)
    with pytest.raises(UsageError, match=r"no row x; expected FILE, or ROW=FILE with one of ReCAM, AMN, MCTformer"):
        given(table, [f"x={files['voc']}"], tmp_path, settings)
    with pytest.raises(UsageError, match="is of the method slrnet, of which Table 2"):
        given(load_table("voc-table2"), [files["slrnet"]], tmp_path, settings)


def test_what_is_missing_is_one_list(tmp_path: Path) -> None:
    done = mcc(tmp_path, "voc-table1")
    assert done.returncode == 2
    head, data, *weights = done.stderr.splitlines()
    assert head == "error: voc-table1 needs what is not here:"
    assert "looked for data/voc/index.json" in data and "mcc data prepare voc" in data
    told = "\n".join(weights)
    assert "SLRNet: looked for ilsvrc-cls" in told and "else --set ToCo:model.weights=FILE" in told
    asked = mcc(tmp_path, "voc-table1", "--plan", "--seeds", "0,1", "--only", "mcc", "--rate", "40", "--gpu", "H100")
    assert asked.returncode == 0 and "160,000    348  2 h 44 min x 4" in asked.stdout, asked.stderr
    assert "7.1" in asked.stdout and "on H100, at 40 images a second: 1.1 hours" in asked.stdout
    assert "data/voc/index.json" in asked.stdout
    assert not list(tmp_path.glob("reproductions")) and not (tmp_path / "home").exists()
    assert "voc-table2" in mcc(tmp_path, "--list").stdout
    (tmp_path / "x.pth").touch()
    figure = mcc(tmp_path, "voc-fig4", "--weights", "x.pth")
    assert figure.returncode == 2 and "a figure over many trainings" in figure.stderr
    every = mcc(tmp_path, "voc-table1", "--plan", "--rate", "4")
    assert every.returncode == 2 and "--rate 4: is of one row" in every.stderr


def test_a_tiny_plan_measures_each_row(tmp_path: Path) -> None:
    few = ("--set", "data.shapes_train=8", "--set", "data.shapes_val=4")
    plan = mcc(tmp_path, "voc-table1", "--scale", "tiny", "--plan", "--only", "mcc,slrnet", *few)
    rows_ = {line.split()[0]: line.split() for line in plan.stdout.splitlines() if line}
    assert rows_["MCC"][-6:-3] == ["0", "1,800", "-"] and "2,400" in rows_["SLRNet"], plan.stderr
    hours = [float(rows_[name][-1]) for name in ("MCC", "SLRNet", "all")]
    assert min(hours) > 0 and hours[2] == pytest.approx(hours[0] + hours[1], abs=0.011)


def test_a_published_checkpoint_on_the_miniature_voc(tmp_path: Path) -> None:
    """Layout of the authors' files; scored, held against the paper, not called comparable, packed for the server."""
    sources = [mini.voc(tmp_path / "a"), mini.sbd(tmp_path / "b"), mini.voc_test(tmp_path / "c")]
    finish(draft_voc(sources, tmp_path / "data"), tmp_path / "data")
    generator = torch.Generator().manual_seed(0)
    shapes = LAYOUT["voc_deit_tiny"].items()
    state = {f"module.{name}": 0.05 * torch.randn(shape, generator=generator) for name, shape in shapes}
    torch.save(state, tmp_path / "published.pth")
    done = mcc(tmp_path, "voc-table1", "--weights", "published.pth", "--data", "data", "--bundle", "all.zip")
    assert done.returncode == 0, done.stderr
    with zipfile.ZipFile(tmp_path / "all.zip") as archive:
        names = {name.removeprefix("all/") for name in archive.namelist()}
    assert {"README.txt", "table.md", "table.tex", "checkpoints.txt", "environment.json", "SHA256SUMS"} <= names
    reason = next(line for line in done.stdout.splitlines() if line.startswith("MCC: not comparable: "))
    assert (
        "2 images in train, officially 1464" in reason and "model.backbone=deit_tiny_patch16_224 (published: " in reason
    )
    out = tmp_path / "reproductions" / "voc-table1-weights"
    text = (out / "table.md").read_text()
    assert "69.8" in text and "not measured: only the benchmark's server has the masks" in text
    assert "<table>" in (out / "table.html").read_text()
    with tarfile.open(out / "MCC-0-test.tar.gz") as archive:
        assert archive.getnames() == ["results/VOC2012/Segmentation/comp6_test_cls/x1.png"]


def test_the_figure_has_images_in_rows_and_methods_in_columns(tmp_path: Path) -> None:
    finish(draft_voc([mini.voc(tmp_path / "a"), mini.sbd(tmp_path / "b")], tmp_path / "data"), tmp_path / "data")
    settings = Settings(home=tmp_path / "home", storage=str(tmp_path), tracking_uri="")
    table, files = load_table("voc-fig3"), []
    for preset in ("tiny", "afa-tiny"):
        fields = {"data.name": "voc", "data.root": str(tmp_path / "data"), "data.train_split": "train"}
        experiment = resolve(preset, fields)
        network = random_network(experiment, len(VOC_CLASSES))
        files.append(str(tmp_path / f"{preset}.pt"))
        saved = Checkpoint(experiment, VOC_CLASSES, 1, 0, network.state_dict(), None, {})
        checkpoints.save(saved, Path(files[-1]))
    found = given(table, files, tmp_path / "data", settings)
    page = write_sheet(table, found, settings, tmp_path / "out", lambda what, done, total: None)
    text = page.read_text()
    heads = re.findall(r"<th>(.*?)</th>", text)
    assert heads == [
        "image",
        "AFA (MiT-B1)",
        "MCC (DeiT-B)",
        "ground truth",
    ]  # in the table's order, none that is not given
    rows_ = text.split("<tr>")[2:]
    assert rows_ and all(row.count("<img") == 4 for row in rows_)
    assert all(row.rindex("ground truth of") > row.rindex("MCC (DeiT-B) on") for row in rows_)
    assert "long side 80" in text and "bilateral 121/5/4" in text and "http" not in text
    nothing = replace(found, networks={})
    with pytest.raises(UsageError, match="no network was trained or given"):
        write_sheet(table, nothing, settings, tmp_path / "none", lambda what, done, total: None)
