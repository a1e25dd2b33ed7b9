"""A sweep of stages from the command line: killed in the middle, gone on, and its seeds used again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from staged import SEEDS, SHAPES

from mcc_core.data.label_maps import read_label_set
from orchestrator.records import layout
from orchestrator.records.events import newest_attempt, trial_state
from orchestrator.records.status import TrialStatus
from orchestrator.storage.store import Storage

pytestmark = pytest.mark.slow

SEGMENT: dict[str, Any] = SHAPES | {
    "model.backbone_args": {"channels": [8, 8, 8, 8], "layers": [1, 1, 1, 1], "stem_width": 8},
    "train.crop": 32,
    "train.batch_size": 2,
    "train.eval_train_images": 8,
}


class Place:
    """A folder with a home of its own, in which `mcc` is run."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.storage = folder, Storage(str(folder / "home"))
        names = {"MCC_HOME": str(folder / "home"), "OMP_NUM_THREADS": "1", "COLUMNS": "160"}
        self.environment = os.environ | names

    def write(self, *thresholds: float, iterations: int) -> str:
        stages = {
            "seeds": {"base": "tiny", "set": SEEDS},
            "refine": {
                "of": "seeds",
                "refine": {"kind": "none"},
                "parameters": {"refine.threshold": list(thresholds)},
            },
            "segment": {
                "of": "refine",
                "base": "segmentation-tiny",
                "set": SEGMENT | {"train.iterations": iterations, "train.eval_every": 20, "train.log_every": 5},
            },
        }
        content = {"name": "staged", "stages": stages, "resources": {"max_concurrent": 2}}
        (self.folder / "staged.yaml").write_text(yaml.safe_dump(content))
        return "staged.yaml"

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", "from orchestrator.cli import main; main()", "sweep", *arguments]
        pipe = subprocess.PIPE
        return subprocess.Popen(
            command, cwd=self.folder, env=self.environment, stdout=pipe, stderr=pipe, text=True, start_new_session=True
        )

    def mcc(self, *arguments: str, code: int = 0) -> str:
        process = self.start(*arguments)
        out, err = process.communicate(timeout=600)
        assert process.returncode == code, out + err
        return out + err

    def trials(self) -> dict[str, dict[str, Any]]:
        return {t["name"]: t for t in json.loads(self.mcc("status", "--json"))["trials"]}


def test_killed_in_the_middle_gone_on_and_a_threshold_more_trains_no_seeds(tmp_path: Path) -> None:
    here = Place(tmp_path)
    file = here.write(0.3, 0.5, iterations=100)
    planned = here.mcc("plan", file)
    assert "├ refine threshold=0.3" in planned and "5 of 5 trials to run" in planned
    running = here.start("submit", file)
    deadline = time.monotonic() + 500
    while not any(here.storage.list(f"{key}/checkpoints") for key in _segments(here)):
        assert running.poll() is None and time.monotonic() < deadline, running.communicate()
        time.sleep(0.2)
    os.killpg(running.pid, signal.SIGKILL)
    running.communicate()
    before = here.trials()
    seeds = before["seeds"]["identity"]
    assert before["seeds"]["status"] == "finished" and {t["status"] for t in before.values()} != {"finished"}

    time.sleep(3)  # what Ray's processes of the killed command still do
    assert "done before" in here.mcc("plan", file)
    out = here.mcc("submit", file)
    assert "what each stage reached" in out
    after = here.trials()
    assert {t["status"] for t in after.values()} == {"finished"}
    assert newest_attempt(here.storage, seeds) == 1  # trained once
    for name, trial in after.items():
        if trial["stage"] == "refine":
            made = read_label_set(here.storage.local(layout.label_set(trial["identity"])) or Path())
            assert made.identity == trial["identity"] and made.supervision == "weak", name
    assert "val/pseudo_label/ms/miou" in after["refine threshold=0.3"]["metrics"]
    assert "train/seg/single/miou" in after["segment threshold=0.5"]["metrics"]

    more = here.write(0.3, 0.4, 0.5, iterations=100)
    planned = here.mcc("plan", more)
    assert "2 of 7 trials to run" in planned
    here.mcc("submit", more)
    assert newest_attempt(here.storage, seeds) == 1
    ladder = here.mcc("status")
    for row in ("CAM, thresholded", "labels", "segmentation"):
        assert row in ladder


def test_a_failed_stage_leaves_out_what_follows_and_retry_runs_both(tmp_path: Path) -> None:
    here = Place(tmp_path)
    file = here.write(0.5, iterations=4)
    broken = yaml.safe_load((tmp_path / file).read_text())
    broken["stages"]["seeds"]["set"] |= {"optim.lr": 1e30}
    (tmp_path / file).write_text(yaml.safe_dump(broken))
    out = here.mcc("submit", file, code=1)
    assert "new refine threshold=0.5: not begun: its input seeds failed" in out
    told = here.trials()
    assert told["segment threshold=0.5"]["message"] == "not begun: its input seeds failed"
    assert "3 trials that failed, or take from one that did, are run again" in here.mcc("retry", code=1)
    assert trial_state(here.storage, told["seeds"]["identity"]).status == TrialStatus.FAILED
    assert newest_attempt(here.storage, told["seeds"]["identity"]) == 2


def _segments(here: Place) -> list[str]:
    """Folders of the trials that train on labels."""
    found = []
    for key in here.storage.folders("trials"):
        file = here.storage.local(f"{key}/experiment.yaml")
        if file is not None and file.is_file() and "method: segmentation" in file.read_text():
            found.append(key)
    return found
