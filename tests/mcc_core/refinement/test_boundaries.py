"""The random walk between boundaries: what it makes of scores, and which network finds them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from trained import smallest

from mcc_core.checkpoint import Checkpoint, save
from mcc_core.data.index import Item
from mcc_core.data.label_maps import LabelSetWriter, read_label_set
from mcc_core.errors import UsageError
from mcc_core.files import file_digest
from mcc_core.methods.registry import random_network
from mcc_core.networks.base import Network
from mcc_core.pseudo_labels.inter_pixel import random_walk
from mcc_core.refinement.base import IrnConfig, Picture, Refinement, Viewer, refined
from mcc_core.refinement.boundaries import Irn
from mcc_core.refinement.kinds import STEPS
from mcc_core.refinement.second_network import second_network
from mcc_core.refinement.seeds import LabelSeeds
from mcc_core.validation import validate

CPU = torch.device("cpu")


def of(**fields: Any) -> Refinement:
    return validate(Refinement, {"kind": "irn", "irn": {"radius": 3, "log_steps": 3}} | fields, "refine")


def network(method: str) -> Network:
    torch.manual_seed(0)
    return random_network(smallest(method), 3).eval()


def written(method: str, path: Path, **fields: Any) -> Path:
    saved = Checkpoint(smallest(method, **fields), ("a", "b", "c"), 6, 0, dict(network(method).state_dict()), None, {})
    save(saved, path)
    return path


def test_scores_walk_at_a_quarter_and_the_background_stays() -> None:
    generator = torch.Generator().manual_seed(0)
    maps, boundary = torch.rand(2, 22, 31, generator=generator), torch.rand(6, 8, generator=generator)
    image = np.zeros((22, 31, 3), np.uint8)
    seen = Picture("a", image, (0, 2), maps, answers={"irn": boundary})
    scores = torch.cat([torch.full((1, 22, 31), 0.3), maps])
    found = Irn().apply(scores, seen, of())
    small = F.interpolate(maps[None], size=(6, 8), mode="bilinear", align_corners=False)[0]
    walked = random_walk(small, boundary, radius=3, power=10.0, log_steps=3)
    walked = F.interpolate(walked[None], size=(22, 31), mode="bilinear", align_corners=False)[0]
    torch.testing.assert_close(found[1:], walked / walked.max())
    each = Irn().apply(scores, seen, of(irn={"radius": 3, "log_steps": 3, "normalise": "class"}))
    torch.testing.assert_close(each[1:], walked / walked.amax((1, 2), keepdim=True))
    assert torch.equal(found[0], scores[0])
    label, _ = refined(seen, of(threshold=0.3), STEPS)
    strongest = torch.tensor([0, 1, 3])[found.argmax(0)]
    assert (label == strongest.numpy()).all() and len(np.unique(label)) > 1
    whole = Picture("a", image, (0, 2), scores, has_background=True, answers={"irn": boundary})
    assert not torch.equal(Irn().apply(scores, whole, of())[0], scores[0])


def test_a_class_fills_its_side_of_a_boundary() -> None:
    boundary = torch.zeros(8, 8)
    boundary[:, 4] = 1
    maps = torch.zeros(1, 32, 32)
    maps[:, 4:12, 2:6] = 1.0
    seen = Picture("a", np.zeros((32, 32, 3), np.uint8), (1,), maps, answers={"irn": boundary})
    label, _ = refined(seen, of(threshold=0.3, irn={"radius": 5}), STEPS)
    assert (label[:, :14] == 2).all() and (label[:, 20:] == 0).all()


def test_boundaries_are_of_an_image_and_its_flip_at_its_own_size(tmp_path: Path) -> None:
    boundaries = Irn().asks(None, of(irn={"network": written("irn", tmp_path / "irn.pt")}), CPU)
    assert boundaries is not None
    image = np.random.default_rng(0).integers(0, 256, (37, 50, 3), dtype=np.uint8)
    seen = boundaries(image)
    assert seen.shape == (10, 13) and (seen > 0).all() and (seen < 1).all()
    assert boundaries(image[:5, :7]).shape == (2, 2)
    even = np.ascontiguousarray(image[:32, :48])
    torch.testing.assert_close(boundaries(np.ascontiguousarray(even[:, ::-1])), boundaries(even).flip(-1))


def test_the_network_is_that_of_the_seeds_where_no_other_is_given(tmp_path: Path) -> None:
    own = network("irn")
    assert second_network(Viewer(own, 32, CPU), IrnConfig(), "irn", "boundaries", CPU) is own
    for viewer in (None, Viewer(network("recam"), 32, CPU)):
        with pytest.raises(UsageError, match=r"^irn\.network: is missing: the checkpoint of a trial of the method irn"):
            second_network(viewer, IrnConfig(), "irn", "boundaries", CPU)
    with pytest.raises(UsageError, match="of the method recam, which finds no boundaries"):
        second_network(None, IrnConfig(network=written("recam", tmp_path / "recam.pt")), "irn", "boundaries", CPU)


def test_a_network_of_a_file_computes_where_it_is_told_though_labels_have_no_network(tmp_path: Path) -> None:
    device = torch.device("meta")  # stands for a GPU, which is not everywhere
    found = second_network(None, IrnConfig(network=written("irn", tmp_path / "irn.pt")), "irn", "boundaries", device)
    assert {parameter.device for parameter in found.parameters()} == {device}


def test_another_network_than_the_one_that_was_planned_with_is_refused(tmp_path: Path) -> None:
    file = written("irn", tmp_path / "irn.pt")
    asked = IrnConfig(network=file, digest=file_digest(file))
    assert second_network(None, asked, "irn", "boundaries", CPU).has_boundaries
    assert of(irn=dict(asked)).decisive() == of(irn={"network": file}).decisive()
    written("irn", file, **{"train.iterations": 7})
    with pytest.raises(UsageError, match=r"^irn\.network: .*irn\.pt: was changed since the plan was made: plan and"):
        second_network(None, asked, "irn", "boundaries", CPU)


def test_labels_walk_too_and_a_network_that_saw_masks_makes_them_full(tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    Image.fromarray(image).save(tmp_path / "a.png")
    with LabelSetWriter(tmp_path / "labels", ("a", "b", "c")) as writer:
        label = np.zeros((24, 32), np.uint8)
        label[4:20, 8:20] = 2
        writer.add("a", label)
    item, labels = Item("a", tmp_path / "a.png", (1,)), read_label_set(tmp_path / "labels")
    for supervision in ("weak", "full"):
        file = written("irn", tmp_path / f"{supervision}.pt", **{"labels.supervision": supervision})
        seeds = LabelSeeds(labels, of(irn={"network": file, "radius": 3, "log_steps": 3}), CPU)
        assert seeds.supervision == supervision
    seen = seeds.picture(item, image)
    found, _ = refined(seen, of(irn={"network": file, "radius": 3, "log_steps": 3}), STEPS)
    assert set(np.unique(found)) <= {0, 2} and (found[8:16, 12:16] == 2).all()


def test_an_identity_has_the_networks_content_not_its_place(tmp_path: Path) -> None:
    one, two = (of(irn={"network": written("irn", tmp_path / f"{name}.pt")}).decisive() for name in "ab")
    assert one == two and len(one["irn"]["network"]) == 64
    with pytest.raises(UsageError, match=r"^irn.network: .*none.pt: No such file"):
        of(irn={"network": tmp_path / "none.pt"}).decisive()
