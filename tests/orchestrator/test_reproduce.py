"""The paper's tables: what is shipped, what is said when data are missing, what a published checkpoint gives."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import archives_mini as mini
import pytest
import torch

from mcc_core.data.prepare import finish
from mcc_core.data.prepare_voc import draft_voc
from mcc_core.errors import UsageError
from orchestrator.reproduce import Line, Target, load_table, rows, short_rows, table_names, table_sweep
from orchestrator.reproduce import _line as judged

LAYOUT = json.loads((Path(__file__).parents[1] / "data" / "golden" / "checkpoint_layout.json").read_text())


def mcc(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from orchestrator.cli import main; main()", "reproduce", *arguments]
    env = os.environ | {"MCC_HOME": str(folder / "home"), "HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "hf")}
    env |= {"COLUMNS": "160", "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize("name", table_names())
def test_shipped_tables_are_sweeps_with_targets(name: str) -> None:
    table = load_table(name)
    for scale in ("paper", "tiny"):
        sweep = table_sweep(table, scale, Path("data"), (0, 1))
        assert {target.point for target in table.targets} == {point.name for point in sweep.points}
        assert sweep.seeds == (0, 1) and sweep.base == ("tiny" if scale == "tiny" else name.split("-")[0])
    with pytest.raises(UsageError, match="voc-table9: no such table; coco-table1, voc-table1"):
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
    line = rows([verdict({0: 0.694, 1: 0.697})], table)[1]
    assert line[3:7] == ["69.8", "0: 69.4, 1: 69.7", "69.5 ± 0.2", "-0.2"]
    others = rows([], table)[1:]
    assert others and all(row[4:7] == ["", "", ""] and row[7] == "not measured: as printed" for row in others)
    assert len({len(row) for row in short_rows([verdict({})], table)}) == 1


def test_what_is_missing_is_one_list(tmp_path: Path) -> None:
    done = mcc(tmp_path, "voc-table1")
    assert done.returncode == 2
    head, data, weights = done.stderr.splitlines()
    assert head == "error: voc-table1 needs what is not here:"
    assert "data/voc/index.json; mcc data prepare voc" in data and "--set model.weights=FILE" in weights
    assert not list(tmp_path.glob("reproductions")) and not (tmp_path / "home").exists()
    assert "voc-table2" in mcc(tmp_path, "--list").stdout
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
    assert "2 images in train, officially 1464" in reason and "network (deit_tiny_patch16_224)" in reason
    out = tmp_path / "reproductions" / "voc-table1-weights"
    text = (out / "table.md").read_text()
    assert "69.8" in text and "not measured: only the benchmark's server has the masks" in text
    assert "<table>" in (out / "table.html").read_text()
    with tarfile.open(out / "MCC-0-test.tar.gz") as archive:
        assert archive.getnames() == ["results/VOC2012/Segmentation/comp6_test_cls/x1.png"]
