"""Every command of README and docs: run, in order, in a folder of its own; or named with the reason why not."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import commands
import doc_commands as docs
import numpy as np
import pytest
import small_voc
import yaml
from PIL import Image

from mcc_core.structured_files import read_yaml
from mcc_core.validation import validate
from orchestrator.spec.posthoc_file import PosthocFile
from orchestrator.spec.stages_file import is_staged, load_stages
from orchestrator.spec.sweep_file import load_sweep
from orchestrator.workflows.posthoc import is_posthoc

BIN = Path(sys.executable).parent
ALL = [command for page in docs.PAGES for command in docs.commands(page)]
# Slow commands take what the others leave behind, so that these are run with them.
RUN = [pytest.param(c, marks=pytest.mark.slow if c.slow else pytest.mark.before_slow, id=str(c)) for c in ALL]
LIMIT_S = 600  # of one command; seconds on a free machine


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a reader has: photographs with labels, a folder in VOC layout, weights; and the sweeps, cut down."""
    import timm
    from safetensors.torch import save_file

    here = tmp_path_factory.mktemp("reader")
    _photographs(here)
    names = {f"n{i}": ("cat", "dog")[i % 2 : i % 2 + 1] for i in range(8)}
    small_voc.write(here / "voc_layout", train=names, val={"v1": ("cat",), "v2": ("dog",)}, size=(64, 48))
    vit = timm.create_model(
        "vit_tiny_patch16_224", img_size=32, patch_size=8, embed_dim=24, depth=2, num_heads=3, num_classes=0
    )
    save_file({k: v.contiguous() for k, v in vit.state_dict().items()}, here / "backbone.safetensors")
    (here / "sweeps").mkdir()
    for file in (docs.ROOT / "sweeps").glob("*.yaml"):
        (here / "sweeps" / file.name).write_text(yaml.safe_dump(_cut_down(yaml.safe_load(file.read_text()))))
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy(docs.ROOT / name, here)
    for page in docs.PAGES:
        for name, text in docs.files(page).items():
            (here / name).parent.mkdir(parents=True, exist_ok=True)
            small = name.startswith("sweeps/")
            text = text.replace("seeds: [0, 1, 2]", "seeds: [0, 1]")
            (here / name).write_text(yaml.safe_dump(_cut_down(yaml.safe_load(text))) if small else text)
    return here


def _photographs(here: Path) -> None:
    rng = np.random.default_rng(0)
    rows = ["image,labels"]
    for folder in ("photos", "masks", "new"):
        (here / folder).mkdir()
    for i in range(24):
        labels = (("cat",), ("dog",), ("cat", "dog"), ())[i % 4]
        picture = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)).resize((96, 72))
        picture.save(here / "photos" / f"{i:03}.jpg")
        if i < 3:
            picture.save(here / "new" / f"{i}.jpg")
        rows.append(f"{i:03}.jpg,{';'.join(labels)}")
        mask = np.zeros((72, 96), np.uint8)
        for label in labels:
            mask[20:60, 10 + 40 * (label == "dog") : 45 + 40 * (label == "dog")] = 1 + (label == "dog")
        Image.fromarray(mask).save(here / "masks" / f"{i:03}.png")
    (here / "labels.csv").write_text("\n".join(rows) + "\n")
    listed = {image: labels.split(";") for image, labels in (row.split(",") for row in rows[1:]) if labels}
    (here / "labels.json").write_text(json.dumps(listed))


def _cut_down(sweep: dict) -> dict:  # type: ignore[type-arg]
    """A shipped sweep with two values of one parameter, two points, and trials of seconds."""
    if "stages" in sweep:
        return sweep | {"stages": {name: _cut_down_stage(stage) for name, stage in sweep["stages"].items()}}
    if "of" in sweep:
        return sweep | {"limit": 2, "parameters": {k: v[:2] for k, v in sweep["parameters"].items()}}
    smallest = dict(text.split("=", 1) for text in docs.SMALLEST)
    fixed = {k: yaml.safe_load(v.replace(":", ": ")) for k, v in smallest.items()}
    if sweep["base"] == "tiny":
        fixed |= {k: int(v) for k, v in (text.split("=") for text in docs.SHAPES)}
    else:
        fixed.pop("model.weights")
    listed = {k: v for k, v in sweep.get("parameters", {}).items() if isinstance(v, list)}
    kept = {k: v[:2] if i == 0 else v[:1] for i, (k, v) in enumerate(listed.items())}
    cut = {k: v for k, v in sweep.items() if k not in ("parameters", "points", "seeds", "search", "budget")}
    if "points" in sweep:
        cut["points"] = sweep["points"][:2]
    return cut | {"set": sweep.get("set", {}) | fixed, "parameters": kept, "seeds": [0]}


def _cut_down_stage(stage: dict) -> dict:  # type: ignore[type-arg]
    """A stage that trains for seconds; refinements take none."""
    if "base" not in stage:
        return stage
    small = (*(docs.SMALLEST if "of" not in stage else docs.TRAINING), *docs.SHAPES)
    fixed = {k: yaml.safe_load(v.replace(":", ": ")) for k, v in (text.split("=", 1) for text in small)}
    return stage | {"set": stage.get("set", {}) | fixed}


@pytest.mark.parametrize("command", RUN)
def test_a_command_of_the_documentation_works(command: docs.Command, folder: Path) -> None:
    if command.text.startswith("mcc "):
        wrong = docs.check_words(command.in_test.split(" | ")[0].split(" > ")[0], whole=True)
        assert wrong is None, wrong
    if command.reason:
        _exists(command.text)
        pytest.skip(f"{command}: {command.reason}")
    paths = (str(commands.as_program(folder / "bin").parent), str(BIN), os.environ["PATH"])
    env = os.environ | {"PATH": ":".join(paths), "COLUMNS": "200", "TERM": "dumb"}
    env |= {"MCC_HOME": str(folder / ".mcc"), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(docs.ROOT)}
    done = subprocess.run(
        ["bash", "-c", command.in_test], capture_output=True, text=True, cwd=folder, env=env, timeout=LIMIT_S
    )
    meant_to_fail = any(line.startswith("error: ") for line in command.prints)
    said = done.stdout + done.stderr
    assert done.returncode == (2 if meant_to_fail else 0), f"{command.in_test}\n{said}"
    for line in filter(None, command.prints):
        pattern = r"\s+".join(re.escape(word).replace("…", ".*") for word in line.split())
        assert re.search(pattern, said), f"{line!r} is not in what {command.in_test} says:\n{said}"


@pytest.mark.parametrize("page", [page for page in docs.PAGES if docs.python(page)])
def test_python_of_the_documentation_runs(page: str, folder: Path) -> None:
    """All of a page as one program, after the commands."""
    (folder / "page.py").write_text(docs.python(page))
    env = {"MCC_HOME": str(folder / ".mcc"), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(docs.ROOT)}
    done = commands.run_program(folder / "page.py", cwd=folder, env=env, timeout=LIMIT_S)
    assert done.returncode == 0, done.stdout + done.stderr


def _exists(text: str) -> None:
    """What a command that is not run names in this repository must be there."""
    words = text.split()
    if words[0] == "make":
        targets = re.findall(r"^(\w[\w-]*):", (docs.ROOT / "Makefile").read_text(), re.M)
        assert {word for word in words[1:] if "=" not in word} <= set(targets), text
    for word in words:
        if re.match(r"(benchmarks|docker|sweeps|docs|tests)/[\w./-]+$", word):
            assert (docs.ROOT / word).exists(), word


@pytest.mark.parametrize("page", docs.PAGES)
def test_commands_within_the_text_exist(page: str) -> None:
    wrong = [found for text in docs.inline_commands(page) if (found := docs.check_words(text, whole=False))]
    assert wrong == []


def test_no_reason_is_left_without_a_command() -> None:
    listed = (*docs.NOT_RUN, *docs.SLOW)
    assert [pattern for pattern in listed if not any(re.search(pattern, command.text) for command in ALL)] == []


@pytest.mark.parametrize("page", docs.PAGES)
def test_sweep_files_within_the_text_are_valid(page: str, tmp_path: Path) -> None:
    for block in docs.blocks(page):
        if block.language == "yaml" and re.search(r"^name: ", block.text, re.M):
            (tmp_path / "sweep.yaml").write_text(block.text)
            if is_posthoc(tmp_path / "sweep.yaml"):
                validate(PosthocFile, read_yaml(tmp_path / "sweep.yaml"), f"{page}:{block.line}")
            elif is_staged(tmp_path / "sweep.yaml"):
                load_stages(tmp_path / "sweep.yaml")
            else:
                load_sweep(tmp_path / "sweep.yaml")


@pytest.mark.parametrize("page", docs.PAGES)
def test_blocks_with_commands_are_console_blocks(page: str) -> None:
    """So that none of them escapes being run."""
    for block in docs.blocks(page):
        if block.language in ("", "sh", "bash", "shell"):
            assert not re.search(r"^\s*(\$ )?mcc ", block.text, re.M), f"{page}:{block.line}"


@pytest.mark.parametrize("page", docs.PAGES)
def test_links_lead_somewhere(page: str) -> None:
    text = (docs.ROOT / page).read_text()
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text):
        here = ((docs.ROOT / page).parent / target).exists()
        assert here or target.startswith(("http://", "https://")), f"{page}: {target}"
