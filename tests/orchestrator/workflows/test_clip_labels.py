"""`mcc refine clip`: label sets of a frozen CLIP from the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny_clip import SIZES
from typer.testing import CliRunner

from mcc_core.data.label_maps import read_label_set
from mcc_core.errors import UsageError
from orchestrator.cli.app import app
from orchestrator.settings import Settings
from orchestrator.workflows.refinement import prepared

SHAPES = [f"--set=data.shapes_{name}" for name in ("train=8", "val=4", "size=48")]
TINY = [f"--set=clip.model_args={json.dumps(SIZES)}", "--set=clip.weights=random", "--set=clip.attention_blocks=2"]


def test_labels_without_a_trained_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MCC_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    chosen = ["--data", "tiny", "--kind", "crf", "--set=confidence=0.3", "--limit", "3", "--out", "seeds"]
    result = CliRunner().invoke(app, ["refine", "clip", *chosen, *SHAPES, *TINY], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    labels = read_label_set(tmp_path / "seeds")
    assert f"3 label maps in seeds, label set {labels.identity}" in result.output
    assert labels.origin["dataset"]["name"] == "shapes"
    assert labels.origin["clip"]["model"] == "ViT-B-16-quickgelu" and labels.origin["refine"]["kind"] == ["crf"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"clip.prompt": "voc"}, "^--set clip: prompt: unknown field, did you mean prompts"),
        ({"clip.prompts": "vok"}, "^clip.prompts: vok: no such file, and none of the shipped"),
        ({"clip.prompts": "voc"}, r"voc\.yaml: classes\.aeroplane: no class of the data"),
        ({"treshold": 0.3}, "^--set: treshold: unknown field, did you mean threshold"),
        ({"threshold": 0.3}, "^threshold: is of a trained network's maps"),
    ],
)
def test_mistakes_are_one_line(changes: dict[str, object], said: str, tmp_path: Path) -> None:
    small = {"data.shapes_train": 8, "data.shapes_val": 4, "data.shapes_size": 48}
    with pytest.raises(UsageError, match=said) as error:
        prepared("clip", "none", small | changes, Settings.at(tmp_path), data="tiny")
    assert "\n" not in str(error.value)


def test_where_the_images_are_must_be_said(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--data: is missing: the seeds do not say where"):
        prepared("clip", "none", {}, Settings.at(tmp_path))
