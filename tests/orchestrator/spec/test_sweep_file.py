"""The sweep schema: what is accepted, and what is said about what is not."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from mcc_core.errors import UsageError
from mcc_core.structured_files import read_yaml
from mcc_core.validation import validate
from orchestrator.spec.posthoc_file import PosthocFile
from orchestrator.spec.stages_file import is_staged, load_stages
from orchestrator.spec.sweep_file import SweepFile, load_sweep, with_run_options
from orchestrator.workflows.posthoc import is_posthoc

REPOSITORY = Path(__file__).parents[3]

GOOD = """
name: s
base: tiny
parameters:
  mask.ratio: [0.5, {schedule: linear, start: 0.5, end: 0.95}]
points:
  - {name: plain, set: {loss.mcc: 0}}
"""


def write(folder: Path, text: str) -> Path:
    file = folder / "s.yaml"
    file.write_text(text)
    return file


def mistake(folder: Path, text: str) -> str:
    """What is said about a sweep file, without the folder."""
    with pytest.raises(UsageError) as caught:
        load_sweep(write(folder, text))
    return str(caught.value).replace(f"{folder}/", "")


def test_numbers_and_schedules_may_be_swept(tmp_path: Path) -> None:
    sweep = load_sweep(write(tmp_path, GOOD))
    assert sweep.parameters["mask.ratio"][0] == 0.5
    assert sweep.points[0].set == {"loss.mcc": 0}
    assert sweep.seeds == (0,)


@pytest.mark.parametrize("file", sorted((REPOSITORY / "sweeps").glob("*.yaml")), ids=lambda f: f.name)
def test_shipped_sweeps_are_valid_on_every_base(file: Path) -> None:
    if is_posthoc(file):
        assert validate(PosthocFile, read_yaml(file), str(file)).name == file.stem
        return
    if is_staged(file):
        assert load_stages(file).name == file.stem
        return
    sweep = load_sweep(file)
    for base in sweep.bases:
        assert sweep.for_base(base).base == base


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("name: s", "nmae: s", "s.yaml: nmae: unknown field, did you mean name?"),
        ("name: s", "name: ../s", "s.yaml: name: '../s'"),
        ("base: tiny", "base: tinny", "tinny: neither a preset nor a .yaml file; did you mean tiny?"),
        ("mask.ratio", "mask.ration", "s.yaml: parameters: mask.ration: unknown field, did you mean mask.ratio?"),
        ("mask.ratio", "ratio", "s.yaml: parameters: ratio: unknown field, did you mean mask.ratio?"),
        ("mask.ratio", "mask", "s.yaml: parameters: mask: is a section; name one of its fields, such as mask.ratio"),
        ("[0.5, {", "[0.5, 1.2, {", "s.yaml: parameters.mask.ratio[1]: 1.2: 1.2 is out of range"),
        ("[0.5, {", "[much, {", "s.yaml: parameters.mask.ratio[0]: 'much'"),
        ("end: 0.95", "end: 1.5", "s.yaml: parameters.mask.ratio[1]: 1.5 is out of range"),
        ("schedule: linear", "schedule: lineal", "s.yaml: parameters.mask.ratio[1]: "),
        ("start: 0.5, ", "", "s.yaml: parameters.mask.ratio[1]"),
        ("loss.mcc: 0", "loss.mcc: -1", "s.yaml: points[0].set: -1: -1 is out of range: must be at least 0"),
        ("loss.mcc: 0", "loss.mmc: 0", "s.yaml: points[0].set: loss.mmc: unknown field, did you mean loss.mcc?"),
        ("points:", "seeds: []\npoints:", "s.yaml: seeds: "),
        ("points:", "seeds: [1, 1]\npoints:", "s.yaml: seeds: 1 is there twice"),
        ("points:", "mode: best\npoints:", "s.yaml: mode: 'best'"),
        ("points:", "resources: {cpus_per_worker: 0}\npoints:", "s.yaml: resources.cpus_per_worker: 0"),
        ("points:", "resources: {gpus_per_worker: 1.5}\npoints:", "resources.gpus_per_worker: 1.5: above 1 it must be"),
        ("points:", "resources: {cpus: 1}\npoints:", "unknown field, did you mean resources.cpus_per_worker?"),
        ("points:", "heatmap: {x: mask.ratio, y: mask.scale}\npoints:", "s.yaml: heatmap.y: 'mask.scale' is not among"),
        ("points:", "set: {thresholds.foreground: 0.1}\npoints:", "thresholds.background (0.25) must be below"),
        ("points:", "bases: {voc: {set: {loss.x: 1}}}\npoints:", "s.yaml: bases.voc: set: loss.x: unknown field"),
        ("points:", "bases: {voc: {parameter: {}}}\npoints:", "s.yaml: bases.voc.parameter: unknown field"),
        ("[0.5, {schedule: linear, start: 0.5, end: 0.95}]", "[]", "s.yaml: parameters: mask.ratio: needs at least"),
        (
            "[0.5, {schedule: linear, start: 0.5, end: 0.95}]",
            "0.5",
            "s.yaml: parameters: mask.ratio: 0.5: expected",
        ),
        (GOOD, "", "s.yaml: is empty; expected a mapping of fields"),
        ("points:", "derived: {mask.ratio: 0.5}\npoints:", "mask.ratio: in parameters and in derived; take one out"),
        ("points:", "heatmap: {x: mask.ratio, y: mask.ratio}\npoints:", "heatmap: x and y are both 'mask.ratio'"),
        ("points:", "seeds: []\npoints:", "s.yaml: seeds: needs at least 1 of them"),
        ("points:", "seeds: [-1]\npoints:", "s.yaml: seeds[0]: -1: must be at least 0"),
        ("points:", "points: [", "s.yaml: line "),
        (GOOD, "- a", "s.yaml: expected a mapping of fields, found list"),
        (GOOD, "name: !!python/object/apply:os.system [ls]", "s.yaml: line 1"),
    ],
)
def test_mistakes_are_named_with_file_field_and_value(tmp_path: Path, old: str, new: str, expected: str) -> None:
    said = mistake(tmp_path, GOOD.replace(old, new))
    assert expected in said
    assert "Traceback" not in said


def test_every_example_of_the_documentation_is_valid(tmp_path: Path) -> None:
    text = (REPOSITORY / "docs/sweeps.md").read_text()
    blocks = re.findall(r"```yaml\n(.*?)```", text, re.S)
    assert len(blocks) == 6
    for block in blocks:
        head = (
            "" if block.startswith("name:") else "name: s\n" if block.startswith("stages:") else "name: s\nbase: tiny\n"
        )
        file = write(tmp_path, head + block)
        (load_stages if is_staged(file) else load_sweep)(file)
    kinds = re.findall(r"^\| `(\{kind: .*?\})` \|", text, re.M)
    assert len(kinds) == 8
    for text in kinds:
        fields = yaml.safe_load(text)
        section = "search" if fields["kind"] in {"grid", "random", "tpe"} else "scheduler"
        some = {"parameters": {"loss.mcc": [0.1, 0.2]}, section: fields}
        SweepFile.model_validate({"name": "s", "base": "tiny"} | some)


def test_run_options_leave_a_default_a_default(tmp_path: Path) -> None:
    """Data without masks changes the metric of a sweep that names none."""
    sweep = with_run_options(load_sweep(write(tmp_path, GOOD)), (1, 2), None)
    assert sweep.seeds == (1, 2) and "metric" not in sweep.model_fields_set


def test_every_mistake_has_its_line(tmp_path: Path) -> None:
    said = mistake(tmp_path, GOOD.replace("[0.5, {", "[7, 8, {").replace("loss.mcc: 0", "loss.mcc: -1"))
    assert len(said.splitlines()) == 3


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no\.yaml: No such file"):
        load_sweep(tmp_path / "no.yaml")


def test_a_base_replaces_only_what_it_gives(tmp_path: Path) -> None:
    text = GOOD + "set: {train.iterations: 6}\nseeds: [1, 2]\nbases: {voc: {set: {}, parameters: {mask.scale: [1, 4]}}}"
    sweep = load_sweep(write(tmp_path, text))
    voc = sweep.for_base("voc")
    assert (voc.set, list(voc.parameters), voc.seeds) == ({}, ["mask.scale"], (1, 2))
    assert sweep.for_base().set == {"train.iterations": 6}
