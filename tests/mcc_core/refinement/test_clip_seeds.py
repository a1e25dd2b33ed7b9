"""Label sets of a frozen CLIP, and its prompts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from tiny_clip import CPU, TINY
from trained import smallest

from mcc_core.checkpoint import Checkpoint, save
from mcc_core.clip.prompts import load_prompts
from mcc_core.data.coco import COCO_CLASSES
from mcc_core.data.index import DataIndex, build_index
from mcc_core.data.label_maps import read_label_set
from mcc_core.data.voc import VOC_CLASSES
from mcc_core.errors import UsageError
from mcc_core.methods.registry import random_network
from mcc_core.refinement.base import Refinement
from mcc_core.refinement.clip_seeds import REFINEMENT, ClipSeeds
from mcc_core.refinement.make import refine


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> DataIndex:
    return build_index(smallest("mcc").data, tmp_path_factory.mktemp("home"))


def test_seeds_become_the_same_label_set_again(index: DataIndex, tmp_path: Path) -> None:
    config = Refinement.model_validate(REFINEMENT | {"crf": {"iterations": 2}, "confidence": 0.5})
    seeds = ClipSeeds(TINY, index.classes, config, CPU)
    made = [refine(seeds, config, index, tmp_path / name, splits=("train", "val")) for name in ("a", "b")]
    labels = read_label_set(tmp_path / "a")
    assert labels.identity == made[1].labels.identity and labels.supervision == "weak" and labels.has_confidence
    assert labels.origin["clip"]["weights"] == "random" and labels.origin["refine"]["confidence"] == 0.5
    assert labels.origin["clip"]["prompts"]["classes"][0] == index.classes[0].replace("_", " ")
    assert set(made[0].scored) == {"train", "val"} and not made[0].broken
    for item in index.train:
        allowed = {0, 255, *(number + 1 for number in item.labels)}
        assert set(np.unique(labels.label(item.name)).tolist()) <= allowed


def test_the_background_is_what_the_highest_class_leaves(index: DataIndex) -> None:
    seeds, item = ClipSeeds(TINY, index.classes, Refinement(), CPU), index.train[0]
    image = np.random.default_rng(0).integers(0, 256, (40, 56, 3), dtype=np.uint8)
    picture = seeds.picture(item, image)
    assert picture.classes == tuple(sorted(item.labels)) and picture.has_background
    torch.testing.assert_close(picture.maps[0], 1 - picture.maps[1:].max(0).values)
    assert picture.maps.shape == (1 + len(item.labels), 40, 56)


def test_what_does_not_suit_is_refused(index: DataIndex) -> None:
    for fields, line in (
        ({"threshold": 0.3}, "threshold: is of a trained network's maps"),
        ({"kind": "random_walk"}, "kind: random_walk: needs a network's attention"),
        ({"certainty": 0.8}, "certainty: is of a label set without confidence"),
    ):
        with pytest.raises(UsageError, match=line):
            ClipSeeds(TINY, index.classes, Refinement.model_validate(fields), CPU)


def test_boundaries_of_a_trained_network_refine_them(index: DataIndex, tmp_path: Path) -> None:
    for supervision in ("weak", "full"):
        experiment = smallest("irn", **{"labels.supervision": supervision})
        weights = dict(random_network(experiment, len(index.classes)).state_dict())
        file = tmp_path / f"{supervision}.pt"
        save(Checkpoint(experiment, index.classes, 6, 0, weights, None, {}), file)
        config = Refinement.model_validate({"kind": "irn", "irn": {"network": file, "radius": 3, "log_steps": 2}})
        seeds = ClipSeeds(TINY, index.classes, config, CPU)
        made = refine(seeds, config, index, tmp_path / supervision, limit=1)
        assert made.labels.supervision == supervision and len(made.labels.names) == 1


def test_shipped_prompts_suit_their_datasets() -> None:
    assert load_prompts("voc", VOC_CLASSES).texts(VOC_CLASSES)[19] == "tv monitor screen"
    assert len(set(load_prompts("coco", COCO_CLASSES).texts(COCO_CLASSES))) == 80
    assert load_prompts("default", ["ring_disc"]).filled("ring disc") == ["a clean origami ring disc."]


GOOD: dict[str, Any] = {"templates": ["a {}"], "backgrounds": ["sky", "grass"], "classes": {"cat": "tabby"}}


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"templates": ["a photo"]}, r"templates: 'a photo': expected one \{\} for the name"),
        ({"templates": ["a {} {}"]}, r"templates: 'a \{\} \{\}': expected one"),
        ({"templates": []}, r"templates"),
        ({"backgrounds": ["sky", "sky"]}, r"backgrounds: 'sky' is there twice"),
        ({"backgrounds": ["tabby"]}, r"backgrounds: 'tabby' is a class too"),
        ({"backgrounds": [" "]}, r"an empty text says nothing"),
        ({"classes": {"cot": "x"}}, r"classes\.cot: no class of the data; did you mean cat\?"),
        ({"classes": {"cat": "dog"}}, r"classes: 'dog' stands for two classes"),
        ({"colours": []}, r"colours: unknown field"),
    ],
)
def test_a_mistake_in_prompts_is_one_line(changes: dict[str, Any], line: str, tmp_path: Path) -> None:
    file = tmp_path / "prompts.yaml"
    file.write_text(yaml.safe_dump(GOOD))
    assert load_prompts(str(file), ["cat", "dog"]).texts(["cat", "dog"]) == ["tabby", "dog"]
    file.write_text(yaml.safe_dump(GOOD | changes))
    with pytest.raises(UsageError, match=rf"prompts\.yaml: .*{line}") as raised:
        load_prompts(str(file), ["cat", "dog"])
    assert "\n" not in str(raised.value)


def test_prompts_that_are_not_there() -> None:
    with pytest.raises(
        UsageError, match=r"clip\.prompts: vok: no such file, and none of the shipped clims, .*, default"
    ):
        load_prompts("vok", VOC_CLASSES)
