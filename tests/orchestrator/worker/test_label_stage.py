"""A trial that makes labels, in this process: what it stores, from a network and from labels, in both storages."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_clip import SIZES
from trained import smallest

from mcc_core import checkpoint as checkpoints
from mcc_core.checkpoint import Checkpoint
from mcc_core.config import Experiment
from mcc_core.data.index import DataIndex, build_index
from mcc_core.data.label_maps import read_label_set
from mcc_core.errors import MCCError, UsageError
from mcc_core.files import file_digest
from mcc_core.methods.registry import experiment_of, random_network
from mcc_core.training.engine import Outcome
from orchestrator.records.checkpoints import CheckpointRecord
from orchestrator.records.events import history
from orchestrator.records.speeds import past_speeds, refinement_profile
from orchestrator.settings import Settings
from orchestrator.storage.outbox import Outbox
from orchestrator.storage.store import Storage
from orchestrator.worker.assignment import Assignment
from orchestrator.worker.label_stage import fetched_labels, make_labels
from orchestrator.worker.reporter import Reporter, Resume

EXPERIMENT = smallest("mcc")
NETWORK, FIRST, SECOND = "a" * 16, "b" * 16, "c" * 16


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> DataIndex:
    return build_index(EXPERIMENT.data, tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def trained(index: DataIndex, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    network = random_network(EXPERIMENT, len(index.classes))
    file = tmp_path_factory.mktemp("network") / "made.pt"
    checkpoints.save(Checkpoint(EXPERIMENT, index.classes, 6, 0, network.state_dict(), None, {}), file)
    return file


class Place:
    """Storage with a network's checkpoint, and a machine that makes labels."""

    def __init__(self, settings: Settings, index: DataIndex, trained: Path, folder: Path) -> None:
        self.storage, self.index, self.folder, self.home = Storage(settings.storage), index, folder, settings.home
        self.keep(NETWORK, trained)

    def keep(self, identity: str, file: Path) -> None:
        saved = CheckpointRecord(6, file.stat().st_size, file_digest(file))
        self.storage.upload(file, saved.key(identity))
        self.storage.write(f"{saved.key(identity)}.json", json.dumps(asdict(saved)).encode())

    def make(
        self,
        identity: str,
        of: str | None,
        *,
        stop: bool = False,
        network: str | None = None,
        experiment: Experiment = EXPERIMENT,
        **refine: Any,
    ) -> Outcome:
        fields: dict[str, Any] = {"identity": identity, "name": "refine", "seed": 0, "metric": "", "mode": "max"}
        fields |= {"experiment": experiment.model_dump(mode="json"), "fingerprint": self.index.fingerprint}
        fields |= {"storage": self.storage.url, "home": str(self.home), "stop_key": "s", "launch": "L"}
        fields |= {"cpus_per_worker": 1, "gpus_per_worker": 0, "input": of, "refine": refine, "network": network}
        task = Assignment(**fields)
        work = self.folder / identity / "rank0"
        work.mkdir(parents=True, exist_ok=True)
        outbox = Outbox(self.storage, self.folder / f"{identity}-outbox")
        try:
            reporter = Reporter(task, experiment, outbox, Resume(1, 0, None, []), [], to_ray=False)
            cpu = torch.device("cpu")
            outcome = make_labels(task, self.storage, self.index, reporter, work, cpu, lambda: stop)
            reporter.end(outcome)
            reporter.log.close()
        finally:
            outbox.close(10)
        return outcome


@pytest.fixture
def place(settings: Settings, index: DataIndex, trained: Path, tmp_path: Path) -> Place:
    return Place(settings, index, trained, tmp_path)


def test_labels_of_a_network_are_stored_scored_and_taken_by_the_next_stage(
    settings_of_each_kind: Settings, index: DataIndex, trained: Path, tmp_path: Path
) -> None:
    place = Place(settings_of_each_kind, index, trained, tmp_path)
    outcome = place.make(FIRST, NETWORK, kind="none", threshold=0.3)
    assert (outcome.status, outcome.iteration) == ("finished", len(index.train) + len(index.val))
    file = fetched_labels(place.storage, FIRST, tmp_path)
    assert file is not None
    labels = read_label_set(file)
    assert labels.identity == FIRST and labels.supervision == "weak" and labels.origin["network"] == NETWORK
    assert {item.name for item in index.train} <= set(labels.names)
    for key in ("train/pseudo_label/ms/miou", "val/pseudo_label/ms/coverage", "val/cam/ms/miou", "train/cam/ms/miou"):
        assert 0 <= outcome.metrics[key] <= 1
    assert outcome.metrics["train/pseudo_label/ms/miou"] == outcome.metrics["train/cam/ms/miou"]  # nothing was refined

    place.make(SECOND, FIRST, kind="par", par={"iterations": 1}, confidence=0.2)
    second = fetched_labels(place.storage, SECOND, tmp_path)
    assert second is not None and read_label_set(second).origin["labels"] == FIRST
    kinds = [event["kind"] for event in history(place.storage, SECOND)]
    assert kinds[0] == "start" and kinds[-1] == "end"
    profile = refinement_profile(EXPERIMENT, {"kind": "none", "threshold": 0.3}, 1.0, 0)
    assert len(past_speeds(place.storage, profile)) == 1


def test_a_refinement_brings_the_network_of_another_trial_along(
    settings_of_each_kind: Settings, index: DataIndex, trained: Path, tmp_path: Path
) -> None:
    place, other = Place(settings_of_each_kind, index, trained, tmp_path), "e" * 16
    walk: dict[str, Any] = {"kind": "irn", "irn": {"log_steps": 2}}
    with pytest.raises(MCCError, match=f"refine: no checkpoint of {other}, whose network it brings along: storage has"):
        place.make("f" * 16, NETWORK, network=other, **walk)
    experiment, file = smallest("irn"), tmp_path / "boundaries.pt"
    state = random_network(experiment, len(index.classes)).state_dict()
    checkpoints.save(Checkpoint(experiment, index.classes, 6, 0, state, None, {}), file)
    place.keep(other, file)  # of the same iteration as the seeds' network
    place.make(FIRST, NETWORK, network=other, **walk)
    made = fetched_labels(place.storage, FIRST, tmp_path)
    assert made is not None
    origin = read_label_set(made).origin
    assert origin["network"] == NETWORK and origin["refine"]["irn"]["network"] == file_digest(file)


def test_labels_of_a_frozen_clip_need_no_input(place: Place) -> None:
    clip = {"model_args": SIZES, "weights": "random", "attention_blocks": 2, "prompts": "default"}
    experiment = experiment_of({"method": "clip_es", "data": EXPERIMENT.data.model_dump(), "clip": clip}, "test")
    outcome = place.make(FIRST, None, experiment=experiment, kind="none", confidence=0.2)
    made = fetched_labels(place.storage, FIRST, place.folder)
    assert made is not None
    labels = read_label_set(made)
    assert (labels.identity, labels.supervision) == (FIRST, "weak") and labels.origin["clip"]["weights"] == "random"
    assert {"val/cam/ms/miou", "train/pseudo_label/ms/miou"} <= outcome.metrics.keys()
    place.make(SECOND, FIRST, kind="par", par={"iterations": 1})
    assert fetched_labels(place.storage, SECOND, place.folder) is not None


def test_the_same_maps_are_asked_of_the_network_once(place: Place) -> None:
    place.make(FIRST, NETWORK, kind="none")
    kept = {file: file.stat().st_mtime_ns for file in (place.home / "maps").rglob("*.npz")}
    assert len(kept) == len(place.index.train) + len(place.index.val)
    place.make(SECOND, NETWORK, kind="par")
    assert {file: file.stat().st_mtime_ns for file in (place.home / "maps").rglob("*.npz")} == kept


def test_a_stop_stores_no_labels(place: Place) -> None:
    assert place.make(FIRST, NETWORK, stop=True, kind="none").status == "stopped"
    assert fetched_labels(place.storage, FIRST, place.folder) is None
    assert history(place.storage, FIRST)[-1]["status"] == "stopped"


def test_an_input_without_a_product_is_named(place: Place) -> None:
    with pytest.raises(MCCError, match=f"refine: no checkpoint of its input {'d' * 16}: storage has none"):
        place.make(FIRST, "d" * 16, kind="none")


def test_a_refinement_that_its_input_cannot_have_is_a_users_mistake(place: Place) -> None:
    place.make(FIRST, NETWORK, kind="none")
    with pytest.raises(UsageError, match="random_walk: needs a network's attention"):
        place.make(SECOND, FIRST, kind="random_walk")
