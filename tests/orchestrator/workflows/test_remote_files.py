"""Files of the submitting machine are sent to a storage that the nodes share, or refused in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from pydantic import BaseModel

from mcc_core.config import Strict
from mcc_core.errors import UsageError
from mcc_core.files import file_digest
from mcc_core.methods.registry import FROZEN, METHODS
from mcc_core.refinement.base import Refinement
from orchestrator.settings import Settings
from orchestrator.spec.stages_file import REFINE
from orchestrator.storage.store import Storage
from orchestrator.workflows.remote_files import FILES, with_sent_files


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with files to send."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    for name in ("net.pt", "w.safetensors", "words.yaml", "other.pt"):
        (folder / name).write_bytes(name.encode())
    return folder


def sweep(**fields: Any) -> Path:
    file = Path("s.yaml")
    file.write_text(yaml.safe_dump({"name": "s"} | fields))
    return file


def staged(**stages: Any) -> Path:
    return sweep(stages=stages)


def test_files_of_options_stages_refinements_and_bases_are_sent_once(settings: Settings, here: Path) -> None:
    storage = Storage(settings.storage)
    Path("own.yaml").write_text("model: {weights: other.pt}\n")
    file = staged(
        seeds={"base": "own.yaml", "set": {"clip.prompts": "words.yaml", "model.weights": "nowhere.pt"}},
        walk={"of": "seeds", "refine": {"kind": "irn", "irn": {"network": "net.pt"}}},
        more={"base": "own.yaml", "set": {"clip.prompts": "voc"}},
    )

    def place(name: str) -> str:
        return f"{Path(settings.storage).resolve()}/files/{file_digest(here / name)}/{name}"

    for _ in range(2):
        told = with_sent_files(file, ["loss.mcc=0", f"seeds.clip.weights={here / 'w.safetensors'}"], storage)
        assert set(told) == {
            "loss.mcc=0",
            f"seeds.clip.weights={place('w.safetensors')}",
            f"seeds.clip.prompts={place('words.yaml')}",
            f"walk.refine.irn.network={place('net.pt')}",
            f"more.model.weights={place('other.pt')}",
        }
        assert Path(place("net.pt")).read_bytes() == b"net.pt"
    Path(place("net.pt")).write_bytes(b"half")  # of an upload that was cut off
    assert with_sent_files(file, ["model.weights=timm"], storage)[0] == "model.weights=timm"
    assert Path(place("net.pt")).read_bytes() == b"net.pt"


def test_what_the_cluster_could_not_read_is_one_line(
    settings_of_each_kind: Settings, here: Path, tmp_path: Path
) -> None:
    storage = Storage(settings_of_each_kind.storage)
    if storage.local("") is None:
        with pytest.raises(
            UsageError, match=r"model.weights: w.safetensors: a file of this machine, .* bucket"
        ) as error:
            with_sent_files(sweep(base="tiny"), ["model.weights=w.safetensors"], storage)
        assert "\n" not in str(error.value)
        own = f"model.weights={here / 'w.safetensors'}"  # perhaps the cluster has it too
        assert with_sent_files(sweep(base="tiny"), [own], storage) == [own]
    Path("of_a_point.yaml").write_text("model: {weights: net.pt}\n")
    for fields, where in (
        ({"points": [{"name": "p", "set": {"model.weights": "net.pt"}}]}, r"points\[0\].set.model.weights"),
        ({"points": [{"name": "p", "set": {"labels.source": "net.pt"}}]}, r"points\[0\].set.labels.source"),
        ({"points": [{"name": "p", "base": "of_a_point.yaml"}]}, r"points\[0\].base: model.weights"),
        ({"parameters": {"model.weights": ["random", "net.pt"]}}, "parameters.model.weights"),
    ):
        with pytest.raises(UsageError, match=rf"s.yaml: {where}: net.pt: a file of this machine"):
            with_sent_files(sweep(base="tiny", **fields), [], storage)
        with pytest.raises(UsageError, match=rf"s.yaml: stages.a.{where}: net.pt: a file of this machine"):
            with_sent_files(staged(a={"base": "tiny"} | fields), [], storage)


def test_a_whole_path_that_varies_must_lie_where_the_nodes_look(
    settings_of_each_kind: Settings, here: Path, tmp_path: Path
) -> None:
    storage = Storage(settings_of_each_kind.storage)
    own = sweep(base="tiny", parameters={"model.weights": ["random", str(here / "net.pt")]})
    if storage.local("") is None:  # perhaps the cluster has it too
        assert with_sent_files(own, [], storage) == []
        return
    with pytest.raises(UsageError, match=r"s.yaml: parameters.model.weights: /.*net.pt: .* shared storage"):
        with_sent_files(own, [], storage)
    storage.write("nets/net.pt", b"net.pt")
    kept = str(Path(settings_of_each_kind.storage) / "nets/net.pt")
    assert with_sent_files(sweep(base="tiny", parameters={"model.weights": ["random", kept]}), [], storage) == []


def test_files_of_the_base_that_is_asked_for_are_sent(settings: Settings, here: Path) -> None:
    """And not those of the sweep's own base."""
    storage = Storage(settings.storage)
    Path("own.yaml").write_text("model: {weights: other.pt}\n")
    Path("asked.yaml").write_text("model: {weights: net.pt}\n")
    file = sweep(base="own.yaml", bases={"asked.yaml": {"set": {"clip.weights": "w.safetensors"}, "points": None}})

    def sent(base: str | None) -> set[str]:
        return {Path(change.split("=")[1]).name for change in with_sent_files(file, [], storage, base)}

    assert sent(None) == {"other.pt"} and sent("tiny") == set() and sent("asked.yaml") == {"net.pt", "w.safetensors"}


def paths(model: type[BaseModel], before: str = "") -> set[str]:
    """Dotted fields that may hold a path."""
    found = set()
    for name, field in model.model_fields.items():
        kinds = (field.annotation, *get_args(field.annotation))
        if Path in kinds:
            found.add(f"{before}{name}")
        for kind in kinds:
            if isinstance(kind, type) and issubclass(kind, Strict):
                found |= paths(kind, f"{before}{name}.")
    return found


def test_no_field_that_names_a_file_is_forgotten() -> None:
    known = {field for method in (METHODS | FROZEN).values() for field in paths(method.experiment)}
    known |= {f"{REFINE}.{field}" for field in paths(Refinement)}
    assert known - {"data.root", "labels.source"} == {field for field in FILES if not field.startswith("clip.")}
