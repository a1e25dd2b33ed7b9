"""`mcc refine`: from names to label sets, and what it says."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from trained import smallest
from typer.testing import CliRunner

from mcc_core import checkpoint as checkpoints
from mcc_core.checkpoint import Checkpoint
from mcc_core.data.label_maps import pack_label_set, read_label_set
from mcc_core.data.shapes import CLASSES
from mcc_core.errors import UsageError
from mcc_core.methods.registry import network_of
from orchestrator.cli.app import app
from orchestrator.settings import Settings
from orchestrator.workflows.refinement import prepared, split_names

SHAPES = [f"--set=data.shapes_{name}" for name in ("train=8", "val=4", "size=48")]


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("refine")
    experiment = smallest("mcc")
    torch.manual_seed(0)
    weights = network_of(experiment, len(CLASSES)).state_dict()
    checkpoints.save(Checkpoint(experiment, CLASSES, 0, 0, weights, None, {}), folder / "net.pt")
    return folder


def run(work: Path, *arguments: str, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("MCC_HOME", str(work / "home"))
    monkeypatch.chdir(work)
    result = CliRunner().invoke(app, list(arguments), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_a_network_then_its_labels(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chain = ("--kind", "random_walk,crf", "--set", "crf.iterations=2")
    out = run(work, "refine", "net.pt", *chain, "--split", "train,val", "--out", "first", monkeypatch=monkeypatch)
    first = read_label_set(work / "first")
    assert f"12 label maps in first, label set {first.identity}" in out
    assert "scored on the masks of 8 of train, 4 of val" in out and "train refined" in out
    assert first.origin["refine"]["kind"] == ["random_walk", "crf"]
    pack_label_set(first, work / "first.zip")
    more = ("--kind", "par", "--data", "tiny", *SHAPES, "--limit", "3", "--out", "second")
    out = run(work, "refine", "first.zip", *more, monkeypatch=monkeypatch)
    assert "3 label maps in second" in out and read_label_set(work / "second").origin["labels"] == first.identity


@pytest.mark.parametrize(
    ("kind", "changes", "said"),
    [
        ("crff", {}, r"^--set: kind\[0\]: 'crff': expected"),
        ("crf", {"treshold": 0.3}, "^--set: treshold: unknown field, did you mean threshold"),
        ("crf", {"kind": "par"}, "^--set kind: --kind says it"),
        ("none", {"data.rot": "x"}, "^--set data: rot: unknown field, did you mean root"),
    ],
)
def test_mistakes_are_one_line(work: Path, kind: str, changes: dict[str, object], said: str) -> None:
    with pytest.raises(UsageError, match=said) as error:
        prepared(str(work / "net.pt"), kind, changes, Settings.at(work / "home"))
    assert "\n" not in str(error.value)


def test_splits_and_data_are_named(work: Path) -> None:
    assert split_names("val, train") == ["train", "val"]
    with pytest.raises(UsageError, match="--split test: not one of train, val"):
        split_names("test")
    with pytest.raises(UsageError, match="--data nowhere: neither a preset"):
        prepared(str(work / "net.pt"), "none", {}, Settings.at(work / "home"), data="nowhere")
