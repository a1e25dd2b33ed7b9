"""FSR trained: parameter groups, terms that come and go, teacher, exact savings, published checkpoints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import golden
import numpy as np
import pytest
import torch
from small import SMALL
from torch import Tensor

from mcc_core.data.colours import View
from mcc_core.errors import UsageError
from mcc_core.experiment_files import resolve
from mcc_core.import_weights import import_weights
from mcc_core.methods.fsr.augment import TwoViews
from mcc_core.methods.fsr.config import Experiment
from mcc_core.methods.fsr.network import AuxiliaryMaps, FSRNet
from mcc_core.methods.fsr.objective import FSRObjective, FSRStep
from mcc_core.pseudo_labels.cam import multi_scale_maps
from mcc_core.training.optim import build_optimizer, learning_rate

FIELDS: dict[str, Any] = SMALL | {
    "model.projector.hidden": 16,
    "model.projector.bottleneck": 8,
    "model.projector.out": 12,
    "model.decoder_channels": 8,
    "mask.uncertain_start": 3,
    "par.iterations": 1,
}
FROM_3 = {"schedule": "step", "values": [0, 1], "at_iterations": [3]}
UNTIL_3 = {"schedule": "step", "values": [1, 0], "at_iterations": [3]}


def small(fields: dict[str, Any] | None = None) -> Experiment:
    return cast(Experiment, resolve("fsr-tiny", FIELDS | (fields or {})))


def network(experiment: Experiment) -> FSRNet:
    torch.manual_seed(0)
    return FSRNet(experiment, 3)


def batch_of() -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(3)
    views = torch.randn(2, 2, 3, 32, 32, generator=generator)
    box = torch.tensor([[0, 32, 0, 32]] * 2)
    batch = {"view1": views[0], "view2": views[1], "labels": torch.eye(2, 3), "box": box}
    return batch, {"noise": torch.rand(2, 2, 2, generator=generator)}


def stepped(iteration: int, fields: dict[str, Any] | None = None) -> tuple[FSRStep, FSRNet, FSRObjective]:
    experiment = small(fields)
    model = network(experiment)
    objective = FSRObjective(model, experiment)
    step = objective(*batch_of(), iteration)
    step.total.backward()
    return step, model, objective


def test_vectors_and_tokens_have_no_weight_decay_and_the_teacher_is_not_optimised() -> None:
    experiment = small()
    model = network(experiment)
    names = {id(p): name for name, p in model.named_parameters()}
    optimizer = build_optimizer(model, experiment.optim)
    seen = {
        names[id(p)]: (group["lr_scale"], group["weight_decay"])
        for group in optimizer.param_groups
        for p in group["params"]
    }
    assert set(seen) == {name for name in names.values() if not name.startswith("teacher.")}
    for bare in ("encoder.vit.pos_embed", "encoder.vit.cls_token", "encoder.mask_token", "encoder.vit.norm.weight"):
        assert seen[bare] == (1.0, 0.0)
    assert seen["encoder.vit.blocks.0.attn.qkv.weight"] == (1.0, 0.05)
    assert seen["projector.mlp.0.bias"] == (2.0, 0.0)
    assert seen["classifier.weight"] == seen["projector.last.direction"] == (2.0, 0.05)


def test_published_rate() -> None:
    optim = resolve("fsr").optim
    assert learning_rate(optim, 0, 20_000) == pytest.approx(6e-6)
    assert learning_rate(optim, 1500, 20_000) == pytest.approx(6e-5)
    assert learning_rate(optim, 10_750, 20_000) == pytest.approx(3e-5)
    assert learning_rate(optim, 20_000, 20_000) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(
    ("iteration", "fields", "absent"),
    [
        (5, {}, set()),
        (0, {}, {"seg", "reg"}),
        (5, {"loss.ptc_start": 6}, {"ptc"}),
        (0, {"loss.fsr_class": FROM_3}, {"seg", "reg", "fsr_class"}),
        (0, {"loss.fsr_patch": FROM_3}, {"seg", "reg", "fsr_patch"}),
        (5, {"loss.fsr_class": UNTIL_3, "loss.fsr_patch": UNTIL_3}, {"fsr_class", "fsr_patch"}),
        (5, {"loss.fsr_class": 0, "loss.fsr_patch": UNTIL_3}, {"fsr_class", "fsr_patch"}),
    ],
)
def test_a_term_of_weight_0_is_left_out_and_every_parameter_has_a_gradient(
    iteration: int, fields: dict[str, Any], absent: set[str]
) -> None:
    step, model, _ = stepped(iteration, fields)
    assert set(step.terms) == set(FSRObjective.terms) - absent
    assert [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None] == []


def test_without_distillation_no_projector_is_trained_and_no_teacher_moves() -> None:
    step, model, objective = stepped(5, {"loss.fsr_class": 0, "loss.fsr_patch": 0})
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert {"projector.last.direction", "encoder.mask_token", "encoder.vit.cls_token"} <= frozen
    assert step.masking is None
    before = {name: t.clone() for name, t in model.state_dict().items()}
    objective.after_step(5)
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())


def test_the_teacher_moves_after_the_step_and_gets_no_gradient() -> None:
    _, model, objective = stepped(5)
    assert all(p.grad is None for p in model.teacher.parameters())
    with torch.no_grad():
        for p in model.encoder.parameters():
            p.add_(1.0)
    before = model.teacher.encoder.vit.norm.weight.clone()
    momentum = objective.at(objective.experiment.distill.momentum, 2)
    objective.after_step(2)
    expected = momentum * before + (1 - momentum) * model.encoder.vit.norm.weight
    torch.testing.assert_close(model.teacher.encoder.vit.norm.weight, expected)
    assert model.centers.class_center.abs().sum() > 0


def test_what_is_saved_is_exact() -> None:
    """One pass, fewer blocks and fewer classes give what separate passes over everything give."""
    experiment = small()
    model = network(experiment).double()
    batch, draws = batch_of()
    batch = {name: t.double() if t.is_floating_point() else t for name, t in batch.items()}
    objective = FSRObjective(model, experiment)
    few, every = (objective(batch, draws, 5, all_classes=whole) for whole in (False, True))
    torch.testing.assert_close(few.total, every.total, rtol=1e-10, atol=0)
    scales = experiment.cam.scales
    aux = multi_scale_maps(AuxiliaryMaps(model), batch["view2"], scales)["aux_cam"]
    torch.testing.assert_close(aux, multi_scale_maps(model, batch["view2"], scales)["aux_cam"], rtol=1e-10, atol=1e-12)
    assert few.masking is not None
    alone, encoder = model(batch["view1"]), model.encoder
    tokens = encoder.tokens(batch["view2"], few.masking.mask)[0]
    pairs = [(getattr(few.output, name), getattr(alone, name)) for name in ("cls", "cls_aux", "seg")]
    pairs.append((few.output.distilled_class, model.projector(encoder.aggregated(tokens))))
    patches = model.projector(encoder.vit.norm(tokens))[few.masking.mask.flatten(1)]
    pairs.append((few.output.distilled_patches, patches))
    for ours, plain in pairs:
        torch.testing.assert_close(ours, plain, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("recompute", ["elementwise", "blocks"])
def test_stochastic_depth_draws_the_same_again_in_the_backward_pass(recompute: str) -> None:
    def gradient(how: str) -> Tensor:
        experiment = small({"model.stochastic_depth": 0.5, "compute.recompute": how})
        model = network(experiment)
        torch.manual_seed(7)
        FSRObjective(model, experiment)(*batch_of(), 0).total.backward()
        found = model.encoder.vit.patch_embed.proj.weight.grad
        assert found is not None
        return found

    torch.testing.assert_close(gradient(recompute), gradient("nothing"))


def test_stochastic_depth_is_of_training_alone() -> None:
    model, images = network(small({"model.stochastic_depth": 0.5})), batch_of()[0]["view1"]
    torch.manual_seed(0)
    assert not torch.equal(model(images).cls, model(images).cls)
    model.eval()
    assert torch.equal(model(images).cls, model(images).cls)


def test_what_does_not_suit_is_one_line() -> None:
    with pytest.raises(UsageError, match=r"mask\.block: 4: must be a multiple of the patch"):
        network(small({"mask.block": 4}))
    registers = {**FIELDS["model.backbone_args"], "reg_tokens": 2}
    with pytest.raises(UsageError, match="FSR needs a class token, no other tokens"):
        network(small({"model.backbone_args": registers}))


def test_views_are_drawn_from_the_generator_alone() -> None:
    image = torch.randint(256, (3, 40, 60), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    views = TwoViews(small().augment, 32)

    def drawn(seed: int) -> dict[str, torch.Tensor]:
        found = views(image, torch.Generator().manual_seed(seed))
        return {name: view.finished() if isinstance(view, View) else view for name, view in found.items()}

    one, same, other = drawn(2), drawn(2), drawn(3)
    assert set(one) == {"view1", "view2", "box"} and one["view1"].shape == (3, 32, 32)
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["view1"], other["view1"]) and not torch.equal(one["view1"], one["view2"])
    assert one["box"].tolist() == [0, 32, 0, 32]


def test_a_published_checkpoint_says_its_sizes(tmp_path: Path) -> None:
    recording = Path(__file__).parents[3] / "data" / "golden" / "fsr_voc_128.npz"
    state = golden.recorded_weights(json.loads(str(np.load(recording)["meta"]))["layout"])
    torch.save({f"module.{name}": tensor for name, tensor in state.items()}, tmp_path / "fsr.pth")
    found = import_weights(tmp_path / "fsr.pth")
    assert (found.kind, found.unused, found.fresh) == ("published FSR network", (), ())
    saved = found.checkpoint
    assert isinstance(saved.experiment, Experiment) and saved.experiment.model.projector.out == 512
    assert torch.equal(saved.model["encoder.class_blocks.1.attn.k.weight"], state["encoder.cls_blocks.1.attn.k.weight"])
    assert torch.equal(saved.model["teacher.encoder.mask_token"], state["encoder.mask_token"])
    assert saved.network()(torch.zeros(1, 3, 48, 64)).seg.shape == (1, 21, 3, 4)
