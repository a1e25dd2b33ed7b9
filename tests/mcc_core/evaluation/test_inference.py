"""Prediction on a user's own files."""

from __future__ import annotations

import csv
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from experiments import mcc_experiment
from PIL import Image
from small import SMALL

from mcc_core import checkpoint as checkpoints
from mcc_core.checkpoint import Checkpoint
from mcc_core.config import Experiment
from mcc_core.data.image_files import image_files
from mcc_core.data.pixels import read_rgb
from mcc_core.data.shapes import scene
from mcc_core.errors import UsageError
from mcc_core.evaluation import inference
from mcc_core.evaluation.inference import Prediction, predict, predict_files, to_tensor
from mcc_core.evaluation.protocols import (
    Maps,
    ProtocolName,
    combined_logits,
    label_map,
    least_side,
    network_maps,
    padded,
    raw_logits,
)
from mcc_core.methods.mcc.network import MCCNet
from mcc_core.methods.registry import method_of


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checkpoint") / "x.pt"
    experiment = mcc_experiment("tiny", SMALL)
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
    written = predict_files(checkpoint, files, tmp_path / "out", device="cpu").masks
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
    again = predict_files(checkpoint, files, tmp_path / "out", device="cpu")
    assert (len(again.masks), again.before) == (3, 2)
    assert before == [(tmp_path / "out" / "masks" / f"{i}.png").stat().st_mtime_ns for i in range(2)]
    assert len(list(csv.reader((tmp_path / "out" / "scores.csv").open()))) == 4


def test_broken_files_are_named_after_the_others_are_done(checkpoint: Path, tmp_path: Path) -> None:
    good = photo(tmp_path / "good.jpg", 40, 40)
    cut = photo(tmp_path / "cut.jpg", 40, 40)
    cut.write_bytes(cut.read_bytes()[:300])
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "text.png").write_text("no image")
    broken = [cut, tmp_path / "empty.jpg", tmp_path / "text.png"]
    found = predict_files(checkpoint, [*broken, good], tmp_path / "out", device="cpu")
    lines = found.broken
    assert len(lines) == 3 and all(path.name in line for path, line in zip(broken, lines, strict=True))
    assert found.masks == [tmp_path / "out" / "masks" / "good.png"] and found.masks[0].exists()


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
    written = predict_files(checkpoint, files, tmp_path / "out", device="cpu", protocol=protocol, batch=2).masks
    for file, mask in zip(files, written, strict=True):
        image = read_rgb(file)
        maps = network_maps(saved.network(), image, (), [protocol], config, torch.device("cpu"))
        same = np.asarray(Image.open(mask)) == label_map(maps, protocol, config, image)
        assert same.mean() > 0.999


def test_files_folders_patterns_and_lists(tmp_path: Path) -> None:
    (tmp_path / "more").mkdir()
    a, b, c = (photo(tmp_path / name, 20, 20) for name in ("a.jpg", "b.png", "more/c.jpg"))
    (tmp_path / "list.txt").write_text("more/c.jpg\n\na.jpg\n")
    assert image_files([tmp_path]) == (
        [a, b],
        [f"{tmp_path}: left out: 1 folders, such as more; 1 files that are hidden or no images, such as list.txt"],
    )
    assert image_files([tmp_path / "*.jpg", tmp_path / "more"]).files == [a, c]
    assert image_files([tmp_path / "**" / "*.jpg"]).files == [a, c]
    assert image_files([tmp_path / "list.txt", b]).files == [c, a, b]
    (tmp_path / "list.txt").write_text("d.jpg\n")
    for wrong in ("list.txt", "nothing.jpg", "*.gif"):
        with pytest.raises(UsageError, match=str(tmp_path).replace("\\", ".")):
            image_files([tmp_path / wrong])
    (tmp_path / "list.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="not a text file in UTF-8"):
        image_files([tmp_path / "list.txt"])


def test_another_picture_of_the_same_name_is_predicted_beside_the_first(checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (tmp_path / "other").mkdir()
    first, other = photo(tmp_path / "photo.png", 40, 30), photo(tmp_path / "other" / "photo.png", 30, 50)
    predict_files(checkpoint, [first], out, device="cpu")
    kept = (out / "masks" / "photo.png").read_bytes()
    found = predict_files(checkpoint, [other, first], out, device="cpu")
    assert [p.name for p in found.masks] == ["photo-2.png", "photo.png"] and found.renamed == [(other, "photo-2")]
    assert Image.open(found.masks[0]).size == (30, 50) and (out / "masks" / "photo.png").read_bytes() == kept
    # Whatever the order, each file finds its own again, a moved one too.
    moved = first.rename(tmp_path / "other" / "elsewhere")
    moved = moved.rename(tmp_path / "photo.png")
    again = predict_files(checkpoint, [moved, other, moved], out, device="cpu")
    assert [p.name for p in again.masks] == ["photo.png", "photo-2.png"] and again.before == 2
    assert again.repeated == [moved]
    rows = list(csv.DictReader((out / "scores.csv").open()))
    assert [row["image"] for row in rows] == ["photo", "photo-2"]


def test_a_file_that_has_changed_is_predicted_again(checkpoint: Path, tmp_path: Path) -> None:
    out, file = tmp_path / "out", photo(tmp_path / "photo.png", 40, 30)
    predict_files(checkpoint, [file], out, device="cpu")
    photo(file, 30, 50)
    found = predict_files(checkpoint, [file], out, device="cpu")
    assert found.changed == [file] and Image.open(found.masks[0]).size == (30, 50)
    assert len(list(csv.reader((out / "scores.csv").open()))) == 2
    found.masks[0].unlink()
    assert predict_files(checkpoint, [file], out, device="cpu").before == 0 and found.masks[0].exists()


def test_a_folder_of_other_predictions_is_refused_and_kept(checkpoint: Path, tmp_path: Path) -> None:
    file, out = photo(tmp_path / "photo.png", 40, 30), tmp_path / "out"
    predict_files(checkpoint, [file], out, device="cpu")
    kept = {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    saved = checkpoints.load(checkpoint)
    other = tmp_path / "y.pt"
    checkpoints.save(dataclasses.replace(saved, iteration=7), other)
    with pytest.raises(UsageError, match="out: holds predictions of another checkpoint; give another --out"):
        predict_files(other, [file], out, device="cpu")
    with pytest.raises(UsageError, match="out: holds predictions by protocol ms, not single"):
        predict_files(checkpoint, [file], out, device="cpu", protocol="single")
    (tmp_path / "old" / "masks").mkdir(parents=True)
    photo(tmp_path / "old" / "masks" / "photo.png", 4, 4)
    with pytest.raises(UsageError, match=r"old: holds files and no predictions.jsonl"):
        predict_files(checkpoint, [file], tmp_path / "old", device="cpu")
    with pytest.raises(UsageError, match=r"photo.png: cannot be made a folder"):
        predict_files(checkpoint, [file], file, device="cpu")
    assert kept == {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}


def test_names_never_collide_and_what_was_written_is_no_input(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    names = ("a.png", "a-2.png", "other/a.png")
    files = [photo(tmp_path / name, 20 + i, 20) for i, name in enumerate(names)]
    found = predict_files(checkpoint, files, tmp_path, device="cpu")
    assert [p.name for p in found.masks] == ["a.png", "a-2.png", "a-3.png"]
    again = predict_files(checkpoint, image_files([tmp_path / "**" / "*.png"]).files, tmp_path, device="cpu")
    assert (again.before, len(again.masks), len(again.own)) == (3, 3, 6)


@pytest.mark.parametrize("protocol", ["single", "ms", "ms_crf"])
@pytest.mark.parametrize("size", [(1, 1), (3, 7), (200, 2), (9, 40), (15, 15)])
def test_sides_below_a_patch_are_padded(
    checkpoint: Path, tmp_path: Path, protocol: ProtocolName, size: tuple[int, int]
) -> None:
    file = photo(tmp_path / "small.png", *size)
    found = predict_files(checkpoint, [file], tmp_path / "out", device="cpu", protocol=protocol)
    assert Image.open(found.masks[0]).size == size
    saved, image = checkpoints.load(checkpoint), read_rgb(file)
    config = method_of(saved.experiment).evaluation(saved.experiment, 3)
    every = get_args(ProtocolName)
    maps = network_maps(saved.network(), image, (0, 2), every, config, torch.device("cpu"))
    maps = Maps.of_arrays(maps.arrays("float32"))
    assert (label_map(maps, protocol, config, image) == np.asarray(Image.open(found.masks[0]))).mean() > 0.99
    for one in every:
        assert label_map(maps, one, config, image).shape == image.shape[:2]


def test_padding_changes_no_image_that_needs_none(checkpoint: Path) -> None:
    network = checkpoints.load(checkpoint).network()
    least = least_side(network, (1.0, 0.5))
    assert isinstance(network, MCCNet) and least == 2 * network.encoder.patch
    image = torch.rand(1, 3, least, least + 5)
    assert padded(image, least).shape == image.shape
    small = padded(image[..., :3, :4], least)
    assert small.shape[-2:] == (least, least) and small[..., 3:, :].abs().max() == 0 and small[..., 4:].abs().max() == 0


def test_a_network_without_finite_scores_writes_no_prediction(checkpoint: Path, tmp_path: Path) -> None:
    saved = checkpoints.load(checkpoint)
    saved.model["encoder.vit.patch_embed.proj.weight"].mul_(1e38)  # finite, what comes of it is not
    checkpoints.save(saved, tmp_path / "huge.pt")
    file = photo(tmp_path / "photo.png", 40, 30)
    found = predict_files(tmp_path / "huge.pt", [file], tmp_path / "out", device="cpu")
    assert found.broken == [f"{file}: the network gives no finite scores"] and found.masks == []


def test_an_image_too_large_for_the_memory_stops_no_other(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def limited(model: MCCNet, experiment: Experiment, images: Sequence[np.ndarray], *more: Any) -> list[Prediction]:
        if sum(image.size for image in images) > 3 * 40 * 40:
            raise torch.OutOfMemoryError
        return predict(model, experiment, images, *more)

    monkeypatch.setattr(inference, "predict", limited)
    files = [photo(tmp_path / f"{i}.png", size, size) for i, size in enumerate((40, 40, 41, 40))]
    found = predict_files(checkpoint, files, tmp_path / "out", device="cpu", batch=2)
    assert [p.name for p in found.masks] == ["0.png", "1.png", "3.png"]
    assert found.broken == [f"{files[2]}: 41x41 pixels need more memory than there is"]
