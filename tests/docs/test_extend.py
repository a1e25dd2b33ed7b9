"""The loss that `docs/extend.md` adds: its patch applies to a copy of the method, and the copy trains with it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import doc_commands as docs

TRAIN = """
import sys
import yaml
import mcc_core as mcc
fields = dict(text.split("=", 1) for text in sys.argv[1:])
changes = {name: yaml.safe_load(value.replace(":", ": ")) for name, value in fields.items()}
done = mcc.train(mcc.experiment("tiny", changes))
for iteration in range(1, done.iteration + 1):
    print(*(name for name in done.history[iteration] if name.startswith("loss/")))
"""


def apply(patch: str, root: Path) -> int:
    """Apply the hunks of a patch by their content; line numbers would be out of date. Returns how many there were."""
    count, text, file = 0, "", root
    for part in re.split(r"^(--- a/.*\n\+\+\+ b/.*\n)", patch, flags=re.M)[1:]:
        if part.startswith("--- "):
            file = root / part.splitlines()[1].removeprefix("+++ b/")
            continue
        for hunk in re.split(r"^@@.*\n", part, flags=re.M)[1:]:
            lines = hunk.splitlines(keepends=True)
            old = "".join(line[1:] for line in lines if line[0] in " -")
            new = "".join(line[1:] for line in lines if line[0] in " +")
            text = file.read_text()
            assert text.count(old) == 1, f"{file.name}: not once in it:\n{old}"
            file.write_text(text.replace(old, new))
            count += 1
    return count


def test_the_loss_of_the_page_trains(tmp_path: Path) -> None:
    for package in ("mcc_core", "orchestrator"):
        shutil.copytree(docs.ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    assert apply(docs.files("docs/extend.md")["entropy.diff"], tmp_path) == 4
    settings = (*docs.SMALLEST, *docs.SHAPES, "loss.ent={schedule: linear, start: 0, end: 0.1}")
    env = os.environ | {"PYTHONPATH": str(tmp_path), "MCC_HOME": str(tmp_path / ".mcc"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", TRAIN, *settings], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stdout + done.stderr
    terms = [line.split() for line in done.stdout.splitlines()]
    assert len(terms) == 4 and all("loss/ent" in names for names in terms[1:])  # its weight begins at 0
