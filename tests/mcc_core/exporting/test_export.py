"""Exported networks compute what the network does, for any number of images of any size, and say what they are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from small import SMALL
from small_slrnet import SMALL_SLRNET
from trained import RESNET, SMALLEST

from mcc_core import checkpoint as checkpoints
from mcc_core.checkpoint import Checkpoint
from mcc_core.errors import MCCError, UsageError
from mcc_core.experiment_files import resolve
from mcc_core.exporting import check, formats
from mcc_core.exporting.check import export_checkpoint
from mcc_core.exporting.deployed import Deployed
from mcc_core.methods.registry import random_network

WITHOUT_MODEL = {k: v for k, v in SMALL.items() if not k.startswith("model.")}
PROJECTOR = {"model.projector.hidden": 16, "model.projector.bottleneck": 8, "model.projector.out": 8}
FIELDS: dict[str, dict[str, Any]] = {
    "tiny": SMALL,
    "toco-tiny": SMALL | {"crops.size": 16},
    "afa-tiny": WITHOUT_MODEL,
    "slrnet-tiny": SMALL_SLRNET,
    "recam-tiny": RESNET,
    "amn-tiny": RESNET,
    "irn-tiny": RESNET | {"relations.radius": 3},
    "psa-tiny": RESNET | {"model.channels": [4, 4, 4]},
    "clims": SMALLEST["clims"][1],
    "segmentation-tiny": SMALLEST["segmentation"][1],
    "fsr-tiny": SMALL | PROJECTOR | {"model.decoder_channels": 8},
    "mctformer-tiny": {k: v for k, v in SMALL.items() if k not in ("model.aux_block", "loss.seg_start")},
}
IMAGE = np.random.default_rng(3).integers(0, 256, (37, 70, 3), dtype=np.uint8)


def trained(preset: str = "tiny") -> Checkpoint:
    torch.manual_seed(0)
    experiment = resolve(preset, FIELDS[preset])
    weights = random_network(experiment, 3).state_dict()
    return Checkpoint(experiment, ("cat", "dog", "cow"), 6, 1, dict(weights), None, {"val/seg/single/miou": 0.5})


def compared(saved: Checkpoint, run: Any) -> None:
    network = Deployed(saved.network())
    stride = network.network.stride
    for shape in ((1, 3, 2 * stride, 9 * stride), (3, 3, 5 * stride, 5 * stride)):
        images = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            wanted = network(images)
        for one, two in zip(wanted, run(images), strict=True):
            torch.testing.assert_close(torch.as_tensor(two), one, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "preset", ["tiny", *(pytest.param(name, marks=pytest.mark.slow) for name in FIELDS if name != "tiny")]
)
def test_onnx_of_every_method(preset: str, tmp_path: Path) -> None:
    import onnxruntime

    saved, file = trained(preset), tmp_path / "net.onnx"
    made = export_checkpoint(saved, file, None, IMAGE, {"trial": "abc"})
    assert all(gap < 1e-3 for gap in made.gaps.values()) and made.pixels > 37 * 70
    assert [path.name for path in tmp_path.iterdir()] == ["net.onnx"]
    session = onnxruntime.InferenceSession(str(file))
    compared(saved, lambda images: session.run(None, {"images": images.numpy()}))
    texts = session.get_modelmeta().custom_metadata_map
    about = json.loads(texts["mcc"])
    assert json.loads(texts["classes"]) == about["classes"] == ["cat", "dog", "cow"]
    assert json.loads(texts["mean"]) == [0.485, 0.456, 0.406] and about["trial"] == "abc"
    assert (about["seed"], about["iteration"], about["method"]) == (1, 6, saved.experiment.method)
    assert about["experiment"] == saved.experiment.model_dump(mode="json")


def test_a_network_without_class_maps_exports_none(tmp_path: Path) -> None:
    saved = trained("segmentation-tiny")
    made = export_checkpoint(saved, tmp_path / "net.safetensors", None, IMAGE)
    assert set(made.gaps) == {"segmentation", "scores"}
    compared(saved, Deployed(saved.network()))


def test_what_was_written_and_does_not_run_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Foreign(Exception):  # noqa: N818  as onnxruntime's
        pass

    def refuse(images: torch.Tensor) -> Any:
        raise Foreign("a\nb")

    monkeypatch.setattr(check, "write", lambda *given: given[-1].touch() or refuse)
    with pytest.raises(MCCError, match=r"what was written does not run on \d+x\d+ pixels: .*torch-export may have$"):
        export_checkpoint(trained(), tmp_path / "net.onnx", None, None)
    assert not list(tmp_path.iterdir())


def test_a_program_of_pytorch(tmp_path: Path) -> None:
    saved, extra = trained(), {"mcc.json": ""}
    export_checkpoint(saved, tmp_path / "net.pt2", None, IMAGE)
    program = torch.export.load(tmp_path / "net.pt2", extra_files=extra)
    compared(saved, program.module())
    assert json.loads(extra["mcc.json"])["labels"] == ["background", "cat", "dog", "cow"]


def test_safetensors_are_a_checkpoint_too(tmp_path: Path) -> None:
    saved = trained()
    made = export_checkpoint(saved, tmp_path / "net.bin", "safetensors", None)
    assert set(made.gaps.values()) == {0.0} and made.other_class == 0
    with safe_open(tmp_path / "net.bin", "pt") as file:
        assert json.loads(file.metadata()["mcc"])["stride"] == 8
    again = checkpoints.load(tmp_path / "net.bin")
    assert (again.classes, again.iteration, again.seed) == (saved.classes, 6, 1)
    assert again.experiment == saved.experiment and again.metrics == saved.metrics
    compared(saved, Deployed(again.network()))


def test_what_computes_something_else_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(kind: Any, network: Deployed, saved: Checkpoint, about: Any, file: Path) -> Any:
        formats.write(kind, network, saved, about, file)
        return lambda images: tuple(x + 0.01 for x in network(images))

    monkeypatch.setattr(check, "write", wrong)
    with pytest.raises(MCCError, match=r"exported segmentation differs from the network's by up to 0\.01; nothing is"):
        export_checkpoint(trained(), tmp_path / "net.safetensors", None, None)
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_exported_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match=r"--format tensorrt: not one of onnx, torch-export, safetensors"):
        export_checkpoint(trained(), tmp_path / "net.onnx", "tensorrt", None)
    with pytest.raises(UsageError, match=r"net\.xyz: no format has the suffix '\.xyz'; --format is one of onnx"):
        export_checkpoint(trained(), tmp_path / "net.xyz", None, None)
    monkeypatch.setattr(formats, "find_spec", lambda name: None if name == "onnxruntime" else name)
    with pytest.raises(UsageError, match=r"onnxruntime is not installed: run `pip install 'mcc\[export\]'`"):
        export_checkpoint(trained(), tmp_path / "net.onnx", None, None)

    def impossible(network: Deployed) -> None:
        raise RuntimeError("\nno such operator\nand a page of advice")

    monkeypatch.setattr(formats, "_program", impossible)
    with pytest.raises(MCCError, match=r"^--format torch-export: mcc cannot .*: RuntimeError: no such operator$"):
        export_checkpoint(trained(), tmp_path / "net.pt2", None, None)
    assert not list(tmp_path.iterdir())
