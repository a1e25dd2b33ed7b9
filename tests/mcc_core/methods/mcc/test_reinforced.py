"""MCC with parts of FSR: masks, whole teacher, masked patches; off by default, each alone, and going on to the bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest
import torch
from small import SMALL
from torch import Tensor

from mcc_core import checkpoint as checkpoints
from mcc_core.data.index import DataIndex, build_index
from mcc_core.experiment_files import resolve
from mcc_core.losses.distillation import distillation
from mcc_core.methods.mcc.config import Experiment
from mcc_core.methods.mcc.masking import uncertain_first, uncertain_squares
from mcc_core.methods.mcc.objective import MCCObjective, MCCStep
from mcc_core.methods.mcc.reinforced import ReinforcedObjective
from mcc_core.methods.registry import method_of
from mcc_core.training.engine import Callbacks, StepRecord, train

FIELDS: dict[str, Any] = SMALL | {"model.projector": {"hidden": 16, "bottleneck": 8, "out": 12}, "mask.scale": 2}
SWITCHES: dict[str, dict[str, Any]] = {
    "masks": {"mask.uncertain_start": 0},
    "teacher": {"contrast.teacher": "network"},
    "patches": {"loss.fsr_patch": 0.1},
}
ALL = {key: value for fields in SWITCHES.values() for key, value in fields.items()}


def made(**fields: Any) -> tuple[Experiment, Any, Any]:
    experiment = cast(Experiment, resolve("tiny", FIELDS | fields))
    method = method_of(experiment)
    torch.manual_seed(0)
    network = method.network(experiment, 3)
    return experiment, network, method.objective(network, experiment)


def batch_of() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    views = torch.randn(3, 2, 3, 32, 32, generator=generator)
    box = torch.tensor([[0, 32, 0, 32]] * 2)
    return {"view1": views[0], "view2": views[1], "local": views[2], "labels": torch.eye(2, 3), "box": box}


def stepped(iteration: int = 5, *, moved: float = 1.0, **fields: Any) -> tuple[MCCStep, Any, Any]:
    """A step; `moved` times are the weights of the whole teacher, which otherwise begins as a copy."""
    experiment, network, objective = made(**fields)
    with torch.no_grad():
        for parameter in network.momentum_encoder.parameters() if moved != 1.0 else ():
            parameter.mul_(moved)
    generator = torch.Generator().manual_seed(4)
    draws = method_of(experiment).draws(experiment, network, 2, (32, 32), iteration, generator)
    step = objective(batch_of(), draws, iteration)
    step.total.backward()
    return step, network, objective


def test_uncertain_squares_are_masked_first_and_no_more_than_before() -> None:
    noise = torch.tensor([[[[0.1, 0.9], [0.5, 0.3]]]])
    uncertain = torch.tensor([[[[False, True], [False, False]]]])
    for count, masked in ((0, []), (1, [1]), (2, [0, 1]), (3, [0, 1, 3]), (4, [0, 1, 2, 3])):
        found = uncertain_first(noise, torch.tensor([[count]]), uncertain)
        assert found.flatten().nonzero()[:, 0].tolist() == masked
    plain = uncertain_first(noise, (noise < 0.4).sum((2, 3)), torch.zeros_like(uncertain))
    assert torch.equal(plain, noise < 0.4)  # where nothing is uncertain, masks are what they were
    cam = torch.zeros(1, 2, 8, 8)
    cam[0, 0, 0, 0], cam[0, 1, 4, 4], cam[0, 1, 0, 4] = 0.5, 0.69, 0.7
    assert uncertain_squares(cam, (4, 4), 2, 0.25, 0.7)[0, 0].tolist() == [[True, False], [False, True]]


def test_nothing_of_it_is_there_by_default() -> None:
    step, network, objective = stepped()
    assert type(objective) is MCCObjective
    assert not [n for n in network.state_dict() if "momentum_encoder" in n or "center" in n or "mask_token" in n]
    other, _, reinforced = stepped(**{"mask.uncertain_start": 6})
    assert type(reinforced) is ReinforcedObjective
    assert torch.equal(step.total, other.total)  # before its start, to the bit


@pytest.mark.parametrize("name", SWITCHES)
def test_each_switch_changes_its_own_part(name: str) -> None:
    base, _, _ = stepped()
    step, network, _ = stepped(moved=1.1 if name == "teacher" else 1.0, **SWITCHES[name])
    assert base.contrast is not None and step.contrast is not None
    assert ("fsr_patch" in step.terms) == (name == "patches")
    for term in ("cls", "cls_aux", "aff", "seg", "reg"):
        assert torch.equal(base.terms[term], step.terms[term])
    assert torch.equal(base.terms["mcc"], step.terms["mcc"]) == (name == "patches")
    assert torch.equal(base.contrast.queries, step.contrast.queries) == (name != "teacher")
    assert torch.equal(base.contrast.keys, step.contrast.keys) == (name != "masks")
    assert [n for n, p in network.named_parameters() if p.requires_grad and p.grad is None] == []


def test_masked_patches_learn_what_the_teacher_says_of_them() -> None:
    experiment, network, objective = made(**ALL)
    method = method_of(experiment)
    draws = method.draws(experiment, network, 2, (32, 32), 5, torch.Generator().manual_seed(4))
    step = objective(batch_of(), draws, 5)
    hidden, local = step.draws["hidden"], batch_of()["local"]
    assert hidden.sum() == 2 * 2 * 4  # two of four squares of four tokens, of two images
    with torch.no_grad():
        taught = network.momentum_projector(network.momentum_encoder(local).patches.flatten(2).transpose(1, 2))
        encoder = network.encoder
        tokens = encoder.embed(local, hidden)
        for block in encoder.vit.blocks:
            tokens = block(tokens)
        student = network.projector(encoder.vit.norm(tokens)[:, 1:][hidden.flatten(1)])
    expected = distillation(student, taught[hidden.flatten(1)], torch.zeros(12), 0.1, 0.04 + 0.03 * 5 / 2499)
    torch.testing.assert_close(step.terms["fsr_patch"].detach(), expected)
    weights = objective.weights(5)
    torch.testing.assert_close(step.total, sum(weights[n] * t for n, t in step.terms.items()))
    objective.after_step(5)
    torch.testing.assert_close(network.centers.patch_center, 0.1 * taught.flatten(0, 1).mean(0))


def test_the_whole_teacher_moves_after_the_step_alone() -> None:
    _, network, objective = stepped(**SWITCHES["teacher"])
    teacher, student = network.momentum_encoder.vit.norm, network.encoder.vit.norm
    assert torch.equal(teacher.weight, student.weight) and teacher.weight.grad is None
    with torch.no_grad():
        student.weight.add_(1.0)
    before = teacher.weight.clone()
    momentum = objective.at(objective.experiment.contrast.teacher_momentum, 3)
    objective.after_step(3)
    torch.testing.assert_close(teacher.weight, momentum * before + (1 - momentum) * student.weight)


class Curve(Callbacks):
    def __init__(self) -> None:
        self.losses: dict[int, dict[str, float]] = {}

    def on_step(self, record: StepRecord) -> None:
        self.losses[record.iteration] = {k: v for k, v in record.metrics.items() if k != "images_per_second"}


def run(index: DataIndex, work: Path, resume: Path | None = None) -> Curve:
    curve, experiment = Curve(), resolve("tiny", FIELDS | ALL)
    train(experiment, 0, index, device=torch.device("cpu"), workdir=work, callbacks=curve, resume=resume)
    return curve


def test_all_of_it_trains_and_goes_on_to_the_bit(tmp_path: Path) -> None:
    index = build_index(resolve("tiny", FIELDS).data, tmp_path / "home")
    whole = run(index, tmp_path)
    assert "loss/fsr_patch" in whole.losses[6]
    last = checkpoints.load(tmp_path / "0000006.pt")
    assert last.model["centers.patch_center"].any()
    again = run(index, tmp_path, tmp_path / "0000003.pt")
    assert again.losses == {i: whole.losses[i] for i in (4, 5, 6)}
    after = checkpoints.load(tmp_path / "0000006.pt").model
    assert all(torch.equal(tensor, after[name]) for name, tensor in last.model.items())
    assert last.network()(torch.zeros(1, 3, 32, 32)).seg.shape[1] == 9
