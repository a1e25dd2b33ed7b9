"""CLIMS against slow formulas in double precision, and what CLIP and checkpoints have to do with its network."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from trained import smallest

from mcc_core.checkpoint import Checkpoint, save
from mcc_core.clip.prompts import load_prompts
from mcc_core.config import IMAGENET_MEAN, IMAGENET_STD
from mcc_core.data.voc import VOC_CLASSES
from mcc_core.errors import UsageError
from mcc_core.methods.clims.config import Experiment
from mcc_core.methods.clims.network import CLIMSNet
from mcc_core.methods.clims.objective import CLIMSObjective, matched, unmatched
from mcc_core.methods.registry import method_of
from orchestrator.planning.configurations import _absolute
from orchestrator.planning.identity import trial_identity
from orchestrator.planning.label_sets import named

CLASSES = ("cat", "dog", "cow")
LABELS = torch.tensor([[1.0, 0, 0], [0, 1, 1]])
PROMPTS = """
templates: ["a photo of {}.", "{}"]
backgrounds: [sky, grass]
companions: {cat: [sofa, carpet, wall]}
"""


def experiment(**fields: Any) -> Experiment:
    return cast(Experiment, smallest("clims", **fields))


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CLIMSObjective]:
    file = tmp_path_factory.mktemp("prompts") / "prompts.yaml"
    file.write_text(PROMPTS)
    config = experiment(**{"clip.prompts": str(file)})
    torch.manual_seed(0)
    objective = CLIMSObjective(CLIMSNet(config, 3).double(), config)
    objective.begin(CLASSES)
    assert objective.clip is not None
    objective.clip.clip.double()
    objective.texts = objective.texts.double()
    objective.companions = [texts.double() for texts in objective.companions]
    yield objective


def test_similarities_become_losses_and_never_infinite_ones() -> None:
    similar = torch.tensor([0.3, 0.9, -0.2, 1.0], dtype=torch.float64)
    least = -math.log(1e-4)
    torch.testing.assert_close(matched(similar)[:3].tolist(), [-math.log(0.3), -math.log(0.9), least])
    torch.testing.assert_close(unmatched(similar).tolist(), [-math.log(0.7), -math.log(0.1), 0.0, least])


def test_each_term_is_the_sum_over_an_images_classes_averaged_over_images(begun: CLIMSObjective) -> None:
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    clip, network = begun.clip, begun.network.train()
    assert clip is not None
    # Directions of a random CLIP are what they are: all similarities are made positive, and none is cut off.
    gaps = [begun.texts, *begun.companions]
    with torch.no_grad():
        mean = clip.image_features(images).mean(0)
        begun.texts, *begun.companions = [F.normalize(texts + 2 * mean, dim=-1) for texts in gaps]
    step = begun({"view1": images, "labels": LABELS.double()}, {}, 0)
    maps = torch.einsum("bdhw,cd->bchw", network.scored(images).features[-1], network.maps.weight[:, :, 0, 0])
    maps = 1 / (1 + (-maps).exp())
    pixels = torch.stack([images[:, c] * IMAGENET_STD[c] + IMAGENET_MEAN[c] for c in range(3)], 1)
    wanted = {"object_text": 0.0, "background_text": 0.0, "companion_text": 0.0, "area": maps.mean().item()}
    for image, label in ((0, 0), (1, 1), (1, 2)):
        seen = F.interpolate(maps[image, label][None, None], size=(32, 32), mode="bilinear")[0]

        def feature(mask: Tensor, image: int = image) -> Tensor:
            mean, std = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
            normal = torch.stack([(pixels[image, c] - mean[c]) / std[c] for c in range(3)])
            found = clip.clip.encode_image((normal * mask)[None])[0]
            return found / found.norm()

        shown, hidden = feature(seen), feature(1 - seen)
        wanted["object_text"] -= math.log((shown @ begun.texts[label]).item()) / 2
        wanted["background_text"] -= math.log(1 - (hidden @ begun.texts[label]).item()) / 2
        for text in begun.companions[label]:
            wanted["companion_text"] -= math.log(1 - (shown @ text).item()) / 2
    for name, value in wanted.items():
        assert step.terms[name].item() == pytest.approx(value, rel=1e-9), name
    weighted = 10 * wanted["object_text"] + 24 * wanted["background_text"] + wanted["companion_text"]
    total = step.terms["cls"].item() + weighted + 0.2 * wanted["area"]
    assert step.total.item() == pytest.approx(total, rel=1e-9)
    step.total.backward()
    assert network.maps.weight.grad is not None and network.maps.weight.grad[0].any()
    assert not any(p.requires_grad for p in clip.clip.parameters())
    begun.texts, *begun.companions = gaps


def test_texts_are_of_the_file_and_a_class_without_companions_has_the_backgrounds(begun: CLIMSObjective) -> None:
    assert begun.texts.shape[0] == 3 and [len(texts) for texts in begun.companions] == [3, 2, 2]
    torch.testing.assert_close(begun.companions[1], begun.companions[2])
    assert not any("clip" in name for name in begun.state_dict())


def test_an_image_without_a_class_costs_its_area_alone(begun: CLIMSObjective) -> None:
    images = torch.randn(1, 3, 32, 32, dtype=torch.float64)
    step = begun({"view1": images, "labels": torch.zeros(1, 3, dtype=torch.float64)}, {}, 0)
    assert not any(step.terms[name] for name in ("object_text", "background_text", "companion_text"))
    assert step.terms["area"] > 0 and step.total.isfinite()


def test_a_checkpoint_begins_backbone_and_maps(tmp_path: Path) -> None:
    torch.manual_seed(1)
    recam = smallest("recam")
    state = dict(method_of(recam).network(recam, 3).state_dict())
    save(Checkpoint(recam, CLASSES, 6, 0, state, None, {}), tmp_path / "recam.pt")
    weights = {"model.weights": str(tmp_path / "recam.pt")}
    network = CLIMSNet(experiment(**weights), 3)
    assert torch.equal(network.maps.weight, state["classifier.weight"])
    assert torch.equal(network.backbone.conv1.weight, state["backbone.conv1.weight"])
    assert CLIMSNet(experiment(**weights), 4).maps.weight.shape[0] == 4


def test_identity_has_what_files_hold_and_not_where_they_lie(tmp_path: Path) -> None:
    def identity(name: str, text: str) -> str:
        file = tmp_path / name
        file.write_text(text)
        return trial_identity(experiment(**{"clip.prompts": str(file)}), 0, "data")

    first = identity("a.yaml", PROMPTS)
    assert identity("b.yaml", PROMPTS) == first != identity("c.yaml", PROMPTS.replace("sofa", "chair"))
    assert method_of(experiment()).told == "I+L" and named("a", experiment()) == "a (I+L)"
    with pytest.raises(UsageError, match=r"^clip\.weights: .*none\.pt: no such file$"):
        _absolute(experiment(**{"clip.weights": "none.pt"}))
    (tmp_path / "x").mkdir()
    found = _absolute(experiment(**{"clip.prompts": str(tmp_path / "x" / ".." / "a.yaml")}))
    assert cast(Experiment, found).clip.prompts == str(tmp_path / "a.yaml")
    assert cast(Experiment, _absolute(experiment())).clip.prompts == "clims"


def test_shipped_prompts_suit_voc_and_mistakes_are_one_line(tmp_path: Path) -> None:
    assert set(load_prompts("clims-voc", VOC_CLASSES).companions) == set(VOC_CLASSES)
    assert not load_prompts("clims", CLASSES).companions
    file = tmp_path / "prompts.yaml"
    for wrong, said in (
        ("{catt: [sofa]}", r"companions\.catt: no class of the data; did you mean cat\?"),
        ("{cat: [cat]}", r"companions\.cat: holds the class itself"),
        ("{cat: ['']}", "an empty text says nothing"),
    ):
        file.write_text(PROMPTS.replace("{cat: [sofa, carpet, wall]}", wrong))
        with pytest.raises(UsageError, match=said):
            load_prompts(str(file), CLASSES)
