"""Prediction on a user's own files."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from small import SMALL

from mcc_core import checkpoint as checkpoints
from mcc_core.checkpoint import Checkpoint
from mcc_core.data.shapes import scene
from mcc_core.data.voc import read_rgb
from mcc_core.errors import DataError, UsageError
from mcc_core.evaluation.inference import image_files, predict_files, to_tensor
from mcc_core.evaluation.protocols import (
    ProtocolName,
    combined_logits,
    label_map,
    network_maps,
    raw_logits,
)
from mcc_core.experiment_files import resolve
from mcc_core.methods.mcc.network import MCCNet
from mcc_core.methods.registry import method_of


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checkpoint") / "x.pt"
    experiment = resolve("tiny", SMALL)
    torch.manual_seed(0)
    network = MCCNet(experiment.model, 3)
    checkpoints.save(Checkpoint(experiment, ("a", "b", "c"), 6, 0, network.state_dict(), None, {}), path)
    return path


def photo(path: Path, width: int, height: int) -> Path:
    picture = Image.fromarray(scene(64, np.random.default_rng(1))[0]).resize((width, height))
    picture.save(path)
    return path


def test_writes_everything_for_images_of_any_size(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    files = [
        photo(tmp_path / "wide.jpg", 75, 33),
        photo(tmp_path / "tall.png", 30, 90),
        photo(tmp_path / "other" / "wide.jpg", 20, 20),
    ]
    written = predict_files(checkpoint, files, tmp_path / "out", device="cpu")
    assert [p.name for p in written] == ["wide.png", "tall.png", "wide-2.png"]
    for file, mask_file in zip(files, written, strict=True):
        mask = Image.open(mask_file)
        assert mask.mode == "P" and mask.size == Image.open(file).size
        assert np.asarray(mask).max() <= 3
    assert {p.name for p in (tmp_path / "out" / "panels").iterdir()} == {"wide.png", "tall.png", "wide-2.png"}
    rows = list(csv.DictReader((tmp_path / "out" / "scores.csv").open()))
    assert [r["image"] for r in rows] == ["wide", "tall", "wide-2"]
    assert all(0 <= float(r[c]) <= 1 for r in rows for c in "abc")


def test_goes_on_where_it_stopped(checkpoint: Path, tmp_path: Path) -> None:
    files = [photo(tmp_path / f"{i}.jpg", 40, 40) for i in range(3)]
    predict_files(checkpoint, files[:2], tmp_path / "out", device="cpu")
    before = [(tmp_path / "out" / "masks" / f"{i}.png").stat().st_mtime_ns for i in range(2)]
    assert len(predict_files(checkpoint, files, tmp_path / "out", device="cpu")) == 3
    assert before == [(tmp_path / "out" / "masks" / f"{i}.png").stat().st_mtime_ns for i in range(2)]
    assert len(list(csv.reader((tmp_path / "out" / "scores.csv").open()))) == 4


def test_broken_files_are_named_after_the_others_are_done(checkpoint: Path, tmp_path: Path) -> None:
    good = photo(tmp_path / "good.jpg", 40, 40)
    cut = photo(tmp_path / "cut.jpg", 40, 40)
    cut.write_bytes(cut.read_bytes()[:300])
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "text.png").write_text("no image")
    broken = [cut, tmp_path / "empty.jpg", tmp_path / "text.png"]
    with pytest.raises(DataError) as caught:
        predict_files(checkpoint, [*broken, good], tmp_path / "out", device="cpu")
    lines = str(caught.value).splitlines()
    assert len(lines) == 3 and all(path.name in line for path, line in zip(broken, lines, strict=True))
    assert (tmp_path / "out" / "masks" / "good.png").exists()


def test_image_modes_and_rotation(tmp_path: Path) -> None:
    picture = Image.new("RGB", (30, 20), "red")
    exif = picture.getexif()
    exif[0x0112] = 6
    picture.save(tmp_path / "turned.jpg", exif=exif)
    assert read_rgb(tmp_path / "turned.jpg").shape == (30, 20, 3)
    for mode in ("L", "CMYK", "RGBA", "P", "1"):
        suffix = "jpg" if mode in {"L", "CMYK"} else "png"
        picture.convert(mode).save(tmp_path / f"{mode}.{suffix}")
        assert read_rgb(tmp_path / f"{mode}.{suffix}").shape == (20, 30, 3)


def test_flipping_the_image_flips_the_segmentation(checkpoint: Path) -> None:
    network = checkpoints.load(checkpoint).network()
    image = to_tensor([scene(48, np.random.default_rng(0))[0]])
    one, other = (combined_logits(raw_logits(network, x, (1.0, 1.5)), (48, 48), "voc") for x in (image, image.flip(-1)))
    torch.testing.assert_close(one, other.flip(-1), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("protocol", ["single", "ms", "ms_crf"])
def test_masks_are_those_that_the_protocol_scores(checkpoint: Path, tmp_path: Path, protocol: ProtocolName) -> None:
    """One by one as the evaluation does it, against batches that end at another size."""
    saved = checkpoints.load(checkpoint)
    config = method_of(saved.experiment).evaluation(saved.experiment, 3)
    sizes = [(40, 30), (40, 30), (40, 30), (30, 40), (40, 30)]
    files = [photo(tmp_path / f"{i}.png", *size) for i, size in enumerate(sizes)]
    written = predict_files(checkpoint, files, tmp_path / "out", device="cpu", protocol=protocol, batch=2)
    for file, mask in zip(files, written, strict=True):
        image = read_rgb(file)
        maps = network_maps(saved.network(), image, (), [protocol], config, torch.device("cpu"))
        same = np.asarray(Image.open(mask)) == label_map(maps, protocol, config, image)
        assert same.mean() > 0.999


def test_files_folders_patterns_and_lists(tmp_path: Path) -> None:
    (tmp_path / "more").mkdir()
    a, b, c = (photo(tmp_path / name, 20, 20) for name in ("a.jpg", "b.png", "more/c.jpg"))
    (tmp_path / "list.txt").write_text("more/c.jpg\n\na.jpg\n")
    assert image_files([tmp_path]) == [a, b]
    assert image_files([tmp_path / "*.jpg", tmp_path / "more"]) == [a, c]
    assert image_files([tmp_path / "**" / "*.jpg"]) == [a, c]
    assert image_files([tmp_path / "list.txt", b]) == [c, a, b]
    (tmp_path / "list.txt").write_text("d.jpg\n")
    for wrong in ("list.txt", "nothing.jpg", "*.gif"):
        with pytest.raises(UsageError, match=str(tmp_path).replace("\\", ".")):
            image_files([tmp_path / wrong])
