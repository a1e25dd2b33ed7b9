"""The public API: what is public, a network trained by a plain loop, loaded, asked and scored."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tiny import TINY

import mcc_core as mcc
from mcc_core.api import locate


@pytest.fixture(scope="module")
def experiment() -> mcc.Experiment:
    return mcc.experiment("tiny", TINY | {"train.loader_workers": 0})


@pytest.fixture(scope="module")
def index(experiment: mcc.Experiment, tmp_path_factory: pytest.TempPathFactory) -> mcc.DataIndex:
    return mcc.index(experiment, tmp_path_factory.mktemp("home"))


@pytest.fixture(scope="module")
def run(experiment: mcc.Experiment, index: mcc.DataIndex, tmp_path_factory: pytest.TempPathFactory) -> mcc.Training:
    return mcc.train(experiment, index, tmp_path_factory.mktemp("run"), device="cpu")


def test_what_is_public() -> None:
    assert mcc.__all__ == [
        "DataError",
        "DataIndex",
        "Experiment",
        "Exported",
        "MCCError",
        "Model",
        "Prediction",
        "Scores",
        "Training",
        "TrainingFault",
        "UsageError",
        "evaluate",
        "experiment",
        "export",
        "index",
        "load",
        "train",
    ]
    assert all(getattr(mcc, name).__doc__ for name in mcc.__all__)
    assert set(mcc.__all__) <= set(dir(mcc))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        mcc.nothing  # noqa: B018


def test_the_import_is_cheap() -> None:
    code = "import sys, mcc_core; print([n for n in ('torch', 'numpy', 'pydantic', 'PIL') if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_plain_loop_trains_goes_on_and_is_not_run_twice(
    experiment: mcc.Experiment, index: mcc.DataIndex, run: mcc.Training, tmp_path: Path
) -> None:
    assert run.finished and run.iteration == 4 and list(run.history) == [1, 2, 3, 4]
    assert run.metrics["val/seg/single/miou"] == run.history[4]["val/seg/single/miou"]
    scores = {i: m["val/seg/single/miou"] for i, m in run.history.items() if "val/seg/single/miou" in m}
    assert run.model.iteration == max(scores, key=lambda i: (scores[i], -i))

    heard: list[int] = []
    stopped = mcc.train(
        experiment, index, tmp_path / "two", device="cpu", should_stop=lambda: len(heard) >= 1,
        report=lambda iteration, metrics: heard.append(iteration),
    )  # fmt: skip
    assert not stopped.finished and stopped.iteration == 1
    whole = mcc.train(experiment, index, tmp_path / "two", device="cpu")
    assert repr(whole).startswith(f"<Training in {tmp_path / 'two'}, finished at iteration {whole.iteration}; mIoU")
    assert "all_background" not in repr(whole) and len(repr(whole).splitlines()) == 1
    assert whole.finished
    timed = ("images_per_second", "memory")
    for iteration, metrics in run.history.items():
        same = {k: v for k, v in metrics.items() if not k.startswith(timed)}
        assert same == {k: v for k, v in whole.history[iteration].items() if not k.startswith(timed)}
    before = whole.last.stat().st_mtime_ns
    assert mcc.train(experiment, index, tmp_path / "two", device="cpu").finished
    assert whole.last.stat().st_mtime_ns == before


def test_a_run_of_something_else_is_refused_and_left_alone(
    experiment: mcc.Experiment, index: mcc.DataIndex, run: mcc.Training
) -> None:
    before = run.last.read_bytes()
    with pytest.raises(mcc.UsageError, match=r"log\.jsonl: a run with another seed; give another folder as out"):
        mcc.train(experiment, index, run.folder, seed=1, device="cpu")
    assert run.last.read_bytes() == before
    several = mcc.experiment("tiny", TINY | {"train.workers": 2})
    with pytest.raises(mcc.UsageError, match=r"train\.workers: 2: mcc\.train runs one process; .*accumulate=2"):
        mcc.train(several, index, run.folder)


def test_a_prediction_is_arrays_and_a_picture(run: mcc.Training, index: mcc.DataIndex, tmp_path: Path) -> None:
    model = mcc.load(run.best, device="cpu")
    file = index.val[0].image
    found = model.predict(file)
    height, width = np.array(Image.open(file)).shape[:2]
    assert found.image.shape == (height, width, 3) and found.image.dtype == np.uint8
    assert found.mask.shape == (height, width) and found.mask.dtype == np.uint8
    assert found.scores.shape == (len(model.classes),) and ((found.scores >= 0) & (found.scores <= 1)).all()
    assert set(found.cams) == {"cam", "aux_cam"}
    assert all(cam.shape == (len(model.classes), height, width) for cam in found.cams.values())
    assert found.classes == model.classes == index.classes
    assert (found.palette == model.palette).all() and tuple(found.palette[1]) == (128, 0, 0)
    assert {found.classes.index(name) + 1 for name in found.present} == set(np.unique(found.mask)) - {0}
    assert found._repr_png_().startswith(b"\x89PNG")
    assert '<img alt="prediction" src="data:image/png;base64,' in found._repr_html_()
    found.save(tmp_path / "mask.png")
    assert (np.array(Image.open(tmp_path / "mask.png")) == found.mask).all()


def test_one_image_in_any_form_and_in_a_batch_gives_the_same(run: mcc.Training, index: mcc.DataIndex) -> None:
    model = mcc.load(run.best, device="cpu")
    files = [item.image for item in index.val[:3]]
    alone = [model.predict(file) for file in files]
    pixels = [one.image for one in alone]
    forms: list[Any] = [model.predict(str(files[0])), model.predict(pixels[0]), model.predict(Image.open(files[0]))]
    assert all((form.mask == alone[0].mask).all() for form in forms)
    batches: list[Any] = [
        model.predict(files, batch=2),
        model.predict(np.stack(pixels)),
        model.predict([*pixels], batch=3),
    ]
    for several in batches:
        assert [found.mask.tolist() for found in several] == [one.mask.tolist() for one in alone]
    sizes = [pixels[0], pixels[1][:40], pixels[2][:40]]
    assert [found.mask.shape for found in model.predict(sizes, batch=3)] == [(48, 48), (40, 48), (40, 48)]
    assert model.predict([]) == []


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((4, 4, 3)), r"images: an array 4,4,3 of float64: expected H,W,3 of uint8"),
        (np.zeros((4, 4), np.uint8), r"images: an array 4,4 of uint8"),
        ([np.zeros((4, 4, 3), np.uint8), 7], r"images\[1\]: int: expected a file"),
        ("nowhere.jpg", r"nowhere\.jpg: "),
    ],
)
def test_what_is_no_image_is_one_line(run: mcc.Training, image: object, message: str) -> None:
    with pytest.raises(mcc.UsageError, match=message):
        run.model.predict(image)  # type: ignore[call-overload]


def test_scores_are_those_of_the_protocols(run: mcc.Training, index: mcc.DataIndex) -> None:
    found = mcc.evaluate(run.model, index, protocols=("single", "cam"), limit=4)
    assert found.images == 4 and set(found.values) == {"single", "cam"}
    assert found.miou["single"] == found.values["single"]["miou"]
    assert "<table>" in found._repr_html_() and "single" in repr(found)
    with pytest.raises(mcc.UsageError, match="protocols: 'mss': not one of cam"):
        mcc.evaluate(run.model, index, protocols="mss")
    with pytest.raises(mcc.UsageError, match="changes: scales"):
        mcc.evaluate(run.model, index, changes={"scales": []})


def test_names_that_are_no_files_are_read_by_who_offers_it(monkeypatch: pytest.MonkeyPatch, run: mcc.Training) -> None:
    def offered(*entries: EntryPoint) -> None:
        monkeypatch.setattr(locate, "entry_points", lambda group: EntryPoints(entries))

    offered()
    with pytest.raises(mcc.UsageError, match="SWEEP/A: no such checkpoint file, and names of trials are read by"):
        mcc.load("SWEEP/A")
    with pytest.raises(mcc.UsageError, match=r"s3://b/k\.pt: no installed package reads s3: addresses \(.*none\)"):
        mcc.load("s3://b/k.pt")
    offered(EntryPoint("s3", "nowhere_at_all:f", locate.GROUP))
    with pytest.raises(mcc.UsageError, match="nowhere_at_all:f, which reads such names, cannot be imported"):
        mcc.load("s3://b/k.pt")
    monkeypatch.setitem(sys.modules, "offering", type(sys)("offering"))
    sys.modules["offering"].find = lambda name: run.best  # type: ignore[attr-defined]
    offered(EntryPoint("models", "offering:find", locate.GROUP))
    assert mcc.load("models:/net@best", device="cpu").iteration == run.model.iteration
