"""A GPU is waited for at most twice in a step, and not for each image, term or parameter elsewhere."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from last_step import PRESETS, LastStep
from operations import operations_of
from trained import SMALLEST, smallest
from waits import DEVICE, counted

from mcc_core.data.index import build_index
from mcc_core.device import fetched, moved
from mcc_core.evaluation.in_training import evaluate
from mcc_core.evaluation.protocols import network_config, network_maps, supported
from mcc_core.methods.base import Step
from mcc_core.methods.registry import method_of, network_of
from mcc_core.training.running_means import RunningMeans


@pytest.mark.parametrize("preset", PRESETS)
def test_a_step_waits_at_most_twice(preset: str) -> None:
    case = LastStep(preset, DEVICE)
    with counted() as waits:
        step = case.run()
    assert set(step.terms) == case.terms
    assert waits.waits.total() <= 2 and set(waits.waits) <= {"unique_consecutive"}
    assert waits.copies <= 14


@pytest.mark.parametrize("preset", PRESETS)
def test_a_step_makes_no_tensor_of_numbers(preset: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mcc_core.pseudo_labels.par.PIECEWISE", set())
    monkeypatch.setattr("mcc_core.pseudo_labels.labels.PIECEWISE", set())
    case = LastStep(preset, torch.device("cpu"))
    case.run()  # constants are made once
    assert operations_of(case.run).constants == 0
    assert operations_of(lambda: torch.tensor([1.0, 2.0])).constants == 1


@pytest.mark.parametrize(
    "name", [name if name in ("mcc", "irn") else pytest.param(name, marks=pytest.mark.slow) for name in SMALLEST]
)
def test_evaluation_waits_for_no_image(name: str, tmp_path: Path) -> None:
    experiment = smallest(name, **{"data.shapes_val": 4, "train.eval_batch": 1, "data.shapes_size": 48})
    index = build_index(experiment.data, tmp_path)
    network = network_of(experiment, len(index.classes)).to(DEVICE)
    found = []
    for images in (1, 2):
        with counted() as waits:
            evaluate(network, index, experiment, DEVICE, 1, images=images)
        found.append(waits.waits)
    assert found[0] == found[1] and set(found[1]) <= {"to the host"} and found[1].total() <= 6


@pytest.mark.parametrize("name", SMALLEST)
def test_maps_of_an_image_are_fetched_together(name: str) -> None:
    experiment = smallest(name)
    method = method_of(experiment)
    config = network_config([method.evaluation(experiment, 6)])
    network = network_of(experiment, 6).eval().to(DEVICE)
    image = np.zeros((70, 90, 3), np.uint8)
    with counted() as waits:
        maps = network_maps(network, image, [1, 2], supported(method.map_stages), config, DEVICE)
    assert not waits.waits and maps.single is not None and maps.single.device.type == "cpu"


def test_a_record_waits_once() -> None:
    means = RunningMeans()
    with counted() as waits:
        for _ in range(3):
            terms = {name: torch.empty((), device=DEVICE) for name in ("one", "two", "three")}
            means.add(Step(torch.empty((), device=DEVICE), terms, 4), {"lr": 0.1, "weight/one": 1.0})
        assert not waits.waits
        record = means.close(DEVICE, 1)
    assert waits.waits == {"to the host": 1} and record["lr"] == pytest.approx(0.1)


def test_what_would_be_waited_for_is_counted() -> None:
    there = torch.empty(8, device=DEVICE)
    with counted() as waits:
        with pytest.raises(NotImplementedError):
            there[there > 0]
        there[torch.arange(3)]
        float(there.sum())
        there.cpu()
        torch.ones(3).to(DEVICE)
        moved(torch.ones(3), DEVICE), fetched([there])
    assert (
        waits.waits
        == {
            "to the device": 1,
            "index from the host": 1,
            "_local_scalar_dense": 1,
            "to the host": 1,
        }
        and waits.copies == 2
    )
