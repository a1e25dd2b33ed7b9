"""Plans of trials that learn from label sets: their identities, and what their names say of full supervision."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from staged import staged_plan
from tiny import settings_in
from trained import SMALLEST, smallest

from mcc_core.data.index import build_index
from mcc_core.data.label_maps import LabelSetWriter
from mcc_core.data.make_labels import label_set_of_masks
from mcc_core.errors import UsageError
from orchestrator.planning import identity as identities
from orchestrator.planning.plan import Plan, plan_document, plan_sweep
from orchestrator.records.plans import supervision
from orchestrator.settings import Settings
from orchestrator.spec.sweep_file import SweepFile

Write = Callable[..., Path]


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    return settings_in(tmp_path_factory.mktemp("plan"))


@pytest.fixture
def write(settings: Settings, tmp_path: Path) -> Write:
    """A function that writes a weak label set of the training images, all of one class, into a folder."""

    def make(name: str, label: int = 1, identity: str | None = None) -> Path:
        index = build_index(smallest("segmentation").data, settings.home)
        with LabelSetWriter(tmp_path / name, index.classes, identity=identity) as writer:
            for item in index.train:
                writer.add(item.name, np.full((48, 48), label, np.uint8))
        return tmp_path / name

    return make


def plan(settings: Settings, *, estimate: bool = False, **fields: Any) -> Plan:
    preset, small = SMALLEST["segmentation"]
    sweep = {"name": "s", "base": preset, **fields, "set": small | fields.get("set", {})}
    return plan_sweep(SweepFile.model_validate(sweep), "s.yaml", None, None, None, settings, estimate=estimate)


def identity(settings: Settings, source: Path | str) -> str:
    (trial,) = plan(settings, set={"labels.source": str(source)}).trials
    return trial.identity


def test_identity_is_of_the_set_and_not_of_its_place(settings: Settings, write: Write, tmp_path: Path) -> None:
    first = identity(settings, write("one"))
    assert identity(settings, write("copy")) == first != identity(settings, write("other", label=2))
    (trial,) = plan(settings, set={"labels.source": str(tmp_path / "one")}).trials
    key = str(trial.experiment.labels.source)  # type: ignore[attr-defined]
    assert key.startswith("labels/")
    shutil.rmtree(tmp_path / "one")
    assert identity(settings, key) == first


def test_a_stage_names_its_set_before_it_is_there(settings: Settings, write: Write) -> None:
    with pytest.raises(UsageError, match=r"labels\.source: labels/00112233445566aa: no such folder, and no label set"):
        identity(settings, "labels/00112233445566aa")
    made = identity(settings, write("staged", identity="00112233445566aa"))
    assert identity(settings, "labels/00112233445566aa") == made
    with pytest.raises(UsageError, match="says that it is 00112233445566aa, which was known with other maps"):
        identity(settings, write("changed", label=3, identity="00112233445566aa"))


def test_every_name_says_full_supervision(settings: Settings, write: Write, tmp_path: Path) -> None:
    weak = str(write("weak"))
    full, _ = label_set_of_masks(build_index(smallest("segmentation").data, settings.home), tmp_path / "full")
    bound = {"labels.source": str(full.path), "labels.supervision": "full"}
    points = [{"name": "upper", "set": bound}, {"name": "ours", "set": {"labels.source": weak}}]
    made = plan(settings, points=points, seeds=[0, 1], baseline="upper")
    assert [t.name for t in made.trials] == [
        *("upper (full supervision) s0", "upper (full supervision) s1", "ours s0", "ours s1")
    ]
    assert made.file.baseline == "upper (full supervision)"
    recorded = plan_document(made, [], None)["trials"]
    assert [supervision(trial) for trial in recorded] == ["full", "full", "weak", "weak"]


def test_its_time_is_measured_on_its_label_maps(settings: Settings, write: Write) -> None:
    made = plan(settings, estimate=True, set={"labels.source": str(write("one"))})
    assert made.estimate is not None and "measured" in made.estimate.source


def test_what_its_evaluation_lacks_is_no_metric(settings: Settings, write: Write) -> None:
    fields = {"labels.source": str(write("one"))}
    assert plan(settings, metric="val/seg/single/miou", set=fields).trials
    with pytest.raises(UsageError, match="evaluation records no such metric"):
        plan(settings, metric="val/cam/ms/miou", set=fields)


def test_labels_are_made_anew_when_networks_are_asked_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    before, code = identities.refinement_source(), identities._code
    monkeypatch.setattr(identities, "_code", lambda text: code(text.replace("def padded", "def padded_otherwise")))
    assert identities.refinement_source() != before  # the function is of evaluation/protocols.py


def test_labels_of_networks_that_saw_masks_must_be_asked_for(settings: Settings, tmp_path: Path) -> None:
    label_set_of_masks(build_index(smallest("segmentation").data, settings.home), tmp_path / "masks")
    taught = {"labels.source": str(tmp_path / "masks"), "labels.supervision": "full"}
    (base, small), (other, more) = SMALLEST["amn"], SMALLEST["segmentation"]
    seeds: dict[str, Any] = {"base": base, "set": small | taught}
    last: dict[str, Any] = {"base": other, "set": dict(more)}
    with pytest.raises(UsageError, match=r"stages\.last: labels\.supervision: weak: .* saw masks .*; expected full"):
        staged_plan(settings, seeds=seeds, last=last | {"of": "refine"})
    last["set"] |= {"labels.supervision": "full"}
    made = staged_plan(settings, seeds=seeds, last=last | {"of": "refine"})
    assert all("(full supervision)" in trial.name for trial in made.trials)
    with pytest.raises(UsageError, match=r"labels\.supervision: full: .* saw no masks; expected weak"):
        staged_plan(settings, last=last | {"of": "refine"})
