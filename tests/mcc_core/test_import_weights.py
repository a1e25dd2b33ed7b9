"""Published AFA and SLRNet checkpoints and their backbones load, predict, and say what they hold."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import golden_afa
import numpy as np
import pytest
import timm
import torch
import yaml
from published_slrnet import backbone_tensors, checkpoint_tensors
from small_slrnet import SMALL_SLRNET
from torch import Tensor

from mcc_core import checkpoint as checkpoints
from mcc_core.data.coco import COCO_CLASSES
from mcc_core.errors import UsageError
from mcc_core.experiment_files import resolve
from mcc_core.import_weights import import_weights
from mcc_core.methods.slrnet.network import SLRNet
from mcc_core.methods.slrnet.published import from_published

RECORDING = Path(__file__).parents[1] / "data" / "golden" / "afa_voc_128.npz"


def afa_tensors() -> dict[str, Tensor]:
    return golden_afa.recorded_weights(json.loads(str(np.load(RECORDING)["meta"]))["layout"])


def slrnet_tensors(classes: int = 20) -> dict[str, Tensor]:
    """Of a network of width 2."""
    sizes: dict[str, Any] = {"model.depths": [3, 3, 6, 3], "model.dilations": [12, 24, 36]}
    experiment: Any = resolve("slrnet-tiny", SMALL_SLRNET | sizes)
    return checkpoint_tensors(SLRNet(experiment, classes), 2)


@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_published_afa_checkpoint_predicts(tmp_path: Path, prefix: str) -> None:
    state = afa_tensors()
    torch.save({f"{prefix}{name}": tensor for name, tensor in state.items()}, tmp_path / "afa.pth")
    found = import_weights(tmp_path / "afa.pth")
    assert (found.kind, found.unused, found.fresh) == ("published AFA network", (), ())
    experiment: Any = found.checkpoint.experiment
    assert (experiment.method, experiment.model.backbone, experiment.model.strides) == ("afa", "mit_b1", (4, 2, 2, 1))
    checkpoints.save(found.checkpoint, tmp_path / "ours.pt")
    network = checkpoints.load(tmp_path / "ours.pt").network()
    assert torch.equal(network.get_parameter("attn_proj.weight"), state["attn_proj.weight"])
    with torch.no_grad():
        output = network(torch.zeros(1, 3, 48, 64))
    assert output.seg.shape == (1, 21, 12, 16) and output.cls.shape == (1, 20)


def test_a_published_slrnet_checkpoint_predicts_and_says_its_sizes(tmp_path: Path) -> None:
    """The published file wraps its tensors beside epoch and optimiser, and has the new layers twice."""
    state = slrnet_tensors()
    torch.save({"state_dict": state, "epoch": 20, "optimizer": {"state": {}}}, tmp_path / "checkpoint20.pth.tar")
    found = import_weights(tmp_path / "checkpoint20.pth.tar")
    assert found.kind == "published SLRNet network"
    assert all(name.startswith(("newly_added.", "_aff.")) for name in found.unused) and len(found.unused) == 31
    assert found.fresh == ()
    saved = found.checkpoint
    model: Any = saved.experiment.model
    assert (model.width, model.depths, model.channels, model.skip_channels) == (2, (3, 3, 6, 3), 8, 4)
    assert (saved.experiment.method, len(saved.classes), saved.iteration) == ("slrnet", 20, 19_830)
    checkpoints.save(saved, tmp_path / "ours.pt")
    network = checkpoints.load(tmp_path / "ours.pt").network()
    for name, tensor in from_published(state).items():
        assert torch.equal(network.state_dict()[name], tensor), name
    with torch.no_grad():
        output = network(torch.zeros(1, 3, 32, 40))
    assert output.seg.shape == (1, 21, 8, 10) and output.cls.shape == (1, 20)


def test_an_slrnet_checkpoint_of_80_classes_is_of_coco(tmp_path: Path) -> None:
    torch.save(slrnet_tensors(80), tmp_path / "coco.pth")
    saved = import_weights(tmp_path / "coco.pth").checkpoint
    experiment: Any = saved.experiment
    assert saved.classes == COCO_CLASSES and experiment.loss.reg1 == 8 and len(experiment.loss.positive_weight) == 80


def test_imagenet_weights_of_slrnet_are_a_backbone_alone(tmp_path: Path) -> None:
    tensors = backbone_tensors(2)
    torch.save(tensors | {"linear1000.weight": torch.zeros(1000, 128)}, tmp_path / "rna-a1.pth")
    found = import_weights(tmp_path / "rna-a1.pth")
    saved = found.checkpoint
    assert (found.kind, saved.experiment.method, saved.iteration) == ("backbone alone", "slrnet", 0)
    assert found.unused == ("linear1000.weight",)
    assert found.fresh and not any(name.startswith("backbone.") for name in found.fresh)
    assert torch.equal(saved.model["backbone.conv1.weight"], tensors["conv1a.weight"])


def test_what_is_of_another_method_or_does_not_fit_is_one_line(tmp_path: Path) -> None:
    torch.save(afa_tensors(), tmp_path / "afa.pth")
    state = slrnet_tensors()
    torch.save(state, tmp_path / "slrnet.pth")
    torch.save({n: t for n, t in state.items() if not n.startswith("fc8_x.")}, tmp_path / "less.pth")
    torch.save(state | {"aspp.conv1.weight": torch.zeros(8, 3, 1, 1)}, tmp_path / "odd.pth")
    torch.save({"patch_embed.proj.weight": torch.zeros(192, 3, 16, 16)}, tmp_path / "vit.pth")
    cases: list[tuple[str, dict[str, str], str]] = [
        ("afa", {"method": "mcc"}, r"afa\.pth: has encoder\.patch_embed1\.proj\.weight, as weights of AFA do.* MCC"),
        ("slrnet", {"base": "toco"}, r"slrnet\.pth: has backbone\.conv1a\.weight, as weights of SLRNet do.* ToCo"),
        ("less", {}, r"does not fit wide_resnet38 with 20 classes: lacks merge\.0\.weight"),
        ("odd", {}, r"aspp\.merge\.0\.weight is 8x3x1x1, not 8x40x1x1"),
        ("vit", {"method": "slrnet"}, r"vit\.pth: lacks \d+ tensors of wide_resnet38"),
        ("vit", {"method": "afa"}, r"no known mix transformer has widths \(0, 0, 0, 0\)"),
    ]
    for name, told, message in cases:
        with pytest.raises(UsageError, match=message) as caught:
            import_weights(tmp_path / f"{name}.pth", **told)
        assert "\n" not in str(caught.value)


def vit_tensors() -> dict[str, Tensor]:
    """Of a bare backbone as FSR, MCC and ToCo use it, in timm's naming."""
    vit = timm.create_model("deit_tiny_patch16_224", num_classes=0)
    return {name: torch.randn(tensor.shape) for name, tensor in vit.state_dict().items()}


def base_file(folder: Path, method: str, **fields: Any) -> str:
    """An experiment file of a method."""
    file = folder / f"{method}.yaml"
    file.write_text(yaml.safe_dump({"method": method, "data": {"name": "shapes"}, **fields}))
    return str(file)


def test_a_teacher_of_a_backbone_alone_begins_as_its_student(tmp_path: Path) -> None:
    torch.save(vit_tensors(), tmp_path / "vit.pth")
    found = import_weights(tmp_path / "vit.pth", base_file(tmp_path, "fsr"))
    model = found.checkpoint.model
    own = [name for name in model if name.startswith(("encoder.", "projector."))]
    assert all(torch.equal(model[f"teacher.{name}"], model[name]) for name in own)
    assert {"encoder.mask_token", "encoder.class_blocks.0.attn.q.weight", "centers.class_center"} <= set(found.fresh)
    assert {"teacher.encoder.mask_token", "teacher.projector.last.gain"} <= set(found.fresh)
    assert not any(name.startswith(("encoder.vit.", "teacher.encoder.vit.")) for name in found.fresh)


def test_a_whole_teacher_of_mcc_begins_as_its_student(tmp_path: Path) -> None:
    """It is no part of a published checkpoint or of a backbone."""
    vit = vit_tensors()
    torch.save(vit, tmp_path / "vit.pth")
    base = base_file(tmp_path, "mcc", contrast={"teacher": "network"})
    found = import_weights(tmp_path / "vit.pth", base)
    model = found.checkpoint.model
    assert torch.equal(model["momentum_encoder.vit.cls_token"], vit["cls_token"])
    assert torch.equal(model["momentum_projector.last.gain"], model["projector.last.gain"])
    assert not any(name.startswith("momentum_encoder.") for name in found.fresh)
    own = {n: torch.randn(t.shape) for n, t in model.items() if not n.startswith("momentum_")}
    named = {
        n.replace("encoder.vit.", "encoder.")
        .replace("projector.last.direction", "proj_head.last_layer.weight_v")
        .replace("projector.last.gain", "proj_head.last_layer.weight_g")
        .replace("projector.", "proj_head."): t
        for n, t in own.items()
    }
    torch.save(named, tmp_path / "published.pth")
    read = import_weights(tmp_path / "published.pth", base)
    model = read.checkpoint.model
    assert read.fresh == ()
    for mean, source in (("momentum_encoder.", "encoder."), ("momentum_projector.", "projector.")):
        for name in (n for n in own if n.startswith(source)):
            assert torch.equal(model[mean + name.removeprefix(source)], own[name])


def test_every_class_token_of_a_backbone_alone_begins_as_its_one(tmp_path: Path) -> None:
    vit = vit_tensors()
    torch.save(vit, tmp_path / "vit.pth")
    found = import_weights(tmp_path / "vit.pth", base_file(tmp_path, "mctformer"))
    model = found.checkpoint.model
    assert set(found.fresh) == {"head.weight", "head.bias"} and set(found.unused) == {"norm.weight", "norm.bias"}
    assert torch.equal(model["encoder.vit.cls_token"], vit["cls_token"].expand(1, 20, -1))
    assert torch.equal(model["encoder.vit.pos_embed"][:, 20:], vit["pos_embed"][:, 1:])
