"""`mcc evaluate` and what is below it: the same digits however the work is shared, interrupted or kept on disk."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import tarfile
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import commands
import numpy as np
import pytest
import torch
from experiments import mcc_experiment
from PIL import Image
from small import SMALL

from mcc_core import checkpoint as checkpoints
from mcc_core.checkpoint import Checkpoint
from mcc_core.data.index import build_index
from mcc_core.errors import UsageError
from mcc_core.methods.mcc.network import MCCNet
from orchestrator.cluster.session import prepare_environment
from orchestrator.evaluation.request import evaluation_request
from orchestrator.evaluation.run import Evaluation, ExecutionOptions, evaluate_checkpoint
from orchestrator.records.scores import read_scores
from orchestrator.settings import Settings
from orchestrator.tracking.evaluations import track_evaluation

prepare_environment()
ON_CPU = ExecutionOptions("cpu")
EXPERIMENT = mcc_experiment("tiny", SMALL | {"data.shapes_val": 24})


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def checkpoint(home: Path) -> Path:
    """A network of random weights that sees more than background."""
    classes = build_index(EXPERIMENT.data, home).classes
    torch.manual_seed(0)
    network = MCCNet(EXPERIMENT.model, len(classes)).eval()
    for parameter in network.parameters():
        if parameter.ndim == 1:
            torch.nn.init.normal_(parameter, 0.5, 0.5)
    file = home / "x.pt"
    checkpoints.save(Checkpoint(EXPERIMENT, classes, 6, 0, network.state_dict(), None, {}), file)
    return file


@pytest.fixture
def ray_folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Ray's sockets need a short path."""
    folder = Path(tempfile.mkdtemp(prefix="mcc"))
    monkeypatch.setenv("RAY_TMPDIR", str(folder))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def score(
    checkpoint: Path,
    out: Path,
    protocols: tuple[str, ...] = ("single", "cam"),
    means: ExecutionOptions = ON_CPU,
    changes: Mapping[str, Any] | None = None,
    seen: list[int] | None = None,
    **more: Any,
) -> Evaluation:
    request = evaluation_request(checkpoint, protocols, "val", changes or {}, **more)  # type: ignore[arg-type]
    note = [] if seen is None else seen
    settings = Settings.at(checkpoint.parent)
    return evaluate_checkpoint(request, out, settings, means, lambda done, total: note.append(done))


def counts(out: Path) -> dict[str, Any]:
    return read_scores(out / "scores.jsonl")[1]


def test_an_evaluation_goes_on_and_refuses_other_scores(checkpoint: Path, tmp_path: Path) -> None:
    whole = score(checkpoint, tmp_path / "a")
    score(checkpoint, tmp_path / "b", limit=2)
    file = tmp_path / "b" / "scores.jsonl"
    file.write_bytes(file.read_bytes()[:-20])  # killed while writing
    seen: list[int] = []
    assert score(checkpoint, tmp_path / "b", seen=seen).metrics == whole.metrics and seen[0] == 1
    written = json.loads((tmp_path / "b" / "metrics.json").read_text())["metrics"]
    assert {"val/seg/single/miou", "val/seg/single/iou/background"} <= set(written["single"])
    with (tmp_path / "b" / "metrics.csv").open() as stream:
        rows = {(r["setting"], r["stage"], r["protocol"], r["name"]): float(r["value"]) for r in csv.DictReader(stream)}
    assert rows["cam", "cam", "ms", "miou"] == written["cam"]["val/cam/ms/miou"]
    with pytest.raises(UsageError, match=r"scores.jsonl: scores of another .*\(differing: settings\)"):
        score(checkpoint, tmp_path / "b", ("ms",))


def test_label_maps_of_an_unknown_checkpoint_are_not_taken_over(checkpoint: Path, tmp_path: Path) -> None:
    score(checkpoint, tmp_path, ("single",), limit=2, keep_masks=True)
    (tmp_path / "scores.jsonl").unlink()
    for keep_masks in (False, True):
        with pytest.raises(UsageError, match=r"masks/single: label maps, and no scores.jsonl says of which checkpoint"):
            score(checkpoint, tmp_path, ("single",), limit=2, keep_masks=keep_masks)


def test_a_split_or_folder_that_cannot_be_is_one_line(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match=r"--out .*file: cannot be made a folder"):
        score(checkpoint, tmp_path / "file", limit=1)
    request = evaluation_request(checkpoint, ("single",), "tset", {})
    with pytest.raises(UsageError, match="--split tset: generated shapes have train and val alone"):
        evaluate_checkpoint(request, tmp_path / "out", Settings.at(checkpoint.parent), ON_CPU)
    assert not (tmp_path / "out").exists()


def test_images_and_squares_below_a_patch_are_scored(checkpoint: Path, tmp_path: Path) -> None:
    every = ("cam", "aux_cam", "cam_crf", "refined", "single", "ms", "ms_crf")
    small = {"evaluation.crop": 16, "evaluation.cam_scales": [0.1, 1.0], "evaluation.scales": [0.1, 1.0]}
    found = score(checkpoint, tmp_path / "a", every, limit=2, changes=small)
    assert set(found.metrics) == set(every)
    assert all(0 <= m.value <= 1 for metrics in found.metrics.values() for m in metrics)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mask.ratio": 0.5}, "--set mask.ratio: an evaluation takes data.* and evaluation.* alone"),
        ({"evaluation.cam_treshold": 0.5}, "did you mean cam_threshold"),
        ({"evaluation.crf.iterations": 0}, "crf.iterations"),
        ({"evaluation.scales": []}, "scales"),
    ],
)
def test_a_wrong_setting_is_one_line(checkpoint: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        evaluation_request(checkpoint, ["single"], "val", changes)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_maps_from_the_disk_score_the_same(checkpoint: Path, tmp_path: Path) -> None:
    """With room for all, for some and for the first images only; then another setting without the network's scales."""
    names = ("cam", "ms")
    shutil.rmtree(checkpoint.parent / "maps", ignore_errors=True)
    first = score(checkpoint, tmp_path / "a", names, ExecutionOptions("cpu", cache_bytes=1 << 30))
    files = list((checkpoint.parent / "maps").rglob("*.npz"))
    assert len(files) == 24 and {np.load(f)["multi/1.0/0"].dtype for f in files} == {np.dtype("float16")}
    times = {f: f.stat().st_mtime_ns for f in files}
    assert (
        score(checkpoint, tmp_path / "b", names, ExecutionOptions("cpu", cache_bytes=1 << 30)).metrics == first.metrics
    )
    assert {f: f.stat().st_mtime_ns for f in files} == times
    shutil.rmtree(checkpoint.parent / "maps")
    small = 3 * files[0].stat().st_size if files[0].exists() else 12_000
    assert score(checkpoint, tmp_path / "c", names, ExecutionOptions("cpu", cache_bytes=small)).metrics == first.metrics
    assert 0 < sum(f.stat().st_size for f in (checkpoint.parent / "maps").rglob("*.npz")) <= small
    exact = score(checkpoint, tmp_path / "d", names)
    for name in names:
        assert first.metrics[name][0].value == pytest.approx(exact.metrics[name][0].value, abs=2e-3)


@pytest.mark.slow
def test_ray_workers_score_the_same_and_one_is_killed(checkpoint: Path, tmp_path: Path, ray_folder: Path) -> None:
    import psutil

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as a worker of one CPU
    try:
        score(checkpoint, tmp_path / "alone", ("single", "ms"))
    finally:
        torch.set_num_threads(threads)
    killed: list[int] = []

    def kill_one(done: int, total: int) -> None:
        if done >= 2 and not killed:
            workers = [p for p in psutil.Process().children(recursive=True) if p.name().startswith("ray::_Shard")]
            os.kill(workers[0].pid, signal.SIGKILL)
            killed.append(workers[0].pid)

    request = evaluation_request(checkpoint, ["single", "ms"], "val", {})
    settings = Settings.at(checkpoint.parent)
    evaluate_checkpoint(request, tmp_path / "shared", settings, ExecutionOptions("cpu", workers=2), kill_one)
    assert killed and counts(tmp_path / "shared") == counts(tmp_path / "alone")
    with pytest.raises(UsageError, match="--workers 500: they need 500 CPUs and"):
        score(checkpoint, tmp_path / "many", means=ExecutionOptions("cpu", workers=500))


def test_the_file_for_the_server(checkpoint: Path, home: Path, tmp_path: Path) -> None:
    """From a split without masks and annotations, by the command: label maps of the images' size, in VOC's palette."""
    root = tmp_path / "data"
    shutil.copytree(next(p.parent for p in home.rglob("JPEGImages")), root)
    names = [p.stem for p in sorted((root / "JPEGImages").glob("*.jpg"))][-3:]
    (root / "ImageSets" / "Segmentation" / "test.txt").write_text("".join(f"{name}\n" for name in names))
    for split in ("train", "val"):
        file = root / "ImageSets" / "Segmentation" / f"{split}.txt"
        file.write_text("".join(f"{n}\n" for n in file.read_text().split() if n not in names))
    for name in names:
        (root / "SegmentationClass" / f"{name}.png").unlink()
        (root / "Annotations" / f"{name}.xml").unlink()
    arguments = ["evaluate", str(checkpoint), "--data", str(root), "--set", f"data.classes={root / 'classes.txt'}"]
    arguments += ["--split", "test", "--protocol", "ms", "--submission", "out.tar.gz", "--no-mlflow"]
    done = commands.run(*arguments, cwd=tmp_path, env={"MCC_HOME": str(tmp_path / "home")})
    assert done.returncode == 0, done.stderr
    with tarfile.open(tmp_path / "out.tar.gz") as archive:
        folder = "results/VOC2012/Segmentation/comp6_test_cls"
        assert archive.getnames() == [f"{folder}/{name}.png" for name in names]
        for name in names:
            stream = archive.extractfile(f"{folder}/{name}.png")
            assert stream is not None
            with Image.open(stream) as mask, Image.open(root / "JPEGImages" / f"{name}.jpg") as image:
                assert mask.mode == "P" and mask.size == image.size
                assert (mask.getpalette() or [])[3:6] == [128, 0, 0]


def test_an_evaluation_is_one_mlflow_run(checkpoint: Path, tmp_path: Path) -> None:
    from mlflow import MlflowClient

    settings = Settings.at(tmp_path / "home")
    result = score(checkpoint, tmp_path / "a", ("single",))
    assert track_evaluation(settings, result, checkpoint) == track_evaluation(settings, result, checkpoint)
    client = MlflowClient(tracking_uri=settings.tracking_uri)
    runs = client.search_runs([e.experiment_id for e in client.search_experiments()])
    assert len(runs) == 1 and runs[0].info.status == "FINISHED"
    expected = {m.key: m.value for m in result.metrics["single"]}
    assert runs[0].data.metrics == pytest.approx(expected)
    assert {a.path for a in client.list_artifacts(runs[0].info.run_id)} == {"metrics.json", "metrics.csv"}
