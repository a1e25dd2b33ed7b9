"""A method from outside the package trains, goes on, is swept, scored and predicted with; no file had to know it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import commands
import pytest
import torch
import yaml
from tiny import TINY
from toy_method import FIELDS, TOY
from trained_before import train_before

from mcc_core import checkpoint as checkpoints
from mcc_core.data.index import build_index
from mcc_core.errors import UsageError
from mcc_core.methods.registry import METHODS, experiment_of, method_of
from mcc_core.training.engine import Callbacks, StepRecord, train
from orchestrator.settings import Settings

SUPPORT = Path(__file__).parents[2] / "support"


class Curve(Callbacks):
    """What a run says."""

    def __init__(self) -> None:
        self.losses: list[dict[str, float]] = []
        self.files: list[Path] = []

    def on_step(self, record: StepRecord) -> None:
        self.losses.append({k: v for k, v in record.metrics.items() if k != "images_per_second"})

    def on_checkpoint(self, iteration: int, file: Path, sha256: str) -> None:
        self.files.append(file)


def run(folder: Path, **options: Any) -> Curve:
    experiment, curve = experiment_of(FIELDS, "toy"), Curve()
    index = build_index(experiment.data, folder / "home")
    device = torch.device("cpu")
    train(experiment, 0, index, device=device, workdir=folder, callbacks=curve, **options)
    return curve


def test_it_trains_and_goes_on_to_the_bit(tmp_path: Path) -> None:
    whole = run(tmp_path)
    assert {"loss/cls", "loss/seg", "loss/total", "toy/noise", "weight/cls", "weight/seg", "lr"} == set(whole.losses[0])
    again = run(tmp_path, resume=whole.files[0])
    assert again.losses == whole.losses[3:]
    saved = checkpoints.load(whole.files[-1])
    assert method_of(saved.experiment) is TOY and saved.network().map_stages == ("cam",)


def mcc(*arguments: object, cwd: Path) -> str:
    environ = {"PYTHONPATH": str(SUPPORT), "MCC_HOME": str(cwd / "home")}
    done = commands.run(*map(str, arguments), cwd=cwd, env=environ)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("by_ray", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_it_is_swept_scored_and_predicted_with(by_ray: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # the base is named from there
    (tmp_path / "toy.yaml").write_text(yaml.safe_dump(FIELDS))
    sweep = {
        "name": "toys",
        "base": "toy.yaml",
        "parameters": {"threshold": [{"schedule": "linear", "start": 0.2, "end": 0.5}]},
        "design": {"kind": "leave-one-out", "terms": {"segmentation": ["loss.seg"], "classes": ["loss.cls"]}},
        "points": [{"name": "mcc", "base": "tiny", "set": TINY}],
        "metric": "val/cam/ms/miou",
    }
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(sweep))
    if not by_ray:
        train_before(tmp_path / "sweep.yaml", Settings.at(tmp_path / "home"))
    said = mcc("sweep", "submit", "sweep.yaml", cwd=tmp_path)
    assert "without-segmentation" in said and " mcc" in said and "CAM" in said
    file = next((tmp_path / "home").rglob("checkpoints/*.pt"))
    scores = mcc("evaluate", file, "--protocol", "cam,single,ms", "--out", tmp_path / "scores", cwd=tmp_path)
    assert "pixel_accuracy" in scores and "aux" not in scores
    image = next((tmp_path / "home").rglob("*.jpg"))
    mcc("predict", file, image, "--out", tmp_path / "predicted", cwd=tmp_path)
    assert (tmp_path / "predicted" / "masks" / f"{image.stem}.png").is_file()


def test_a_protocol_that_its_network_cannot_serve_is_refused(tmp_path: Path) -> None:
    from mcc_core.evaluation.scoring import protocol_settings

    saved = checkpoints.load(run(tmp_path).files[-1])
    with pytest.raises(UsageError, match="aux_cam: Toy has no such class map; its protocols are cam, "):
        protocol_settings(saved.experiment, len(saved.classes), ["aux_cam"], {}, "--set")


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("mccc", "method: 'mccc': expected one of mcc, "),
        ("toy_without_a_name", "toy_method:NO cannot be imported: .*has no attribute 'NO'"),
        ("toy_nowhere", "cannot be imported: No module named 'no_such_module'"),
        ("toy_fields", "toy_method:FIELDS is no Method but dict"),
    ],
)
def test_a_method_that_is_none_is_one_line(method: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as raised:
        experiment_of(FIELDS | {"method": method}, "x.yaml")
    assert str(raised.value).startswith("x.yaml: ") and "\n" not in str(raised.value)


@pytest.mark.parametrize("name", METHODS)
def test_each_method_says_what_others_need(name: str) -> None:
    method = METHODS[name]
    assert method.name == name and method.title
    loss: Any = method.experiment.model_fields["loss"].annotation
    assert set(method.terms) <= set(loss.model_fields)
