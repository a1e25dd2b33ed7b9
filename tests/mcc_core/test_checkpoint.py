"""Our checkpoint format, and published ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import golden
import pytest
import torch
from experiments import mcc_experiment
from safetensors.torch import save_file

from mcc_core import checkpoint as checkpoints
from mcc_core.checkpoint import Checkpoint
from mcc_core.errors import UsageError
from mcc_core.import_weights import import_weights
from mcc_core.methods.mcc.network import MCCNet
from mcc_core.methods.registry import method_of
from mcc_core.networks.published import from_published

LAYOUTS = json.loads((Path(__file__).parents[1] / "data" / "golden" / "checkpoint_layout.json").read_text())


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Checkpoint, Path]:
    experiment = mcc_experiment("tiny", {"mask.ratio": {"schedule": "linear", "start": 0.5, "end": 0.9}})
    network = MCCNet(experiment.model, 3)
    one = Checkpoint(experiment, ("a", "b", "c"), 7, 1, network.state_dict(), None, {"val/seg/single/miou": 0.5})
    checkpoints.save(one, tmp_path / "x.pt")
    return one, tmp_path / "x.pt"


def test_round_trip(saved: tuple[Checkpoint, Path]) -> None:
    one, path = saved
    loaded = checkpoints.load(path)
    assert (loaded.experiment, loaded.classes, loaded.iteration, loaded.metrics) == (
        one.experiment,
        one.classes,
        one.iteration,
        one.metrics,
    )
    network = loaded.network()
    assert not network.training
    assert all(torch.equal(t, one.model[n]) for n, t in network.state_dict().items())
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("keep", [0, 100, 0.5, 0.99])
def test_cut_short_file_is_refused(saved: tuple[Checkpoint, Path], keep: float) -> None:
    path = saved[1]
    content = path.read_bytes()
    path.write_bytes(content[: int(keep if keep > 1 else keep * len(content))])
    with pytest.raises(UsageError, match=r"it is cut short|it is empty"):
        checkpoints.load(path)


def test_pickled_code_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "evil.pt"
    torch.save({"format": 1, "evil": Path("/")}, path)
    with pytest.raises(UsageError, match=r"evil.pt: it holds pickled code \(pathlib"):
        checkpoints.load(path)
    torch.save({"weights": torch.zeros(1)}, tmp_path / "other.pt")
    with pytest.raises(UsageError, match="not an mcc checkpoint"):
        checkpoints.load(tmp_path / "other.pt")


@pytest.mark.parametrize("prefix", ["", "module."])
def test_published_layout_fills_the_network(prefix: str) -> None:
    layout = LAYOUTS["voc_deit_tiny"]
    assert golden.published_layout(192, 21).items() == {k: v for k, v in layout.items() if ".head." not in k}.items()
    state = {prefix + name: torch.full(shape, 2.0) for name, shape in layout.items()}
    experiment = mcc_experiment("voc", {"model.backbone": "deit_tiny_patch16_224", "model.weights": "random"})
    network = MCCNet(experiment.model, 20)
    network.load_state_dict(from_published(state))
    assert all((tensor == 2).all() for tensor in network.state_dict().values())


@pytest.mark.parametrize("name", ["voc_deit_base", "coco_deit_base"])
def test_published_names_and_shapes_are_ours(name: str) -> None:
    """Shapes only: the network is built without memory behind it."""
    experiment = mcc_experiment("voc", {"model.weights": "random"})
    with torch.device("meta"):
        network = MCCNet(experiment.model, 20 if "voc" in name else 80)
        published = from_published({n: torch.empty(shape) for n, shape in LAYOUTS[name].items()})
    ours = {n: t.shape for n, t in network.state_dict().items()}
    assert {n: t.shape for n, t in published.items()} == ours


@pytest.mark.parametrize("suffix", [".pth", ".safetensors", ".pt"])  # the last: a checkpoint of ours
def test_local_backbone_weights(tmp_path: Path, suffix: str) -> None:
    args = {"patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
    source = mcc_experiment("tiny", {"model.backbone_args": {**args, "img_size": 64}, "model.aux_block": 1})
    network = MCCNet(source.model, 2)
    vit = network.encoder.vit
    state = {name: tensor.clone().half() for name, tensor in vit.state_dict().items()} | {"head.bias": torch.ones(3)}
    path = tmp_path / f"w{suffix}"
    if suffix == ".pt":
        halves = {name: tensor.half() for name, tensor in network.state_dict().items()}
        checkpoints.save(Checkpoint(source, ("a", "b"), 1, 0, halves, None, {}), path)
    else:
        save_file(state, path) if suffix == ".safetensors" else torch.save({"model": state}, path)
    other = {"model.backbone_args": {**args, "img_size": 96}, "model.aux_block": 1, "model.weights": str(path)}
    loaded = MCCNet(mcc_experiment("tiny", other).model, 2).encoder.vit
    assert loaded.pos_embed.shape[1] == 145  # resized from 65
    assert torch.equal(loaded.blocks[1].mlp.fc1.weight, state["blocks.1.mlp.fc1.weight"].float())

    deeper = other | {"model.backbone_args": {**args, "depth": 3}}
    with pytest.raises(UsageError, match=r"lacks 1[0-9] tensors of the backbone, such as blocks\.2"):
        MCCNet(mcc_experiment("tiny", deeper).model, 2)
    wider = other | {"model.backbone_args": {**args, "embed_dim": 48}}
    with pytest.raises(UsageError, match="does not fit"):
        MCCNet(mcc_experiment("tiny", wider).model, 2)


def test_missing_weights_say_both_ways(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="no such file"):
        MCCNet(mcc_experiment("tiny", {"model.weights": str(tmp_path / "no.pth")}).model, 2)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    with pytest.raises(UsageError, match="not a timm model"):
        MCCNet(mcc_experiment("tiny", {"model.backbone": "deit_tinny"}).model, 2)


def _published_file(path: Path, wrap: str | None = None, **changes: torch.Tensor | None) -> Path:
    state = dict(golden.recorded_weights(LAYOUTS["voc_deit_tiny"]))
    for name, tensor in changes.items():
        state.pop(name) if tensor is None else state.update({name: tensor})
    torch.save({wrap: state, "iter": 20000} if wrap else {f"module.{n}": t for n, t in state.items()}, path)
    return path


@pytest.mark.parametrize("wrap", [None, "model", "state_dict"])
def test_published_file_becomes_a_checkpoint(tmp_path: Path, wrap: str | None) -> None:
    found = import_weights(_published_file(tmp_path / "mcc.pth", wrap))
    assert found.checkpoint.experiment.model.backbone == "deit_tiny_patch16_224"
    assert (len(found.checkpoint.classes), found.fresh) == (20, ())
    assert found.unused == ("encoder.head.weight", "encoder.head.bias")
    out = tmp_path / "ours.pt"
    checkpoints.save(found.checkpoint, out)
    network = checkpoints.load(out).network()
    expected = golden.recorded_weights(LAYOUTS["voc_deit_tiny"])
    assert torch.equal(network.get_parameter("decoder.conv7.weight"), expected["decoder.conv7.weight"])
    with pytest.raises(UsageError, match="is an mcc checkpoint already"):
        import_weights(out)


@pytest.mark.parametrize(
    ("told", "name"),
    [
        ({"method": "toco"}, "toco"),
        ({"base": "toco"}, "toco"),
        ({"base": "voc", "method": "toco"}, "toco"),
        ({}, "mcc"),
    ],
)
def test_a_published_file_is_of_the_method_that_is_named(tmp_path: Path, told: dict[str, str], name: str) -> None:
    """The published MCC and ToCo name their tensors alike, so that the file cannot say."""
    found = import_weights(_published_file(tmp_path / "toco.pth"), **told)
    assert found.checkpoint.experiment.method == name and found.fresh == ()
    assert ("--method toco" in found.kind) == (not told)
    out = tmp_path / "ours.pt"
    checkpoints.save(found.checkpoint, out)
    loaded = checkpoints.load(out)
    assert method_of(loaded.experiment).name == name
    with torch.no_grad():
        assert loaded.network()(torch.zeros(1, 3, 64, 64)).seg.shape == (1, 21, 4, 4)


def test_an_unknown_method_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--method: method: 'tocco': expected one of mcc, toco"):
        import_weights(_published_file(tmp_path / "toco.pth"), method="tocco")


def test_a_file_without_projectors_still_predicts(tmp_path: Path) -> None:
    names = [name for name in LAYOUTS["voc_deit_tiny"] if name.startswith("proj_head")]
    found = import_weights(_published_file(tmp_path / "toco.pth", "model", **dict.fromkeys(names)))
    assert len(found.fresh) == len(names) and all("projector" in name for name in found.fresh)
    with torch.no_grad():
        assert found.checkpoint.network()(torch.zeros(1, 3, 64, 64)).seg.shape == (1, 21, 4, 4)


def test_a_backbone_becomes_a_checkpoint_with_new_heads(tmp_path: Path) -> None:
    state = {n.removeprefix("encoder."): t for n, t in golden.recorded_weights(LAYOUTS["voc_deit_tiny"]).items()}
    heads = ("proj_", "decoder", "classifier", "aux")
    torch.save({"model": {n: t for n, t in state.items() if not n.startswith(heads)}}, tmp_path / "d.pth")
    found = import_weights(tmp_path / "d.pth", "coco")
    assert found.kind == "backbone alone" and len(found.checkpoint.classes) == 80
    assert found.unused == ("head.weight", "head.bias")
    assert torch.equal(found.checkpoint.model["encoder.vit.blocks.3.mlp.fc1.weight"], state["blocks.3.mlp.fc1.weight"])


def test_files_of_another_kind_are_one_line(tmp_path: Path) -> None:
    cases: dict[str, tuple[Any, str]] = {
        "resnet": (
            {"conv1.weight": torch.zeros(64, 3, 7, 7)},
            r"neither a .* top names are conv1.weight \(tensor 64x3x7x7",
        ),
        "empty": ({}, "it holds nothing"),
        "code": ({"model": Path("/")}, r"it holds pickled code \(pathlib\..*state_dict"),
        "module": (torch.nn.Linear(2, 2), r"it holds pickled code \(torch.nn.modules.linear.Linear\)"),
        "list": ([torch.zeros(1)], "it holds one list"),
        "ema": ({"model_ema": {"a": torch.zeros(1)}}, r"top names are model_ema \(1 inside, such as a\)"),
        "teacher": ({"teacher": {"module.backbone.x": torch.zeros(1)}}, "under model, .*teacher .*module.backbone.x"),
    }
    for name, (content, message) in cases.items():
        torch.save(content, tmp_path / f"{name}.pth")
        with pytest.raises(UsageError, match=message) as caught:
            import_weights(tmp_path / f"{name}.pth")
        assert "\n" not in str(caught.value)
    odd = {"decoder.conv8.weight": torch.zeros(30, 512, 1, 1)}
    with pytest.raises(UsageError, match=r"decoder.conv8.weight is 30x512x1x1, not 21x512x1x1"):
        import_weights(_published_file(tmp_path / "odd.pth", "model", **odd))
    with pytest.raises(UsageError, match=r"lacks decoder.conv6.weight"):
        import_weights(_published_file(tmp_path / "less.pth", "model", **{"decoder.conv6.weight": None}))
    wide = {"encoder.patch_embed.proj.weight": torch.zeros(200, 3, 16, 16)}
    with pytest.raises(UsageError, match="no known backbone of width 200"):
        import_weights(_published_file(tmp_path / "wide.pth", "model", **wide))


_ODD_BYTES = {
    b"": "it is empty",
    b"<!DOCTYPE html>\n<html><body>Sign in</body></html>": "it is HTML",
    b"\n<?xml version='1.0'?><Error>AccessDenied</Error>": "it is XML",
    b'{"error": "Repository not found"}': "it is JSON, not weights: Repository not found",
    b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n": "it is a Git LFS pointer",
    b"PK\x03\x04" + bytes(100): "it is cut short",
    b"hello": "it begins with 'hello'",
}


@pytest.mark.parametrize("content", list(_ODD_BYTES))
def test_every_door_says_what_a_file_is_instead_of_weights(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "w.pth"
    path.write_bytes(content)
    doors = (
        lambda: import_weights(path),
        lambda: checkpoints.load(path),
        lambda: MCCNet(mcc_experiment("tiny", {"model.weights": str(path)}).model, 2),
    )
    for door in doors:
        with pytest.raises(UsageError) as caught:
            door()
        message = str(caught.value)
        assert _ODD_BYTES[content] in message and str(path) in message and "\n" not in message
        assert "weights_only" not in message and "torch.load" not in message


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_is_refused_at_every_door(
    tmp_path: Path, saved: tuple[Checkpoint, Path], value: float
) -> None:
    bad = torch.zeros(20, 192, 1, 1)
    bad[3, 5] = value
    with pytest.raises(UsageError, match=r"not finite: classifier.weight has 1 of 3,840 values"):
        import_weights(_published_file(tmp_path / "mcc.pth", "model", **{"classifier.weight": bad}))
    one, path = saved
    next(iter(one.model.values())).view(-1)[0] = value
    checkpoints.save(one, path)
    with pytest.raises(UsageError, match=r"x.pt: not finite: model.encoder.vit.cls_token has 1 of"):
        checkpoints.load(path)
    with pytest.raises(UsageError, match=r"model.weights: .*x.pt: not finite: encoder.vit.cls_token has 1 of"):
        MCCNet(mcc_experiment("tiny", {"model.weights": str(path)}).model, 2)


def test_weights_are_known_by_content_not_by_name(tmp_path: Path) -> None:
    published = torch.load(_published_file(tmp_path / "mcc.pth", "model"), weights_only=True)["model"]
    save_file({name: tensor.clone() for name, tensor in published.items()}, tmp_path / "named.pth")
    assert import_weights(tmp_path / "named.pth").fresh == ()
    with pytest.raises(UsageError, match=r"not an mcc checkpoint; its top names are .*import-weights"):
        checkpoints.load(tmp_path / "named.pth")
