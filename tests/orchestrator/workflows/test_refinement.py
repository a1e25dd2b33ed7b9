"""`mcc refine`, `mcc export labels` and `mcc data corrected`: from names to label sets, and what they say."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer
from trained import smallest, trained
from typer.testing import CliRunner

from mcc_core import checkpoint as checkpoints
from mcc_core.checkpoint import Checkpoint
from mcc_core.data.index import build_index
from mcc_core.data.label_maps import LabelSetWriter, pack_label_set, read_label_set
from mcc_core.data.label_source import with_labels
from mcc_core.data.make_labels import label_set_of_masks
from mcc_core.data.shapes import CLASSES
from mcc_core.data.voc import palette_png
from mcc_core.errors import UsageError
from mcc_core.methods.registry import method_of, network_of
from orchestrator.cli.app import app
from orchestrator.planning.identity import trial_identity
from orchestrator.records import layout
from orchestrator.settings import Settings
from orchestrator.storage.store import Storage
from orchestrator.workflows.label_exchange import export_labels, import_labels
from orchestrator.workflows.refinement import find_labels, make, prepared, split_names

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
    more = ("--kind", "par", "--limit", "3", "--out", "second")
    out = run(work, "refine", "first.zip", *more, monkeypatch=monkeypatch)
    again = run(work, "refine", "first", *more[:-1], "third", "--data", "tiny", *SHAPES, monkeypatch=monkeypatch)
    assert (
        "3 label maps in second" in out
        and "3 label maps in third" in again
        and read_label_set(work / "second").origin["labels"] == first.identity
    )


def test_a_run_that_was_cut_off_goes_on(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(work)
    asked = prepared("net.pt", "none", {"threshold": 0.3}, Settings.at(work / "home"))

    def cut_off(done: int, total: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make(asked, Path("cut"), on_image=cut_off)
    assert not Path("cut").exists()
    out = run(work, "refine", "net.pt", "--set", "threshold=0.3", "--out", "cut", monkeypatch=monkeypatch)
    assert "3 of 8 images have labels from a run that was cut off" in out
    whole = make(asked, Path("whole")).labels
    assert read_label_set(Path("cut")).file == whole.file and {f.name for f in Path("cut").iterdir()} == {
        f.name for f in Path("whole").iterdir()
    }
    assert not list(work.glob(".*.unfinished"))

    def twice(done: int, total: int) -> None:
        make(asked, Path("once"))

    with pytest.raises(UsageError, match=r"^once: another run is making it"):
        make(asked, Path("once"), on_image=twice)
    with pytest.raises(UsageError, match=r"^whole: is there already"):
        make(asked, Path("whole"))


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


def test_labels_go_to_a_tool_and_come_back(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = run(work, "export", "labels", "net.pt", "--format", "voc", "--out", "tool", monkeypatch=monkeypatch)
    assert "tool: 8 label maps as PASCAL VOC" in out
    assert "back with: mcc data corrected tool --format voc --of tool-labels --out NEW" in out
    before = read_label_set(work / "tool-labels")
    name = before.names[0]
    changed = before.label(name)
    changed[:2] = 3
    (work / "tool" / "SegmentationClass" / f"{name}.png").write_bytes(palette_png(changed))
    back = ("data", "corrected", "tool", "--format", "voc", "--of", "tool-labels", "--out", "new")
    out = run(work, *back, monkeypatch=monkeypatch)
    pixels = int((changed != before.label(name)).sum())
    assert f"1 label maps changed ({pixels} pixels, such as {name}), 7 the same, 0 not in tool and kept, 0 new" in out
    after = read_label_set(work / "new")
    assert (after.label(name) == changed).all() and "train with --set labels.source=new\n" in out
    assert all((after.label(other) == before.label(other)).all() for other in before.names[1:])


def test_an_export_of_a_network_into_this_folder_and_one_that_was_cut_off(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings.at(work / "home")
    (work / "here").mkdir()
    monkeypatch.chdir(work / "here")
    export_labels(str(work / "net.pt"), "voc", Path(), settings)
    made = read_label_set(work / "here-labels")
    assert len(list((work / "here" / "SegmentationClass").iterdir())) == len(made.names) == 8
    monkeypatch.chdir(work)
    shutil.rmtree("here")
    with pytest.raises(UsageError, match="mcc export labels here-labels --format voc --out here writes what it has"):
        export_labels("net.pt", "voc", Path("here"), settings)
    assert export_labels("here-labels", "voc", Path("here"), settings).written.images == 8


def test_a_set_of_a_folder_of_maps_says_whose_they_are(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that it is exported without a word on its images."""
    folder = ("--set", f"data.root={work / 'prepared'}", *SHAPES)
    run(work, "data", "labels", "tiny", "--supervision", "full", *folder, "--out", "masks", monkeypatch=monkeypatch)
    maps = ("--maps", "masks/maps", *folder, "--out", "set")
    run(work, "data", "labels", "tiny", *maps, monkeypatch=monkeypatch)
    for name in ("masks", "set"):
        out = run(work, "export", "labels", name, "--format", "voc", "--out", f"voc-{name}", monkeypatch=monkeypatch)
        assert "8 label maps as PASCAL VOC" in out


def test_what_was_corrected_changes_what_is_trained(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(work, "export", "labels", "net.pt", "--format", "labelme", "--out", "shapes", monkeypatch=monkeypatch)
    for file in (work / "shapes").glob("*.json"):
        file.write_text(re.sub(r'"label": "(?!_)\w+"', '"label": "star"', file.read_text()))
    back = ("data", "corrected", "shapes", "--format", "labelme", "--of", "shapes-labels", "--out", "stars")
    run(work, *back, monkeypatch=monkeypatch)
    losses, identities = {}, set()
    for name in ("shapes-labels", "stars"):
        experiment = smallest("segmentation", **{"labels.source": work / name, "train.iterations": 3})
        index = with_labels(
            build_index(experiment.data, work / "home"), method_of(experiment).labels(experiment), work / "home"
        )
        identities.add(trial_identity(experiment, 0, index.fingerprint))
        losses[name] = trained(experiment, index, work / f"trained-{name}").losses
    assert len(identities) == 2 and losses["shapes-labels"][2] != losses["stars"][2]


def test_a_label_set_of_storage_is_found(work: Path, tmp_path: Path) -> None:
    with LabelSetWriter(tmp_path / "set", ("cat",)) as writer:
        writer.add("a", np.eye(4, dtype=np.uint8))
        labels = writer.close()
    settings = Settings.at(tmp_path / "home")
    Storage(settings.storage).upload(pack_label_set(labels, tmp_path / "x.zip"), layout.label_set(labels.identity))
    found = find_labels(f"labels/{labels.identity}", settings)
    assert found is not None and found.identity == labels.identity
    assert find_labels("labels/0123456789abcdef", settings) is None and find_labels("no/trial", settings) is None
    with pytest.raises(UsageError, match=r"^--of nothing: no label set: expected"):
        import_labels(tmp_path, "voc", tmp_path / "out", settings, of="nothing")
    with pytest.raises(UsageError, match=r"^--of: is missing"):
        import_labels(tmp_path, "voc", tmp_path / "out", settings)
    with pytest.raises(UsageError, match="kind: is of a network's label maps"):
        export_labels(str(tmp_path / "set"), "voc", tmp_path / "out", settings, kind="crf", data="tiny")


def test_exporting_a_network_needs_no_word_for_it() -> None:
    command: Any = typer.main.get_command(app)
    exports = command.commands["export"]
    assert set(exports.commands) == {"network", "labels"}
    for arguments in (["net.pt"], ["--format", "onnx", "net.pt"]):
        context = exports.make_context("export", list(arguments))
        assert [*context._protected_args, *context.args] == ["network", *arguments]


def test_masks_that_say_weak_are_not_refined_into_weak_labels(
    work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, settings = smallest("mcc").data, Settings.at(work / "home")
    masks, _ = label_set_of_masks(build_index(data, settings.home), tmp_path / "full")
    with LabelSetWriter(tmp_path / "weak", masks.classes, origin={"dataset": data.model_dump(mode="json")}) as writer:
        for name in masks.names:
            writer.add(name, masks.label(name))
    with pytest.raises(UsageError, match=r"weak: says weak, but 8 of its maps are masks of the dataset"):
        prepared(str(tmp_path / "weak"), "crf", {}, settings)
    more = ("--data", "tiny", *SHAPES, "--out", str(tmp_path / "again"))
    out = run(work, "refine", str(masks.path), "--kind", "none", *more, monkeypatch=monkeypatch)
    assert re.search(r"8 label maps in .*, label set [0-9a-f]{16}, full supervision", out)
