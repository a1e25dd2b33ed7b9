"""Two evaluations against each other: what is refused, what is computed, and the page."""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import commands
import numpy as np
import pytest
import torch
from experiments import mcc_experiment
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from small import SMALL

from mcc_core import checkpoint as checkpoints
from mcc_core.checkpoint import Checkpoint
from mcc_core.data.index import build_index
from mcc_core.errors import UsageError
from mcc_core.evaluation.scoring import totals
from mcc_core.methods.mcc.network import MCCNet
from orchestrator.analysis.images import compare_images, iou_counts, read_scored
from orchestrator.analysis.statistics import mean_iou
from orchestrator.evaluation.request import evaluation_request
from orchestrator.evaluation.run import ExecutionOptions, evaluate_checkpoint
from orchestrator.records.checkpoints import CheckpointRecord
from orchestrator.records.events import write_end
from orchestrator.records.status import TrialStatus
from orchestrator.settings import Settings
from orchestrator.storage.store import Storage
from orchestrator.workflows.compare import compare_networks

pairs = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(1, 500)), max_size=8)


@settings(max_examples=100, deadline=None)
@given(st.lists(pairs, min_size=1, max_size=5))
def test_counts_give_the_confusion_matrix_iou(images: list[list[tuple[int, int, int]]]) -> None:
    matrix = totals([{"x": image} for image in images], 4)["x"].matrix
    if matrix.counts.sum():
        assert float(mean_iou(iou_counts(images, 4))) == pytest.approx(matrix.miou())


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two networks of random weights."""
    home = tmp_path_factory.mktemp("home")
    experiment = mcc_experiment("tiny", SMALL | {"data.shapes_val": 8})
    classes = build_index(experiment.data, home).classes
    for seed in (0, 1):
        torch.manual_seed(seed)
        network = MCCNet(experiment.model, len(classes)).eval()
        for parameter in network.parameters():
            if parameter.ndim == 1:
                torch.nn.init.normal_(parameter, 0.5, 0.5)
        checkpoints.save(Checkpoint(experiment, classes, 6, 0, network.state_dict(), None, {}), home / f"{seed}.pt")
    return home


def evaluated(
    home: Path, out: str, seed: int, protocol: str = "single", limit: int | None = None, **changes: Any
) -> Path:
    request = evaluation_request(home / f"{seed}.pt", [protocol], "val", changes, limit=limit)  # type: ignore[list-item]
    evaluate_checkpoint(request, home / out, Settings.at(home), ExecutionOptions("cpu"))
    return home / out


def test_unlike_measurements_are_refused_with_a_sentence(home: Path) -> None:
    a = read_scored(evaluated(home, "a", 0), None, "A")
    cases = {
        "A is seg/single on val and B is cam/ms on val: they measure different": evaluated(home, "b", 1, "cam"),
        "has scores of 8 images and B of 3": evaluated(home, "c", 1, limit=3),
        "with crop 32 and B with 48: not the same protocol": evaluated(
            home, "d", 1, **cast(Any, {"evaluation.crop": 48})
        ),
    }
    for message, folder in cases.items():
        with pytest.raises(UsageError, match=message):
            compare_images(a, read_scored(folder, None, "B"))
    with pytest.raises(UsageError, match="`mcc evaluate` writes it"):
        read_scored(home / "none", None, "B")


def test_scores_changes_and_moves(home: Path) -> None:
    found = compare_images(
        read_scored(evaluated(home, "a", 0), None, "A"), read_scored(evaluated(home, "e", 1), None, "B")
    )
    assert found.difference.mean == pytest.approx(found.scores[1] - found.scores[0])
    changes = [other - one for _, one, other in found.classes]
    assert changes == sorted(changes)
    moves = [abs(other - one) for _, one, other in found.moved]
    assert moves == sorted(moves, reverse=True) and len(moves) == 8


def test_configurations_are_compared_over_their_shared_seeds(home: Path) -> None:
    """Scores are means over seeds; the interval is that of images, and a seed of one side alone does not count."""
    settings = Settings.at(home)
    storage, trials = Storage(settings.storage), []
    for point, seed, network in (("a", 0, 0), ("a", 1, 1), ("b", 0, 1), ("b", 1, 1), ("b", 2, 0), ("c", 5, 0)):
        identity = f"{point}{seed}"
        trials.append({"identity": identity, "name": f"{point} s{seed}", "point": point, "seed": seed})
        saved = CheckpointRecord.of(home / f"{network}.pt", 6, 0.5, attempt=0)
        key = saved.key(identity)
        storage.write(key, (home / f"{network}.pt").read_bytes())
        storage.write(f"{key}.json", json.dumps(asdict(saved)).encode())
        write_end(storage, identity, TrialStatus.FINISHED, "")
    document = {"name": "s", "created": 0.0, "file": {"metric": "m", "mode": "max"}, "trials": trials}
    storage.write("sweeps/s-1/plan.json", json.dumps(document).encode())
    found, sides = compare_networks("s/a", "s/b", settings, protocol="single")
    one, _ = compare_networks("s/a s0", "s/b s0", settings, protocol="single")
    assert found.seeds == 2 and sides == (None, None) and (found.first.label, found.second.label) == ("s/a", "s/b")
    assert found.scores == pytest.approx([(one.scores[0] + one.scores[1]) / 2, one.scores[1]])
    assert found.difference.n == 8 and found.difference.mean == pytest.approx(one.difference.mean / 2)
    assert len(found.moved) == 8 and abs(found.moved[0][2] - found.moved[0][1]) > 0
    with pytest.raises(UsageError, match="s/a and s/c: have no seed in common"):
        compare_networks("s/a", "s/c", settings, protocol="single")
    with pytest.raises(UsageError, match="has no trial b; such as a s0"):
        compare_networks("s/a s0", "s/b", settings, protocol="single")


def test_changed_data_is_scored_anew(home: Path, tmp_path: Path) -> None:
    shutil.copytree(home, tmp_path / "home")
    settings, networks = Settings.at(tmp_path / "home"), [str(tmp_path / "home" / f"{seed}.pt") for seed in (0, 1)]
    before, _ = compare_networks(networks[0], networks[1], settings, protocol="single")
    for mask in (tmp_path / "home").rglob("SegmentationClass/*.png"):
        with Image.open(mask) as picture:
            picture.transpose(Image.Transpose.FLIP_TOP_BOTTOM).save(mask)
    after, _ = compare_networks(networks[0], networks[1], settings, protocol="single")
    assert before.scores != after.scores


def test_the_command_and_its_gallery(home: Path, tmp_path: Path) -> None:
    def mcc(*arguments: str) -> subprocess.CompletedProcess[str]:
        return commands.run("compare", *arguments, cwd=tmp_path, env={"MCC_HOME": str(home), "COLUMNS": "160"})

    networks = [str(home / "0.pt"), str(home / "1.pt")]
    done = mcc(*networks, "--protocol", "single", "--gallery", "page")
    assert done.returncode == 0, done.stderr
    assert "seg/single on val, 8 images" in done.stdout and "95 % interval" in done.stdout
    page = (tmp_path / "page" / "index.html").read_text()
    pictures = sorted((tmp_path / "page" / "images").iterdir())
    assert pictures and len(pictures) % 2 == 0 and all(f"images/{p.name}" in page for p in pictures)
    with Image.open(pictures[0]) as picture:
        assert np.asarray(picture).std() > 10  # not blank
    (tmp_path / "file").touch()
    for arguments, message in (
        ([*networks, "--protocol", "single", "--gallery", "file"], "--gallery file: is a file; expected a folder"),
        ([networks[0], networks[0]], "compared with itself"),
        ([networks[0], "nothing/here"], "nothing/here: no such checkpoint file"),
        ([*networks, "--protocol", "multi"], "--protocol multi: not one of"),
    ):
        refused = mcc(*arguments)
        assert refused.returncode == 2 and message in refused.stderr and refused.stderr.count("\n") == 1
