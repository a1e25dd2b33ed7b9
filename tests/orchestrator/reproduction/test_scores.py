"""The paper's tables: what is shipped, what is said when data are missing, what a published checkpoint gives."""

from __future__ import annotations

import json
import math
import subprocess
import tarfile
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
from mcc_core.validation import flatten
from orchestrator.reproduction.scores import Line, Origin, _aspects, rows, short_rows, table_sweep
from orchestrator.reproduction.scores import _line as judged
from orchestrator.spec.paper_table import Target, differences, load_table, table_experiment, table_names, with_points

LAYOUT = json.loads((Path(__file__).parents[2] / "data" / "golden" / "checkpoint_layout.json").read_text())


def mcc(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    env = {"MCC_HOME": str(folder / "home"), "HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "hf")}
    return commands.run("reproduce", *arguments, cwd=folder, env=env | {"COLUMNS": "160", "OMP_NUM_THREADS": "1"})


@pytest.mark.parametrize("name", table_names())
def test_shipped_tables_are_sweeps_with_targets(name: str) -> None:
    table = load_table(name)
    for scale in ("paper", "tiny"):
        sweep = table_sweep(table, scale, Path("data"), (0, 1))
        assert {target.point for target in table.targets} == {point.name for point in sweep.points}
        assert bool(table.figure) != bool(table.targets)
        assert sweep.seeds == (0, 1) and sweep.base == ("tiny" if scale == "tiny" else name.split("-")[0])
    with pytest.raises(UsageError, match="voc-table9: no such table; coco-table1, voc-fig4, voc-table1"):
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
    table = load_table("voc-table1")
    cells = rows([verdict({0: 0.694, 1: 0.697})], table)[1]
    assert cells[3:7] == ["69.8", "0: 69.4, 1: 69.7", "69.5 ± 0.2", "-0.2"]
    others = rows([], table)[1:]
    assert others and all(row[4:7] == ["", "", ""] and row[7] == "not measured: as printed" for row in others)
    drawn = with_points(load_table("voc-fig4"), ["a", "b", "a"])
    assert [(t.point, t.protocol) for t in drawn.targets] == [("a", "cam"), ("a", "ms"), ("b", "cam"), ("b", "ms")]
    figure = verdict({0: 0.694}, "data (x)", drawn.targets[1].model_copy(update={"protocol": "ms_crf"}))
    assert figure.verdict == "no number is printed" and rows([figure], drawn)[1][3:7] == ["", "0: 69.4", "69.4", ""]
    assert len({len(row) for row in short_rows([verdict({})], table)}) == 1
    assert rows([verdict({0: 0.698}, "data (x)")], table)[1][6] == ""  # no difference between unlike numbers
    origin = Origin("ours", "1 x cpu")
    line = verdict({0: 0.694})
    line = replace(line, aspects=_aspects(line, {}, origin))
    assert [a.name for a in line.aspects if a.same] == ["data", "configuration", "protocol"]
    assert rows([line], table)[1][7] == "within 0.5 points; code, environment, seed differ"
    assert not _aspects(line, {"data": "x"}, origin)[1].same


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


def test_what_is_missing_is_one_list(tmp_path: Path) -> None:
    done = mcc(tmp_path, "voc-table1")
    assert done.returncode == 2
    head, data, weights = done.stderr.splitlines()
    assert head == "error: voc-table1 needs what is not here:"
    assert (
        "looked for data/voc/index.json" in data
        and "mcc data prepare voc" in data
        and "--set model.weights=FILE" in weights
    )
    asked = mcc(tmp_path, "voc-table1", "--plan", "--seeds", "0,1", "--rate", "40", "--gpu", "H100")
    assert asked.returncode == 0 and "training images: 160,000" in asked.stdout, asked.stderr
    assert "on A100-40G: about 7.1 GPU-hours" in asked.stdout
    assert "on H100, at 40 images a second: 1.1 hours" in asked.stdout and "data/voc/index.json" in asked.stdout
    assert not list(tmp_path.glob("reproductions")) and not (tmp_path / "home").exists()
    assert "voc-table2" in mcc(tmp_path, "--list").stdout
    (tmp_path / "x.pth").touch()
    figure = mcc(tmp_path, "voc-fig4", "--weights", "x.pth")
    assert figure.returncode == 2 and "a figure over many trainings" in figure.stderr
    plan = mcc(tmp_path, "voc-table1", "--scale", "tiny", "--plan", "--rate", "10")
    assert "training images: 1,800" in plan.stdout and "at 10 images a second: 0.1 hours" in plan.stdout


def test_a_published_checkpoint_on_the_miniature_voc(tmp_path: Path) -> None:
    """Layout of the authors' files; scored, held against the paper, not called comparable, packed for the server."""
    sources = [mini.voc(tmp_path / "a"), mini.sbd(tmp_path / "b"), mini.voc_test(tmp_path / "c")]
    finish(draft_voc(sources, tmp_path / "data"), tmp_path / "data")
    generator = torch.Generator().manual_seed(0)
    shapes = LAYOUT["voc_deit_tiny"].items()
    state = {f"module.{name}": 0.05 * torch.randn(shape, generator=generator) for name, shape in shapes}
    torch.save(state, tmp_path / "published.pth")
    done = mcc(tmp_path, "voc-table1", "--weights", "published.pth", "--data", "data")
    assert done.returncode == 0, done.stderr
    reason = next(line for line in done.stdout.splitlines() if line.startswith("not comparable: "))
    assert (
        "2 images in train, officially 1464" in reason and "model.backbone=deit_tiny_patch16_224 (published: " in reason
    )
    out = tmp_path / "reproductions" / "voc-table1-weights"
    text = (out / "table.md").read_text()
    assert "69.8" in text and "not measured: only the benchmark's server has the masks" in text
    assert "<table>" in (out / "table.html").read_text()
    with tarfile.open(out / "MCC-0-test.tar.gz") as archive:
        assert archive.getnames() == ["results/VOC2012/Segmentation/comp6_test_cls/x1.png"]
