"""Keys that are given twice are refused wherever a user's YAML or JSON is read."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from experiments import mcc_experiment
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mcc_core.errors import UsageError
from mcc_core.experiment_files import load_base, merge
from mcc_core.structured_files import parse_yaml, read_json, read_yaml
from orchestrator.cli.options import overrides
from orchestrator.spec.sweep_file import load_sweep
from orchestrator.workflows.posthoc import is_posthoc

TWICE = "is there twice"


@pytest.mark.parametrize(
    ("text", "line", "key", "first"),
    [
        ("set: {}\nname: x\nset: {}\n", 3, "set", 1),
        ("set:\n  loss.mcc: 1\n  'loss.mcc': 2\n", 3, "loss.mcc", 2),
        ("points:\n  - {name: a, set: {},\n     name: b}\n", 3, "name", 2),
        ("a: &x {k: 1}\nb: {<<: *x, <<: *x}\n", 2, "<<", 2),
        ("loss: {mcc: 1, cls: 2, mcc: 1}", 1, "mcc", 1),
    ],
)
def test_a_yaml_key_twice_is_named_with_its_lines(tmp_path: Path, text: str, line: int, key: str, first: int) -> None:
    file = tmp_path / "x.yaml"
    file.write_text(text)
    with pytest.raises(UsageError) as caught:
        read_yaml(file)
    assert str(caught.value).startswith(f"{file}: line {line}: {key!r} {TWICE} (first in line {first})")
    for read in (load_sweep, load_base, is_posthoc):
        with pytest.raises(UsageError, match=TWICE):
            read(file)


def test_what_a_merge_brings_in_may_be_replaced() -> None:
    text = "a: &a {x: 1, y: 1}\nb: &b {<<: *a, x: 2}\nc: {<<: *b, y: 3}\n1: one\n'1': text\n"
    read = parse_yaml(text, "x")
    assert read["b"] == {"x": 2, "y": 1} and read["c"] == {"x": 2, "y": 3} and read[1] == "one" and read["1"] == "text"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: 2024-02-30", "a date or number that there is not"),
        ("a: !!int x", "a date or number that there is not"),
        ("[" * 5000, "nested too deeply"),
        ("a:\n\t- b", "a tab; indent with spaces"),
        ("a: @x", "a sign that YAML keeps for itself"),
        ("a: b: c", "a colon too many"),
        ("a: |\n x\ny", "a line without `key:`"),
        ("a:\n  b: 1\n c: 2", "indented otherwise"),
        ("a: [1, 2", "a bracket that is not closed"),
        ("a: 'x", "a quote that is not closed"),
        ("a: 1\n---\nb: 1", "a second document"),
        ("a: *x", "an alias `*name` without"),
        ("a: !!python/object:os.system {}", "a tag"),
        ("? [a]\n: 1", "a list or a mapping as a key"),
        ("a: \x01", "a control character"),
        ("{a: 1}}", "a bracket too many"),
        ("%YAML 3.0\n---\na: 1", "expected `key: value` lines"),
    ],
)
def test_what_yaml_stumbles_over_is_one_line_in_plain_words(text: str, said: str) -> None:
    with pytest.raises(UsageError, match=rf"^x:( line \d+:)? not valid YAML: {re.escape(said)}[^\n]*$"):
        parse_yaml(text, "x")


def test_a_section_as_a_mapping_replaces_only_what_it_names() -> None:
    assert merge({}, {"crf.steps": 2, "crf": {"srgb": 1}}, "x") == {"crf": {"steps": 2, "srgb": 1}}
    tiny = mcc_experiment("tiny")
    assert tiny.loss.seg_start == 60  # unlike the default
    assert mcc_experiment("tiny", {"loss": {"mcc": 0.3}}).loss == tiny.loss.model_copy(update={"mcc": 0.3})
    assert mcc_experiment("tiny", {"model.backbone_args": {"depth": 1}}).model.backbone_args == {
        "depth": 1
    }  # one value
    ramp = {"schedule": "linear", "start": 0.5, "end": 0.9}
    assert mcc_experiment("tiny", {"mask": {"ratio": ramp}}).mask.scale == tiny.mask.scale
    assert (
        mcc_experiment("tiny", {"mask.ratio": ramp, "compat": "paper"}).mask
        == mcc_experiment("tiny", {"mask": {"ratio": ramp}, "compat": "paper"}).mask
    )
    with pytest.raises(UsageError, match=r"--set: loss.mcc: given twice, by itself and in its section"):
        mcc_experiment("tiny", {"loss.mcc": 0.1, "loss": {"mcc": 0.3}})


def test_a_json_key_twice_is_named_with_its_lines(tmp_path: Path) -> None:
    file = tmp_path / "x.json"
    file.write_text(
        '{"a": "{\\"a\\": 1, \\"a\\": [",\n "b": [{"k": 1}, {"k": 2}],\n "c": {"k:": {}, "\\u006b":\n 1, "k": 2}}'
    )
    with pytest.raises(UsageError, match=r"x.json: line 4: 'k' is there twice \(first in line 3\)"):
        read_json(file)


def test_set_twice_is_refused_unless_it_says_the_same() -> None:
    assert overrides(["a=1", "b=2", "a=1"]) == {"a": 1, "b": 2}
    with pytest.raises(UsageError, match=r"--set a=2: a is set twice, to 1 before"):
        overrides(["a=1", "a=2"])
    with pytest.raises(UsageError, match=rf"--set a=\{{k: 1, k: 2\}}: line 1: 'k' {TWICE}"):
        overrides(["a={k: 1, k: 2}"])


keys = st.text('ab"\\:{[', max_size=2)
values = st.recursive(
    st.none() | st.booleans() | st.text('ab"\\:{}[]', max_size=4) | st.integers(),
    lambda inner: st.lists(inner, max_size=3) | st.lists(st.tuples(keys, inner), max_size=3).map(tuple),
    max_leaves=12,
)


def as_json(value: object) -> str:
    """A tuple of pairs as an object, its keys as they are."""
    if isinstance(value, tuple):
        return "{" + ",\n".join(f"{json.dumps(key)}: {as_json(one)}" for key, one in value) + "}"
    return "[" + ", ".join(map(as_json, value)) + "]" if isinstance(value, list) else json.dumps(value)


def has_twins(value: object) -> bool:
    if isinstance(value, tuple):
        return len({key for key, _ in value}) < len(value) or any(has_twins(one) for _, one in value)
    return isinstance(value, list) and any(map(has_twins, value))


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(values)
def test_json_is_read_as_it_stands_or_refused_for_a_twin(tmp_path: Path, value: object) -> None:
    file = tmp_path / "x.json"
    file.write_text(as_json(value))
    if has_twins(value):
        with pytest.raises(UsageError, match=TWICE):
            read_json(file)
    else:
        assert read_json(file) == json.loads(file.read_text())


def test_what_the_caller_gave_stays_as_it_was() -> None:
    given = {"model.backbone_args": {"depth": 2, "patch_size": 8}, "model.backbone_args.patch_size": 16}
    assert mcc_experiment("tiny", given).model.backbone_args["patch_size"] == 16
    assert given["model.backbone_args"] == {"depth": 2, "patch_size": 8}
