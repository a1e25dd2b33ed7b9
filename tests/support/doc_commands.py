"""Commands and code of the documentation, as tests run them.

A page's ```console blocks are read line by line: `$ ` begins a command, `\` at a line's end continues it, and lines
without `$` are what it prints (`…` stands for anything). Blocks with `title="FILE"` are files that the commands find.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import typer
import yaml

from orchestrator.cli.app import app

ROOT = Path(__file__).parents[2]
FENCE = re.compile(r"^```(\w*)(?: title=\"([^\"]+)\")?\s*$")

# In the order in which they are run, in one folder: what README trains, later pages look at.
_FIRST = ("README.md", "docs/tutorial.md", "docs/extend.md", "docs/evaluation.md", "docs/reproduce.md")
_FOUND = (path.relative_to(ROOT).as_posix() for path in sorted((*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"))))
PAGES = tuple(dict.fromkeys((*_FIRST, *_FOUND)))

# What stands for something of the reader's, and what it is in the tests.
PLACEHOLDERS = {
    "FOLDER": "voc_layout",
    "FILE.safetensors": "backbone.safetensors",
    "CHECKPOINT": "mask_ablation/no-contrast",
    "SWEEP/A": "mask_ablation/no-contrast",
    "SWEEP/B": "'mask_ablation/ratio=0.5 scale=1'",
}

# Added to commands that would take hours at their real size.
SMALLEST = (
    "model.backbone=vit_tiny_patch16_224",
    "model.backbone_args={img_size:32,patch_size:8,embed_dim:24,depth:2,num_heads:3}",
    *("model.weights=random", "model.aux_block=1", "model.decoder_channels=8", "model.projector.hidden=16"),
    *("model.projector.bottleneck=8", "model.projector.out=8", "cam.scales=[1.0]", "par.iterations=1"),
    *("loss.seg_start=1", "train.iterations=4", "train.batch_size=2", "train.crop=32", "train.log_every=1"),
    *("train.eval_every=2", "train.eval_images=4", "train.eval_train_images=0", "train.panels=1"),
    "train.loader_workers=0",
)
SHAPES = ("data.shapes_train=8", "data.shapes_val=4", "data.shapes_size=48")
TRAINING = tuple(s for s in SMALLEST if s.startswith("train."))
_RESNET = (
    *TRAINING,
    "model.backbone_args={layers:[1,1,1,1],channels:[4,4,8,8]}",
)
SMALLER = {
    "mcc train recam-tiny": (*_RESNET, *SHAPES, "loss.recam_start=2", "optim.restart=2"),
    "mcc train irn-tiny": (*_RESNET, *SHAPES, "relations.radius=3"),
    "mcc train psa-tiny": (*_RESNET, *SHAPES, "model.channels=[4,4,4]"),
    "mcc train segmentation-tiny": (*TRAINING, *SHAPES),
    "mcc train tiny": (*SMALLEST, *SHAPES),
    "mcc train toco-tiny": (*SMALLEST, *SHAPES, "crops.size=16", "crops.views=2"),
    "mcc data labels segmentation-tiny": SHAPES,
    "mcc train small": SMALLEST,
    "mcc sweep plan mine.yaml": SMALLEST,
    "mcc sweep submit mine.yaml": SMALLEST,
    "mcc train deep.yaml": (*(s for s in SMALLEST if not s.startswith("model.")), *SHAPES),
    "mcc train voc_like": SMALLEST,
    "mcc reproduce voc-table2": (*SMALLEST, *SHAPES),
}

# Commands that no test runs, and why. Their words and options are checked against the command line all the same.
NOT_RUN = {
    r"^make ": "makes an environment of its own; what it calls, CI and these tests run",
    r"^mcc ui": "serves pages until Ctrl-C",
    r"^(mlflow models serve|curl )": "serves until Ctrl-C (tests/orchestrator/tracking/test_models.py serves and asks)",
    r"^mcc sweep stop": "needs a sweep that is running (tests/orchestrator/workflows/test_control.py has some)",
    r"--on http|RAY_ADDRESS=": "needs a cluster (tests/orchestrator/cluster/test_jobs.py starts one)",
    r"^mcc data prepare voc": "needs the official archives (tests/mcc_core/data/test_prepare.py has miniatures)",
    r"data/voc|VOCdevkit": "needs PASCAL VOC 2012",
    r"^mcc import-weights|--weights": "needs a published checkpoint (tests/mcc_core/test_checkpoint.py makes some)",
    r"^mcc refine clip": "needs the weights of a CLIP (tests/orchestrator/workflows/test_clip_labels.py makes some)",
    r"^mcc reproduce voc-table1(?!.*--plan)": "needs PASCAL VOC 2012 and GPUs",
    r"^(cp|pip|git|docker|kubectl|sbatch|ray|export|python -m|python benchmarks)\b": "not of this program",
}

# Run with `--slow` alone: what they do is done by a cheaper command too.
SLOW = (
    r"^mcc reproduce voc-table2 --scale tiny",
    r"^mcc train (segmentation|recam|irn|psa)-tiny",
    r"^mcc (refine|export labels|data corrected)",
    r"^mcc evaluate (mask_ablation|.*cam_crf)",
    r"^mcc sweep (submit|plan) deep.yaml --set",
    r"^mcc sweep submit sweeps/own_folder.yaml",
    r"^mcc train (tiny|small|toco-tiny)",
    r"^mcc (predict|evaluate) first/small",
    r"^mcc sweep (submit|best) mine",
    r"^mcc compare .mine/",
    r"^mcc sweep submit threshold.yaml",  # tests/orchestrator/workflows/test_posthoc.py
    r"^mcc report mask_ablation",  # tests/orchestrator/workflows/test_posthoc.py
    r"^mcc export CHECKPOINT --format onnx$",  # docs/python.md does it, with --image
)


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    language: str
    title: str | None
    line: int  # of its first line of content
    text: str


@dataclass(frozen=True)
class Command:
    """One command of a page."""

    page: str
    line: int
    text: str
    prints: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.page}:{self.line}: {self.text}"

    @property
    def reason(self) -> str | None:
        """Why no test runs it."""
        return next((why for pattern, why in NOT_RUN.items() if re.search(pattern, self.text)), None)

    @property
    def slow(self) -> bool:
        """Whether it is run with the slow tests alone."""
        return any(re.search(pattern, self.text) for pattern in SLOW)

    @property
    def in_test(self) -> str:
        """The command line with the placeholders filled and what makes it small."""
        text = self.text
        for name, value in PLACEHOLDERS.items():
            text = re.sub(rf"(?<![\w./]){re.escape(name)}(?![\w.])", value, text)
        for begin, settings in SMALLER.items():
            if text.startswith(begin):
                text += "".join(f" --set {shlex.quote(s)}" for s in settings if f"{s.split('=')[0]}=" not in text)
        return text


def blocks(page: str) -> Iterator[Block]:
    """Every fenced block of a page."""
    lines = (ROOT / page).read_text(encoding="utf-8").splitlines()
    opened: tuple[str, str | None, int] | None = None
    for number, line in enumerate(lines, 1):
        if opened is None and (found := FENCE.match(line)):
            opened = (found[1], found[2], number)
        elif opened is not None and line.rstrip() == "```":
            language, title, start = opened
            yield Block(language, title, start + 1, "\n".join(lines[start : number - 1]) + "\n")
            opened = None


def files(page: str) -> dict[str, str]:
    """Name to content of the files that a page shows."""
    return {block.title: block.text for block in blocks(page) if block.title}


def commands(page: str) -> list[Command]:
    """Every command of a page's console blocks, in order."""
    found: list[Command] = []
    for block in blocks(page):
        if block.language != "console":
            continue
        lines = block.text.splitlines()
        at = 0
        while at < len(lines):
            start, text = at, lines[at]
            while text.endswith("\\"):
                at += 1
                text = text[:-1].rstrip() + " " + lines[at].strip()
            at += 1
            if text.startswith("$ "):
                words = re.sub(r"\s+#\s.*$", "", text.removeprefix("$ "))
                found.append(Command(page, block.line + start, words.strip(), ()))
            elif found:
                last = found[-1]
                found[-1] = Command(last.page, last.line, last.text, (*last.prints, text))
    return found


def python(page: str) -> str:
    """The page's ```python blocks that are no files, as one program, made small; nothing where there are none."""
    text = "\n".join(block.text for block in blocks(page) if block.language == "python" and not block.title)
    if "import mcc_core as mcc" not in text:
        return ""
    changes = [setting.split("=", 1) for setting in (*SMALLEST, *SHAPES)]
    small = {key: yaml.safe_load(value.replace(":", ": ")) for key, value in changes}
    return text.replace('mcc.experiment("tiny", {', f'mcc.experiment("tiny", {small!r} | {{')


def inline_commands(page: str) -> list[str]:
    """Commands named within the text of a page."""
    text = re.sub(r"^```.*?^```", "", (ROOT / page).read_text(encoding="utf-8"), flags=re.S | re.M)
    return [found.replace("\n", " ") for found in re.findall(r"`(mcc [a-z][^`]*)`", text)]


@cache
def _program() -> Any:
    return typer.main.get_command(app)  # takes as long as all checks of a page


def check_words(text: str, *, whole: bool) -> str | None:
    """What is wrong with an `mcc` command line by its words alone: an unknown command or option, a missing argument.

    Args:
        whole: the command is complete, not only named.
    """
    words = shlex.split(text)[1:]
    command = _program()
    while words and hasattr(command, "commands"):
        if words[0] not in command.commands and hasattr(command, "default"):
            words.insert(0, command.default)
        if words[0].startswith("-"):
            break
        name = words.pop(0)
        if name not in command.commands:
            return f"{text}: no command {name!r}"
        command = command.commands[name]
    known = {option for p in command.params for option in (*p.opts, *p.secondary_opts)} | {"--help"}
    if wrong := [word for word in words if word.startswith("--") and word.split("=")[0] not in known]:
        return f"{text}: no option {wrong[0]}"
    if whole and not hasattr(command, "commands"):
        try:
            command.make_context(command.name, list(words))
        except Exception as error:
            return f"{text}: {error}"
    return None
