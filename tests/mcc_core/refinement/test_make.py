"""Label sets made of a network's maps and of other label sets, and their scores."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from trained import smallest

from mcc_core.checkpoint import Checkpoint
from mcc_core.data.index import DataIndex, build_index
from mcc_core.data.label_maps import read_label_set
from mcc_core.errors import DataError, UsageError
from mcc_core.evaluation.scoring import Scorer, metrics, protocol_settings, totals
from mcc_core.methods.registry import network_of
from mcc_core.refinement.base import Refinement
from mcc_core.refinement.make import refine, score_labels
from mcc_core.refinement.seeds import LabelSeeds, NetworkSeeds

CPU = torch.device("cpu")
CHAIN = Refinement.model_validate({"kind": "random_walk,crf", "threshold": 0.4, "crf": {"iterations": 2}})


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> DataIndex:
    return build_index(smallest("mcc").data, tmp_path_factory.mktemp("home"))


@pytest.fixture(scope="module")
def saved(index: DataIndex) -> Checkpoint:
    experiment = smallest("mcc")
    torch.manual_seed(0)
    weights = network_of(experiment, len(index.classes)).state_dict()
    return Checkpoint(experiment, index.classes, 0, 0, weights, None, {})


def content(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_seeds_score_as_the_evaluation_says(saved: Checkpoint, index: DataIndex, tmp_path: Path) -> None:
    config = Refinement(threshold=0.5)
    made = refine(NetworkSeeds(saved, config, CPU), config, index, tmp_path / "out", splits=("train", "val"))
    settings = protocol_settings(saved.experiment, len(index.classes), ["cam"], {"cam_threshold": 0.5}, "here")
    with Scorer(saved.network(), settings, index.masks, CPU) as scorer:
        each = [score.counts for score in scorer.scores(index.val)]
    expected = metrics(totals(each, len(index.classes) + 1)["cam"], "val", "cam", index.classes)
    assert made.seeds["val"] == expected
    assert [m.value for m in made.refined["val"] if m.name == "miou"] == [expected[0].value]
    assert made.scored == {"train": 8, "val": 4} and not made.broken
    assert score_labels(read_label_set(tmp_path / "out"), index) == made.refined


def test_a_chain_gives_the_same_files_again(saved: Checkpoint, index: DataIndex, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    seeds = NetworkSeeds(saved, CHAIN, CPU, name="a/b", digest="0")
    made = refine(seeds, CHAIN, index, tmp_path / "a", identity="0" * 16, on_image=lambda *at: seen.append(at))
    again = refine(seeds, CHAIN, index, tmp_path / "b", identity="0" * 16)
    assert seen == [(number, 8) for number in range(1, 9)]
    assert content(tmp_path / "a") == content(tmp_path / "b") and made.refined == again.refined
    labels = read_label_set(made.labels.path)
    assert labels.identity == "0" * 16 and labels.supervision == "weak" and labels.has_confidence
    assert set(labels.names) == {item.name for item in index.train}
    assert labels.origin["refine"] == CHAIN.decisive() and labels.origin["network"] == "a/b"
    assert made.refined["train"] != made.seeds["train"]


@pytest.mark.slow
def test_other_processes_give_the_same_files(saved: Checkpoint, index: DataIndex, tmp_path: Path) -> None:
    seeds = NetworkSeeds(saved, CHAIN, CPU)
    refine(seeds, CHAIN, index, tmp_path / "a")
    refine(seeds, CHAIN, index, tmp_path / "b", processes=2)
    assert content(tmp_path / "a") == content(tmp_path / "b")


def test_a_run_that_was_cut_off_goes_on_and_gives_the_same_files(
    saved: Checkpoint, index: DataIndex, tmp_path: Path
) -> None:
    config, out = Refinement.model_validate({"kind": "par", "par": {"iterations": 1}}), tmp_path / "out"
    whole = refine(NetworkSeeds(saved, config, CPU), config, index, tmp_path / "whole", identity="0" * 16)

    def run(limit: int, identity: str = "0" * 16) -> list[int]:
        """Numbers that were told of a run that ends after so many images."""
        seen: list[int] = []

        def told(done: int, total: int) -> None:
            seen.append(done)
            if done == limit:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            refine(seeds, config, index, out, identity=identity, on_image=told, goes_on=True)
        return seen

    seeds = NetworkSeeds(saved, config, CPU)
    assert run(5) == [0, 1, 2, 3, 4, 5]
    first, second, third, *_ = (item.name for item in index.train)
    (out / "maps" / f"{second}.png").write_bytes(b"half")
    (out / "confidence" / f"{third}.png").unlink()
    (out / "maps" / ".x.png.1-1.part").touch()
    touched = (out / "maps" / f"{first}.png").stat().st_mtime_ns
    assert run(6) == [3, 4, 5, 6]
    made = refine(seeds, config, index, out, identity="0" * 16, goes_on=True)
    assert (out / "maps" / f"{first}.png").stat().st_mtime_ns == touched
    made_of = {name: data for name, data in content(out).items() if name != "progress.jsonl"}
    assert made_of == content(tmp_path / "whole") and made.refined == whole.refined and made.seeds == whole.seeds
    assert read_label_set(out).names == whole.labels.names
    assert run(1, identity="1" * 16) == [0, 1]  # of something else: nothing is taken over
    (out / "progress.jsonl").write_text("not ours\n")
    assert run(1, identity="1" * 16) == [0, 1] and len(list((out / "maps").iterdir())) == 1


def test_a_label_set_is_refined_further(saved: Checkpoint, index: DataIndex, tmp_path: Path) -> None:
    first = Refinement(threshold=0.3, foreground=0.6, keep_confidence=False)
    made = refine(NetworkSeeds(saved, first, CPU), first, index, tmp_path / "first")
    assert not made.labels.has_confidence
    crf = Refinement.model_validate({"kind": "crf"})
    finer = refine(LabelSeeds(made.labels, crf, CPU), crf, index, tmp_path / "finer")
    open_before = sum(int((made.labels.label(name) == 255).sum()) for name in made.labels.names)
    assert open_before and not any((finer.labels.label(name) == 255).any() for name in finer.labels.names)
    assert finer.labels.origin["labels"] == made.labels.identity
    same = Refinement(keep_confidence=False)
    kept = refine(LabelSeeds(made.labels, same, CPU), same, index, tmp_path / "kept").labels
    for name in kept.names:
        assert (made.labels.label(name) == kept.label(name)).all()
    LabelSeeds(made.labels, Refinement(certainty=0.9), CPU)
    with pytest.raises(UsageError, match="certainty: is of a label set without confidence; this one says itself"):
        LabelSeeds(finer.labels, Refinement(certainty=0.9), CPU)
    with pytest.raises(UsageError, match="certainty: is of a label set without confidence"):
        NetworkSeeds(saved, Refinement(certainty=0.9), CPU)
    with pytest.raises(UsageError, match="threshold: is of class maps"):
        LabelSeeds(made.labels, Refinement(threshold=0.3), CPU)
    with pytest.raises(UsageError, match="needs a network's attention"):
        LabelSeeds(made.labels, CHAIN, CPU)


def test_what_cannot_be_read_is_named(saved: Checkpoint, index: DataIndex, tmp_path: Path) -> None:
    first, second, *_ = index.train
    broken, masked = tmp_path / "broken.jpg", tmp_path / "mask.png"
    broken.write_bytes(first.image.read_bytes()[:200])
    Image.fromarray(np.zeros((3, 4), np.uint8)).save(masked)
    train = (dataclasses.replace(first, image=broken), *index.train[1:])
    spoiled = dataclasses.replace(index, train=train, masks={**index.masks, second.name: masked})
    config = Refinement()
    made = refine(NetworkSeeds(saved, config, CPU), config, spoiled, tmp_path / "out")
    assert [line.split(":")[0] for line in made.broken] == [str(broken), str(masked)]
    assert set(made.labels.names) == {item.name for item in index.train[1:]} and made.scored == {"train": 6}
    alone = dataclasses.replace(index, train=train[:1])
    with pytest.raises(DataError, match="none of 1 images can be refined"):
        refine(NetworkSeeds(saved, config, CPU), config, alone, tmp_path / "nothing")
    assert not (tmp_path / "nothing").exists() and not list(tmp_path.glob(".*"))


def test_other_classes_are_refused(saved: Checkpoint, index: DataIndex, tmp_path: Path) -> None:
    other = dataclasses.replace(index, classes=("a", *index.classes[1:]))
    config = Refinement()
    with pytest.raises(UsageError, match="the data has"):
        refine(NetworkSeeds(saved, config, CPU), config, other, tmp_path / "out")
    with pytest.raises(UsageError, match="has no such class map"):
        slr = smallest("slrnet")
        weights = network_of(slr, 3).state_dict()
        NetworkSeeds(Checkpoint(slr, ("a", "b", "c"), 0, 0, weights, None, {}), Refinement(seeds="aux_cam"), CPU)


def test_masks_of_images_are_not_looked_at(saved: Checkpoint, index: DataIndex, tmp_path: Path) -> None:
    config = Refinement(threshold=0.4)
    refine(NetworkSeeds(saved, config, CPU), config, index, tmp_path / "with")
    blind = dataclasses.replace(index, masks={})
    made = refine(NetworkSeeds(saved, config, CPU), config, blind, tmp_path / "without")
    assert content(tmp_path / "with") == content(tmp_path / "without") and not made.refined
    shutil.rmtree(tmp_path / "with")
