"""The command line as users meet it: help that is instant, mistakes that are one line, exit codes."""

from __future__ import annotations

import io
import re
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import archives_mini as mini
import commands
import numpy as np
import pytest
import typer
from rich.console import Console
from trained import smallest, trained
from typer.testing import CliRunner

from mcc_core.data.index import build_index
from mcc_core.data.pixels import read_mask
from mcc_core.errors import UsageError
from mcc_core.experiment_files import resolve
from orchestrator.cli.app import app, main

ROOT = Path(__file__).parents[3]


def mcc(*arguments: str, home: Path, **environ: str) -> subprocess.CompletedProcess[str]:
    env = {"MCC_HOME": str(home), "COLUMNS": "80", "TERM": "dumb", "OMP_NUM_THREADS": "1"} | environ
    return commands.run(*arguments, cwd=home, env=env)


SMALL = ["--set", "data.shapes_train=8", "--set", "data.shapes_val=4", "--set", "data.shapes_size=48"]


def tree(folder: Path) -> set[str]:
    return {str(p.relative_to(folder)) for p in folder.rglob("*")}


@cache
def known() -> dict[tuple[str, ...], Any]:
    """Words to command, groups and the root among them."""
    found: dict[tuple[str, ...], Any] = {}

    def walk(words: tuple[str, ...], command: Any) -> None:
        found[words] = command
        for name, child in getattr(command, "commands", {}).items():
            walk((*words, name), child)

    walk((), typer.main.get_command(app))
    return found


def test_help_is_instant(tmp_path: Path) -> None:
    script = "import sys, orchestrator.cli; print([m for m in ('torch', 'ray', 'mlflow') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True).stdout.strip() == "[]"
    done = subprocess.run([commands.MCC, "--version"], capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout.strip() == "0.1.0"


def test_without_arguments_three_next_steps() -> None:
    shown = CliRunner().invoke(app, [])
    steps = [line.split()[:2] for line in shown.stdout.splitlines() if line.startswith("  mcc ")]
    assert shown.exit_code == 0 and [step[1] for step in steps] == ["doctor", "train", "ui"]
    assert "mcc --help" in shown.stdout and "Usage" in CliRunner().invoke(app, ["--help"]).stdout


@pytest.mark.parametrize("words", known(), ids=" ".join)
def test_help_reads_well_at_80_columns(words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    shown = CliRunner().invoke(app, [*words, "--help"]).stdout
    assert max(map(len, shown.splitlines())) <= 80
    for name, command in getattr(known()[words], "commands", {}).items():
        first = command.help.split("\n\n")[0].strip()
        assert re.search(rf"│ {name} +{re.escape(first)} +│\n", shown), f"{name}: not on one line"
    for parameter in known()[words].params:
        assert parameter.help, f"{parameter.name}: without a word of help"


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ("bse: tiny", "sweep.yaml: bse: unknown field, did you mean base?"),
        ("set: {mask.rato: 0.5}", "mask.rato"),
        ("parameters: {mask.ratio: [0.5, 1.2]}", "1.2 is out of range: must be at least 0 and at most 1"),
        ("set: {thresholds.background: 0.8}", "thresholds.background (0.8) must be below thresholds.foreground (0.7)"),
        ("set: {data.name: voc, data.root: /nowhere/at/all}", "data.root: /nowhere/at/all: no such folder"),
        ("set: {model.weights: none.pth}", "none.pth: no such file"),
        ("seeds: [0, 0]", "seeds"),
        ("metric: val/seg/ms/miou", "evaluation records no such metric"),
    ],
)
def test_mistakes_in_a_sweep_file_are_lines_and_change_nothing(tmp_path: Path, change: str, expected: str) -> None:
    file = tmp_path / "sweep.yaml"
    small = "{data.shapes_train: 8, data.shapes_val: 4, data.shapes_size: 48}"
    file.write_text(f"name: s\nbase: tiny\n{change}\n" + ("" if change.startswith("set") else f"set: {small}\n"))
    if change.startswith("bse"):
        file.write_text(f"name: s\n{change}\n")
    done = mcc("sweep", "submit", str(file), home=tmp_path)
    assert done.returncode == 2, done.stderr
    assert expected in done.stderr and "Traceback" not in done.stderr
    assert all(line.startswith("error: ") for line in done.stderr.strip().splitlines())
    assert not (tmp_path / "sweeps").exists() and not (tmp_path / "trials").exists()


def test_corrupt_image_is_named_and_stops_or_is_left_out(tmp_path: Path) -> None:
    root = tmp_path / "data"
    values = {"data.root": str(root), "data.shapes_train": 8, "data.shapes_val": 4, "data.shapes_size": 48}
    index = build_index(resolve("tiny", values).data, tmp_path / "other")
    broken = index.train[2].image
    broken.write_bytes(broken.read_bytes()[:200])
    common = [
        "sweep",
        "submit",
        str(ROOT / "sweeps" / "mask_ablation.yaml"),
        *SMALL,
        "--set",
        f"data.root={root}",
        "--dry-run",
    ]
    home = tmp_path / "home"
    home.mkdir()
    stopped = mcc(*common, home=home)
    assert stopped.returncode == 2 and str(broken) in stopped.stderr and "data.on_corrupt=skip" in stopped.stderr
    assert len(stopped.stderr.strip().splitlines()) == 1
    skipped = mcc(*common, "--set", "data.on_corrupt=skip", "--set", "train.batch_size=1", home=home, COLUMNS="300")
    assert skipped.returncode == 0, skipped.stderr
    assert (
        "1 images left out" in skipped.stdout
        and broken.name in skipped.stdout
        and "7 training images" in skipped.stdout
    )


def test_other_mistakes(tmp_path: Path) -> None:
    for arguments, expected in [
        (["sweep", "plan", "none.yaml"], "none.yaml: No such file"),
        (["sweep", "status"], "no sweep was submitted here yet"),
        (["train", "tinny"], "neither a preset"),
        (["train", "tiny", "--set", "loss.mcc"], "expected KEY=VALUE"),
        (["predict", "none.pt", str(tmp_path), "--out", "o"], "none.pt: no such checkpoint file"),
    ]:
        done = mcc(*arguments, home=tmp_path)
        assert (done.returncode, "Traceback" in done.stderr) == (2, False), done.stderr
        assert done.stderr.startswith("error: ") and expected in done.stderr
    assert tree(tmp_path) == set()


def test_options_of_a_run_are_refused_where_tables_are_only_listed() -> None:
    for arguments in (["--list", "--plan"], ["--list", "voc-table1"], ["--seeds", "1"]):
        with pytest.raises(UsageError, match=f"{'TABLE' if 'voc' in arguments[-1] else '--'}.*without --list"):
            typer.main.get_command(app).main(["reproduce", *arguments], standalone_mode=False)


def test_output_that_cannot_encode_a_character_degrades(monkeypatch: pytest.MonkeyPatch) -> None:
    outputs = {name: io.TextIOWrapper(io.BytesIO(), encoding="ascii") for name in ("stdout", "stderr")}
    for name, stream in outputs.items():
        monkeypatch.setattr(sys, name, stream)
    monkeypatch.setattr(sys, "argv", ["mcc", "sweep", "plan", "caf\u00e9-\u2581\udce9.yaml"])
    with pytest.raises(SystemExit) as ended:
        main()
    Console().print("\u2581\u2588", end="")
    print("\u2581\udce9")
    for stream in outputs.values():
        stream.flush()
    written = {name: bytes(stream.detach().getvalue()) for name, stream in outputs.items()}
    assert ended.value.code == 2 and b"caf?-??.yaml: No such file" in written["stderr"]
    assert written["stdout"] == b"????\n"


def test_plan_shows_trials_schedules_and_time(tmp_path: Path) -> None:
    done = mcc("sweep", "plan", str(ROOT / "sweeps" / "mask_ablation.yaml"), *SMALL, home=tmp_path, COLUMNS="160")
    assert done.returncode == 0, done.stderr
    assert "▁▂▃▄▅▆▇█" in done.stdout and "no-contrast" in done.stdout
    assert "8 training images, 4 for validation, 8 classes" in done.stdout and "about" in done.stdout


def test_predict_names_what_it_leaves_out_and_what_it_cannot_read(tmp_path: Path) -> None:
    experiment = smallest("mcc")
    index = build_index(experiment.data, tmp_path)
    checkpoint, image = str(trained(experiment, index, tmp_path).files[-1]), index.val[0].image
    predicted = mcc("predict", checkpoint, str(image), "--out", "out", home=tmp_path)
    assert predicted.returncode == 0, predicted.stderr
    assert (tmp_path / "out" / "masks" / f"{image.stem}.png").is_file()
    (tmp_path / "photos").mkdir()
    shutil.copy(image, tmp_path / "photos")
    (tmp_path / "photos" / "a.jpg").write_bytes(b"\xff\xd8\xff")
    (tmp_path / "photos" / "a.txt").touch()
    some = mcc("predict", checkpoint, "photos", "--out", "out", home=tmp_path)
    assert some.returncode == 1 and "1 images in out (1 were there)" in some.stdout, some.stderr
    assert "left out: 1 files that are hidden or no images, such as a.txt" in some.stdout
    broken, count = some.stderr.splitlines()
    assert broken.startswith("error: photos/a.jpg: cannot be read as an image")
    assert count == "error: 1 of 2 images are not predicted"


@pytest.mark.slow
def test_images_without_any_mask_train_and_give_pseudo_labels(tmp_path: Path) -> None:
    """Image-level labels alone, from a folder to label maps of the training images."""
    for i in range(16):
        mini.picture(tmp_path / "images" / ("cat" if i % 2 else "dog") / f"{i}.png", str(i))
    made = mcc("data", "prepare", "folder", "images", home=tmp_path)
    assert made.returncode == 0 and "no masks: training will score classes alone" in made.stdout, made.stderr
    data = ["--set", "data.name=voc", "--set", "data.root=data/folder"]
    (tmp_path / "named.yaml").write_text("name: named\nbase: tiny\nmetric: val/seg/single/miou\n")
    refused = mcc("sweep", "plan", "named.yaml", *data, home=tmp_path, COLUMNS="200")
    assert refused.returncode == 2 and "val has no masks: val/cls/single/f1 can be measured" in refused.stderr
    few = ["train.iterations=2", "train.eval_every=2", "train.batch_size=2", "train.panels=1"]
    done = mcc("train", "tiny", *data, *(p for f in few for p in ("--set", f)), home=tmp_path, COLUMNS="200")
    assert done.returncode == 0, done.stderr
    assert "by val/cls/single/f1" in " ".join(done.stdout.split())  # a slow machine's longer time wraps the title
    scored = mcc("evaluate", "tiny/tiny", "--protocol", "cam", home=tmp_path, COLUMNS="200")
    assert scored.returncode == 2 and "no image of val has a mask" in scored.stderr
    maps = ["--protocol", "refined", "--split", "train", "--masks", "--out", "out"]
    given = mcc("evaluate", "tiny/tiny", *maps, home=tmp_path, COLUMNS="200")
    assert given.returncode == 0 and "nothing to score" in given.stdout, given.stderr
    label = read_mask(next((tmp_path / "out" / "masks" / "refined").glob("cat-*.png")), 2)
    assert set(np.unique(label)) <= {0, 1, 255}  # cat is the first class
