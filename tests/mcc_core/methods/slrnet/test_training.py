"""SLRNet trained: frozen parts, groups, schedule, going on to the bit, two ranks, the protocol of its authors."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from published_slrnet import head_names
from ranks import on_ranks
from small_slrnet import SMALL_SLRNET
from torch import Tensor, nn
from trained import trained

from mcc_core import checkpoint as checkpoints
from mcc_core.config import EvaluationConfig
from mcc_core.data.colours import normalise
from mcc_core.data.index import DataIndex, build_index
from mcc_core.errors import UsageError
from mcc_core.evaluation.protocols import Maps, label_map, mean_probabilities, network_maps
from mcc_core.experiment_files import resolve
from mcc_core.methods.registry import METHODS, method_of
from mcc_core.methods.slrnet.config import Experiment
from mcc_core.methods.slrnet.network import SLRNet
from mcc_core.methods.slrnet.objective import SLRObjective
from mcc_core.methods.slrnet.published import from_published
from mcc_core.networks.batch_norm import share_statistics
from mcc_core.pseudo_labels.pamr import mask_label
from mcc_core.training.optim import build_optimizer, learning_rate

CPU = torch.device("cpu")


def small(**fields: Any) -> Experiment:
    experiment = resolve("slrnet-tiny", SMALL_SLRNET | fields)
    assert isinstance(experiment, Experiment)
    return experiment


def network(classes: int = 3, **fields: Any) -> SLRNet:
    torch.manual_seed(0)
    return SLRNet(small(**fields), classes)


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> DataIndex:
    return build_index(small().data, tmp_path_factory.mktemp("home"))


@pytest.mark.parametrize("fields", [{}, {"model.frozen": True, "compute.recompute": "blocks"}])
def test_it_trains_and_goes_on_to_the_bit(index: DataIndex, tmp_path: Path, fields: dict[str, Any]) -> None:
    whole = trained(small(**fields), index, tmp_path)
    assert "loss/seg" not in whole.losses[2] and {"loss/seg", "loss/reg1", "loss/reg2"} <= set(whole.losses[3])
    middle, end = (checkpoints.load(file) for file in whole.files)
    again = trained(small(**fields), index, tmp_path, resume=whole.files[0])
    assert again.losses == {i: whole.losses[i] for i in (4, 5, 6)}
    resumed = checkpoints.load(again.files[-1])
    assert all(torch.equal(tensor, resumed.model[name]) for name, tensor in end.model.items())
    assert any(not torch.equal(tensor, middle.model[name]) for name, tensor in end.model.items())


def test_what_imagenet_left_stays_in_training(index: DataIndex, tmp_path: Path) -> None:
    experiment = small(**{"model.frozen": True, "train.iterations": 3})
    with torch.random.fork_rng():
        torch.manual_seed(0)  # the trial's seed
        before = SLRNet(experiment, len(index.classes))
    after = checkpoints.load(trained(experiment, index, tmp_path).files[-1]).model
    changed = {name for name, tensor in before.state_dict().items() if not torch.equal(tensor, after[name])}
    norms = {name for name, module in before.named_modules() if isinstance(module, nn.BatchNorm2d)}
    of_norms = {name for name in changed if name.rpartition(".")[0] in norms}
    assert not [name for name in of_norms if name.startswith("backbone.")]
    assert {name.rpartition(".")[2] for name in of_norms if name.startswith("aspp.")} <= {"weight", "bias"}
    assert {"skip.1.running_mean", "merge.1.weight", "aspp.point.1.weight"} <= changed
    fixed = [name for name in before.state_dict() if name.startswith(("backbone.conv1.", "backbone.stages.0."))]
    assert fixed and not changed & set(fixed)
    assert "backbone.stages.1.0.conv1.weight" in changed


@pytest.mark.parametrize("frozen", [True, False])
def test_four_parameter_groups(frozen: bool) -> None:
    model, optim = network(**{"model.frozen": frozen}), resolve("slrnet", {}).optim
    groups = build_optimizer(model, optim).param_groups
    found = [(g["lr_scale"], g["weight_decay"], g["momentum"], g["nesterov"]) for g in groups]
    backbone_biases = [] if frozen else [(2.0, 0.0, 0.9, True)]  # its only biases are those of batch norms
    assert found == [(1.0, 5e-4, 0.9, True), *backbone_biases, (10.0, 5e-4, 0.9, True), (20.0, 0.0, 0.9, True)]
    ours = [p for group in groups for p in group["params"]]
    assert len(set(map(id, ours))) == len(ours) == len([p for p in model.parameters() if p.requires_grad])


def test_the_published_schedule_is_constant_then_a_cosine_of_25_epochs() -> None:
    experiment = resolve("slrnet", {})
    optim, total = experiment.optim, experiment.train.iterations
    assert total == 30 * 661 and optim.lr == 5e-4
    assert learning_rate(optim, 0, total) == learning_rate(optim, 6 * 661, total) == 5e-4
    for epoch in (7, 18, 29):
        expected = 5e-4 * 0.5 * (1 + math.cos(math.pi * (epoch - 6) / 25))
        assert learning_rate(optim, epoch * 661, total) == pytest.approx(expected)
    whole = optim.model_copy(update={"decay_iterations": None})
    assert learning_rate(whole, total, total) == pytest.approx(0, abs=1e-12)


def test_a_term_of_weight_zero_is_not_computed_and_leaves_gradients_of_zero() -> None:
    experiment = small(**{"loss.cls": 0, "loss.reg1": 0, "loss.reg2": 0})
    objective = SLRObjective(network(), experiment)
    batch = {"view": torch.randn(2, 3, 32, 32), "labels": torch.tensor([[1.0, 0, 0], [0, 1, 1]])}
    step = objective(batch, {}, 0)
    assert not step.terms and step.label is None
    step.total.backward()
    assert all(p.grad is not None for p in objective.network.parameters() if p.requires_grad)


def test_the_step_is_its_formulas() -> None:
    """Weighted terms, and gradients that reach every trained parameter; both views share a dictionary."""
    experiment = small(**{"pseudo_label.least": 0.0, "pseudo_label.foreground": 0.3, "pseudo_label.background": 0.3})
    objective = SLRObjective(network(), experiment)
    batch = {"view": torch.randn(2, 3, 32, 32), "labels": torch.tensor([[1.0, 0, 0], [0, 1, 1]])}
    step = objective(batch, {}, 5)
    weights = {"cls": 1, "reg1": 4, "reg2": 4, "seg": 1}
    torch.testing.assert_close(step.total, sum(weights[name] * term for name, term in step.terms.items()))
    assert step.views.first.shape == step.views.aux.shape == step.views.codes[0].shape == (2, 4, 8, 8)
    assert step.views.second.shape == step.views.codes[1].shape == (2, 4, 4, 4)
    assert (step.views.first[:, 0] == 1).all()
    foreground = step.views.aux[:, 1:]
    torch.testing.assert_close(step.views.aux[:, 0], 1 - foreground.max(1).values)
    step.total.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in objective.network.parameters())


def test_bfloat16_and_channels_last_change_rounding_alone() -> None:
    images = torch.randn(1, 3, 32, 32)
    plain = network().eval()(images).seg
    other = network(**cast(Any, {"compute.precision": "bfloat16", "compute.channels_last": True})).eval()(images).seg
    assert other.dtype == torch.float32 and not torch.equal(other, plain)
    torch.testing.assert_close(other, plain, rtol=0.1, atol=0.1 * plain.abs().max().item())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model.weights": "timm"}, "timm has no wide_resnet38"),
        ({"model.backbone": "resnet50"}, "SLRNet has wide_resnet38"),
        ({"model.backbone_args": {"depth": 3}}, "its size is width and depths"),
        ({"compute.compile": True}, "SLRNet is not compiled"),
        ({"compute.recompute": "elementwise"}, "nothing or blocks"),
        ({"train.crop": 24}, "would be 12 pixels"),
    ],
)
def test_what_it_cannot_do_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        small(**fields)


def test_the_mean_of_probabilities_keeps_likely_classes_and_weakens_the_background() -> None:
    generator = torch.Generator().manual_seed(0)
    scales = (1.0, 0.5)
    maps = Maps(
        multi={s: tuple(torch.randn(1, 4, 3, 3, generator=generator) for _ in range(2)) for s in scales},  # type: ignore[misc]
        scores={1.0: torch.tensor([[2.0, -3.0, 1.0]]), 0.5: torch.tensor([[1.0, -3.0, 0.5]])},
    )
    config = EvaluationConfig(style="mean", scales=scales, class_threshold=0.3, background_power=3)
    expected = sum((maps.multi[s][0].softmax(1) + maps.multi[s][1].softmax(1).flip(-1)) / 4 for s in scales)
    assert isinstance(expected, Tensor)
    expected[:, 0] **= 3
    expected[:, 2] = 0  # below the threshold
    torch.testing.assert_close(mean_probabilities(maps, config, (3, 3)), expected)
    best = mean_probabilities(maps, config.model_copy(update={"class_top": 1}), (3, 3))
    assert (best[:, 1] > 0).all() and not best[:, 2:].any()
    image = np.zeros((3, 3, 3), np.uint8)
    np.testing.assert_array_equal(label_map(maps, "ms", config, image), expected[0].argmax(0).numpy())
    stored = Maps.of_arrays(maps.arrays("float32"))
    torch.testing.assert_close(mean_probabilities(stored, config, (3, 3)), expected)


def test_its_protocol_scores_classes_at_every_scale_and_flip() -> None:
    model, experiment = network().eval(), small()
    config = method_of(experiment).evaluation(experiment, 3)
    assert (config.class_threshold, config.class_top, config.background_power) == (0.3, 6, 3.0)
    assert config.scales == (1.0, 1.5, 2.0, 0.5, 0.75) and config.crf.bilateral_srgb == 13
    image = np.random.default_rng(0).integers(0, 255, (40, 36, 3), dtype=np.uint8)
    maps = network_maps(model, image, [0], ["ms", "cam"], config, CPU)
    assert set(maps.scores) == set(maps.multi) == set(config.scales)
    assert maps.scores[1.0].shape == (1, 3) and maps.cam[1.0][0].shape[1] == 1
    other = network_maps(model, image[:, ::-1].copy(), [0], ["ms"], config, CPU)
    torch.testing.assert_close(other.scores[1.5], maps.scores[1.5], rtol=1e-3, atol=1e-4)  # flips are both in it
    assert label_map(maps, "ms", config, image).shape == (40, 36)


def test_its_refined_protocol_is_what_trains_the_segmentation() -> None:
    """The masks of the squashed image refined by PAMR, with the thresholds of training."""
    model, experiment = network().eval(), small()
    config = method_of(experiment).evaluation(experiment, 3)
    assert config.pamr == experiment.pseudo_label
    image = np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8)
    maps = network_maps(model, image, [0, 2], ["refined"], config, CPU)
    pixels = normalise(torch.from_numpy(image).permute(2, 0, 1))[None]
    with torch.no_grad():
        masks = model(pixels).seg.softmax(1)
    expected = mask_label(pixels, masks, torch.tensor([[1.0, 0, 1]]), experiment.pseudo_label)
    assert {0, 1, 3} & set(expected.unique().tolist())
    np.testing.assert_array_equal(label_map(maps, "refined", config, image), expected[0].numpy())
    nothing = network_maps(model, image, [], ["refined"], config, CPU)
    assert not label_map(nothing, "refined", config, image).any()


@pytest.mark.parametrize("count", [3, 8])
def test_positive_weights_are_as_many_as_the_classes(index: DataIndex, tmp_path: Path, count: int) -> None:
    experiment = small(**{"loss.positive_weight": [2.0] * count, "train.iterations": 2, "train.eval_every": 2})
    if count != len(index.classes):
        with pytest.raises(UsageError, match=r"loss\.positive_weight: 3 numbers, but the data has 8 classes"):
            trained(experiment, index, tmp_path)
        return
    heavy = trained(experiment, index, tmp_path).losses[1]["loss/cls"]
    plain = trained(small(**{"train.iterations": 2, "train.eval_every": 2}), index, tmp_path).losses[1]["loss/cls"]
    assert plain < heavy < 2 * plain


def test_the_coco_recipe() -> None:
    experiment = resolve("slrnet-coco", {})
    assert isinstance(experiment, Experiment) and len(experiment.loss.positive_weight) == 80  # type: ignore[arg-type]
    config = method_of(experiment).evaluation(experiment, 80)
    assert (config.class_top, config.background_power) == (8, 1.0)
    assert learning_rate(experiment.optim, 39_996, 133_320) == 5e-4
    assert learning_rate(experiment.optim, 39_996 + 49_995, 133_320) == pytest.approx(2.5e-4)


def test_published_names_are_all_of_the_network() -> None:
    with torch.device("meta"):
        own = {n for n in SLRNet(small(), 3).state_dict() if "num_batches" not in n}
    names = head_names()
    doubled = [f"newly_added.0.{name.removeprefix('aspp.')}" for name in names if name.startswith("aspp.")]
    constants = ["_aff.aff_x.kernel"]
    tensors = {f"module.{name}": torch.zeros(1) for name in (*names, *doubled, *constants)}
    assert set(from_published(tensors)) == {name for name in own if not name.startswith("backbone.")}
    assert set(from_published({"backbone.b5_1.conv_branch2a.weight": torch.zeros(1)})) == {
        "backbone.stages.3.1.conv1.weight"
    }
    assert METHODS["slrnet"].from_published(tensors).keys() == from_published(tensors).keys()


def _rank(rank: int, index: DataIndex, work: Path) -> tuple[Any, ...]:
    experiment = small(**{"train.workers": 2, "train.iterations": 4, "train.eval_every": 4})
    curve = trained(experiment, index, work)
    model = network(len(index.classes)).train()
    generator = torch.Generator().manual_seed(rank)
    model.two_views(torch.randn(2, 3, 32, 32, generator=generator))
    running_mean = model.get_buffer("skip.1.running_mean")
    own = running_mean.clone()
    share_statistics(model)
    return curve.losses, own.tolist(), model.get_buffer("skip.1.running_mean").tolist()


@pytest.mark.slow
def test_two_ranks_train_together_and_share_running_statistics(index: DataIndex, tmp_path: Path) -> None:
    (losses, own, shared), (_, others, shared_there) = on_ranks(_rank, index, tmp_path)
    assert set(losses) == {1, 2, 3, 4} and "loss/seg" in losses[4]
    mean = [(x + y) / 2 for x, y in zip(own, others, strict=True)]
    assert own != others and shared == shared_there == pytest.approx(mean)
