"""A sweep over every method in which each one's worker is killed once: it ends as an undisturbed one, to the bit."""

from __future__ import annotations

import os
import signal
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml
from chaos_lab import Lab
from trained import SMALLEST, smallest

from mcc_core.data.index import build_index
from mcc_core.data.make_labels import label_set_of_masks
from mcc_core.methods.registry import METHODS

FILE = Path(__file__).parents[3] / "sweeps" / "methods.yaml"
ITERATIONS, EVAL_EVERY = 200, 20


def methods_lab(folder: Path) -> tuple[Lab, list[str]]:
    """`sweeps/methods.yaml` and what it lacks, on the smallest networks; the methods of its trials in order."""
    sweep: dict[str, Any] = yaml.safe_load(FILE.read_text())
    lab = Lab(folder)
    listed = [point["name"] for point in sweep["points"]]
    more = [{"name": name, "base": SMALLEST[name][0]} for name in METHODS if name not in listed]
    names = [*listed, *(point["name"] for point in more)]
    label_set_of_masks(build_index(smallest("segmentation").data, lab.home), folder / "labels")
    labels = {"labels.source": str(folder / "labels"), "labels.supervision": "full"}
    length = {"train.iterations": ITERATIONS, "train.eval_every": EVAL_EVERY, "train.log_every": 5}
    points = []
    for point in [*sweep["points"], *more]:
        taught = labels if "labels" in METHODS[point["name"]].experiment.model_fields else {}
        points.append(point | {"set": SMALLEST[point["name"]][1] | length | taught})
    lab.fields = sweep | {"points": points, "seeds": [0], "resources": {"max_concurrent": 1}}
    return lab, names


@pytest.mark.slow
def test_a_killed_worker_of_each_method_goes_on_to_the_bit(tmp_path: Path) -> None:
    whole, _ = methods_lab(tmp_path / "whole")
    whole.finish(whole.submit(), timeout=900)
    hurt, methods = methods_lab(tmp_path / "hurt")
    assert set(methods) == set(METHODS)
    process = hurt.submit()
    for trial in range(len(methods)):
        hurt.until(partial(hurt.reached, EVAL_EVERY + 5, trial), process, 400)
        os.kill(hurt.worker(trial), signal.SIGKILL)
    hurt.finish(process, timeout=900)
    for trial, name in enumerate(methods):
        starts = [e["iteration"] for e in hurt.events(trial) if e["kind"] == "start"]
        assert len(starts) == 2 and 0 < starts[1] < ITERATIONS, (name, starts)
        assert hurt.held_against(whole, trial) == (True, True), name
