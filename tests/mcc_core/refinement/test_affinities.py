"""The random walk of affinities: what it makes of scores, and which network finds them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from trained import smallest

from mcc_core.checkpoint import Checkpoint, save
from mcc_core.errors import UsageError
from mcc_core.methods.registry import random_network
from mcc_core.pseudo_labels.pixel_affinity import affinity_walk, background_score
from mcc_core.refinement.affinities import Psa
from mcc_core.refinement.base import Picture, Refinement, Viewer, refined
from mcc_core.refinement.kinds import STEPS
from mcc_core.validation import validate

CPU = torch.device("cpu")
SMALL = {"radius": 3, "log_steps": 3}


def of(**fields: Any) -> Refinement:
    return validate(Refinement, {"kind": "psa", "psa": SMALL} | fields, "refine")


def written(method: str, path: Path, **fields: Any) -> Path:
    torch.manual_seed(0)
    experiment = smallest(method, **fields)
    state = dict(random_network(experiment, 3).state_dict())
    save(Checkpoint(experiment, ("a", "b", "c"), 6, 0, state, None, {}), path)
    return path


def test_classes_and_background_walk_at_an_eighth() -> None:
    generator = torch.Generator().manual_seed(0)
    maps, affinity = torch.rand(2, 24, 40, generator=generator), torch.rand(12, 3, 5, generator=generator)
    seen = Picture("a", np.zeros((24, 40, 3), np.uint8), (0, 2), maps, answers={"psa": affinity})
    found = Psa().apply(torch.cat([torch.full((1, 24, 40), 0.4), maps]), seen, of(psa={**SMALL, "alpha": 2.0}))
    scores = torch.cat([background_score(maps, 2.0), maps])
    small = scores.unflatten(2, (5, 8)).unflatten(1, (3, 8)).mean((2, 4))
    walked = affinity_walk(small, affinity, radius=3, power=8.0, log_steps=3)
    wanted = F.interpolate(walked[None], size=(24, 40), mode="bilinear", align_corners=False)[0]
    torch.testing.assert_close(found, wanted)
    label, _ = refined(seen, of(psa={**SMALL, "alpha": 2.0}), STEPS)
    assert (label == torch.tensor([0, 1, 3])[wanted.argmax(0)].numpy()).all()
    whole = Picture("a", seen.image, (0, 2), scores, has_background=True, answers={"psa": affinity})
    torch.testing.assert_close(Psa().apply(scores, whole, of()), wanted)


def test_a_higher_power_leaves_less_to_the_background() -> None:
    maps = torch.rand(1, 16, 16, generator=torch.Generator().manual_seed(0))
    seen = Picture("a", np.zeros((16, 16, 3), np.uint8), (1,), maps, answers={"psa": torch.ones(12, 2, 2)})
    shares = [
        (refined(seen, of(psa={**SMALL, "log_steps": 0, "alpha": alpha}), STEPS)[0] == 0).mean() for alpha in (1.0, 8.0)
    ]
    assert shares[0] > shares[1]


def test_affinities_are_those_of_the_image_at_its_own_size(tmp_path: Path) -> None:
    file = written("psa", tmp_path / "psa.pt")
    ask = Psa().asks(None, of(psa={**SMALL, "network": file}), CPU)
    assert ask is not None
    image = np.random.default_rng(0).integers(0, 256, (37, 50, 3), dtype=np.uint8)
    seen = ask(image)
    assert seen.shape == (12, 5, 7) and (seen > 0).all() and (seen <= 1).all()
    assert ask(image[:5, :7]).shape == (12, 1, 1)


def test_the_network_is_that_of_the_seeds_where_no_other_is_given(tmp_path: Path) -> None:
    torch.manual_seed(0)
    own, other = (random_network(smallest(name), 3).eval() for name in ("psa", "irn"))
    assert Psa().asks(Viewer(own, 32, CPU), of(), CPU) is not None
    with pytest.raises(UsageError, match=r"^psa\.network: is missing: the checkpoint of a trial of the method psa"):
        Psa().asks(Viewer(other, 32, CPU), of(), CPU)
    with pytest.raises(UsageError, match="of the method irn, which finds no affinities"):
        Psa().asks(None, of(psa={"network": written("irn", tmp_path / "irn.pt")}), CPU)


def test_identity_and_supervision_are_those_of_the_network(tmp_path: Path) -> None:
    one, two = (of(psa={"network": written("psa", tmp_path / f"{name}.pt")}) for name in "ab")
    assert one.decisive() == two.decisive() and len(one.decisive()["psa"]["network"]) == 64
    full = written("psa", tmp_path / "full.pt", **{"labels.supervision": "full"})
    found = [Psa().supervision(each) for each in (one, of(psa={"network": full}), of())]
    assert found == ["weak", "full", "weak"]
    with pytest.raises(UsageError, match=r"^psa.network: .*none.pt: No such file"):
        of(psa={"network": tmp_path / "none.pt"}).decisive()
