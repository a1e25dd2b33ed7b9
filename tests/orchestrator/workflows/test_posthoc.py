"""Sweeps over evaluation parameters of a trained trial: by the command, from real storage, without training."""

from __future__ import annotations

import json
import re
import subprocess
import time
from pathlib import Path
from typing import Any

import commands
import pytest
import yaml
from mlflow.entities import Run
from tiny import TINY
from trained_before import train_before

from mcc_core.checkpoint import load
from mcc_core.errors import UsageError
from orchestrator.settings import Settings
from orchestrator.tracking import client as mlflow_files
from orchestrator.workflows.posthoc import plan_posthoc


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A storage with a finished sweep of one trial, which was trained without Ray."""
    folder = tmp_path_factory.mktemp("posthoc")
    content = {"name": "trained", "base": "tiny", "set": TINY, "points": [{"name": "one", "set": {}}]}
    train_before(write(folder / "trained.yaml", content), Settings.at(folder / "home"), estimate=True)
    done = mcc(folder, "sweep", "submit", "trained.yaml")
    assert done.returncode == 0, done.stderr
    return folder


def write(file: Path, content: dict[str, Any]) -> Path:
    file.write_text(yaml.safe_dump(content))
    return file


def mcc(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    env = {"MCC_HOME": str(folder / "home"), "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    return commands.run(*arguments, cwd=folder, env=env)


SWEEP = {"name": "threshold", "of": "trained/one", "protocol": "cam", "parameters": {"cam_threshold": [0.2, 0.5, 1.0]}}


def test_thresholds_of_a_trial(home: Path) -> None:
    """All points at once, then the ones that a longer list adds; everything reads them as trials."""
    file = write(home / "threshold.yaml", SWEEP)
    done = mcc(home, "sweep", "submit", str(file))
    assert done.returncode == 0, done.stderr
    best = mcc(home, "sweep", "best", "threshold", "--metric", "val/cam/ms/miou")
    assert best.returncode == 0 and "cam_threshold=" in best.stdout, best.stdout + best.stderr
    maps = {f: f.stat().st_mtime_ns for f in (home / "home" / "maps").rglob("*.npz")}
    assert len(maps) == 4
    write(file, SWEEP | {"parameters": {"cam_threshold": [0.2, 0.35, 0.5, 1.0]}})
    before = {p: p.stat().st_mtime_ns for p in (home / "home" / "trials").rglob("*.jsonl")}
    again = mcc(home, "sweep", "submit", str(file))
    assert again.returncode == 0, again.stderr
    after = {p: p.stat().st_mtime_ns for p in (home / "home" / "trials").rglob("*.jsonl")}
    assert len(after) == len(before) + 1 and {p: after[p] for p in before} == before
    assert {f: f.stat().st_mtime_ns for f in (home / "home" / "maps").rglob("*.npz")} == maps
    status = mcc(home, "sweep", "status", "threshold")
    assert status.stdout.count("finished") == 4, status.stdout
    # Nothing is above 1, so all is background: an independent figure for one point.
    (plan,) = [
        p
        for p in (home / "home" / "sweeps").glob("threshold-*/plan.json")
        if len(json.loads(p.read_text())["trials"]) == 4
    ]
    trial = next(t for t in json.loads(plan.read_text())["trials"] if t["name"] == "cam_threshold=1.0")
    events = (home / "home" / "trials" / trial["identity"] / "events" / "0001-000001.jsonl").read_text().splitlines()
    metrics = json.loads(events[-1])["metrics"]
    trained = [json.loads(line) for p in sorted(before) for line in p.read_text().splitlines()]
    background = next(
        e["metrics"]["val/all_background/single/miou"]
        for e in trained
        if "val/all_background/single/miou" in e.get("metrics", {})
    )
    assert metrics["val/cam/ms/miou"] == pytest.approx(background, abs=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"of": "trained"}, "no such checkpoint file, and no SWEEP/TRIAL"),
        ({"of": "trained/onne"}, "has no trial onne; such as one"),
        ({"parameters": {"cam_treshold": [0.5]}}, "did you mean cam_threshold"),
        ({"parameters": {"cam_threshold": [1.5]}}, "cam_threshold"),
        ({"protocol": "multi"}, "protocol"),
        ({"metric": "iou/unicorn"}, "metric: 'iou/unicorn'"),
    ],
)
def test_mistakes_are_one_line(home: Path, changes: dict[str, Any], message: str) -> None:
    file = write(home / "wrong.yaml", SWEEP | changes)
    with pytest.raises(UsageError) as caught:
        plan_posthoc(file, Settings.at(home / "home"))
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert str(caught.value).startswith(str(file))


@pytest.mark.slow
def test_scales_of_a_checkpoint_share_one_pass(home: Path) -> None:
    """The union of the scales is computed once; a point alone gives the same figure."""
    checkpoint = next((home / "home" / "trials").rglob("*.pt"))
    assert load(checkpoint).iteration > 0
    scales = {"scales": [[1.0], [1.0, 1.5]]}
    both = {"name": "scales", "of": str(checkpoint), "protocol": "ms", "parameters": scales}
    alone = both | {"name": "alone", "parameters": {"scales": [[1.0]]}}
    began, found = time.time(), {}
    for content in (both, alone):
        done = mcc(home, "sweep", "submit", str(write(home / "scales.yaml", content)), "--force")
        assert done.returncode == 0, done.stderr
        plan = next((home / "home" / "sweeps").glob(f"{content['name']}-*/plan.json"))
        identity = json.loads(plan.read_text())["trials"][0]["identity"]
        newest = max((home / "home" / "trials" / identity / "events").glob("*.jsonl"))
        assert newest.stat().st_mtime > began - 1
        found[content["name"]] = json.loads(newest.read_text().splitlines()[-1])["metrics"]
    assert found["scales"] == found["alone"]


def test_reports_of_a_trained_sweep_and_of_one_that_trains_nothing(home: Path) -> None:
    """From storage to a page that needs no other file, a Markdown page, and a file that is the same sweep again."""
    (folder,) = (home / "home" / "sweeps").glob("trained-*")
    assert "CAMs of the best" in (folder / "report.html").read_text()  # the sweep's end wrote it
    before = parent(home, folder.name)
    done = mcc(home, "report", "trained", "--out", "report")
    assert done.returncode == 0 and "not in MLflow" not in done.stdout, done.stdout + done.stderr
    page, text = (home / "report" / "report.html").read_text(), (home / "report" / "report.md").read_text()
    sources = re.findall(r'(?:src|href)="([^"]{1,40})', page)
    assert sources and all(s.startswith(("data:image/", "#s")) for s in sources) and "<script" not in page
    for name in re.findall(r"\]\((images/[^)]+)\)", text):
        assert (home / "report" / name).stat().st_size > 1000
    assert "best trial one, iteration 4" in text and "training reads no masks" in text
    cost = next(line for line in text.splitlines() if line.startswith("| disk in storage"))
    predicted, actual = (float(cell.split()[0]) for cell in cost.split("|")[2:4])
    assert predicted > 0 and actual > 0 and "| worker-hours | " in text
    after = parent(home, folder.name)
    assert (after.info.status, after.info.end_time) == (before.info.status, before.info.end_time)
    assert "report" in artifacts(home, after)
    again = mcc(home, "sweep", "plan", "report/sweep.yaml")
    assert f"{folder.name}: 0 of 1 trials to run" in again.stdout, again.stdout + again.stderr

    write(home / "threshold.yaml", SWEEP)
    assert mcc(home, "sweep", "submit", "threshold.yaml").returncode == 0
    told = mcc(home, "report", "threshold", "--out", "posthoc")
    assert told.returncode == 0, told.stderr
    text = (home / "posthoc" / "report.md").read_text()
    assert "Nothing was trained: evaluation settings of trained/one were varied" in text
    assert "Learning curves" not in text and "| cam_threshold | 0.2 |" in text
    assert mcc(home, "sweep", "plan", "posthoc/sweep.yaml").returncode == 0


def parent(home: Path, sweep: str) -> Run:
    settings = Settings.at(home / "home")
    client = mlflow_files.client(settings)
    found = client.search_runs([mlflow_files.experiment(client, settings)], f"tags.`mcc.sweep` = '{sweep}'")
    return next(run for run in found if run.data.tags["mcc.kind"] == "sweep")


def artifacts(home: Path, run: Run) -> list[str]:
    return [a.path for a in mlflow_files.client(Settings.at(home / "home")).list_artifacts(run.info.run_id)]
