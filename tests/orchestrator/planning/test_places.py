"""What each worker gets of a machine: CPUs for its loader processes, a GPU of its own, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
from tiny import settings_in, tiny_sweep

from mcc_core.errors import UsageError
from orchestrator.cluster.session import Capacity
from orchestrator.planning.configurations import Trial
from orchestrator.planning.places import places
from orchestrator.planning.plan import plan_sweep
from orchestrator.settings import Settings


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    return settings_in(tmp_path_factory.mktemp("places"))


def trials(settings: Settings, changes: dict[str, Any]) -> tuple[Trial, ...]:
    on_cpus: dict[str, Any] = {"resources": {"gpus_per_worker": 0, "cpus_per_worker": 0.1}}
    return plan_sweep(tiny_sweep(set=changes, **on_cpus), "s.yaml", settings=settings, estimate=False).trials


@pytest.mark.parametrize(
    ("capacity", "fields", "expected"),
    [
        (Capacity(64, 8), {"train.loader_workers": 4}, (8, 5, 1)),
        (Capacity(16, 8), {"train.loader_workers": 4}, (8, 2, 1)),  # no GPU is left without
        (Capacity(4, 8), {"train.loader_workers": 4}, (4, 1, 1)),
        (Capacity(64, 8), {"train.loader_workers": 4, "train.workers": 4}, (2, 5, 1)),
        (Capacity(16, 2, ((12, 1), (4, 1))), {"train.loader_workers": 4}, (2, 4, 1)),
        (Capacity(16, 0), {"train.loader_workers": 4}, (3, 5, 0)),
        (Capacity(2, 0), {"train.loader_workers": 4}, (1, 2, 0)),
        (Capacity(2, 0), {}, (2, 1, 0)),
        (Capacity(16, 0), {"train.loader_workers": 4, "max_concurrent": 8}, (8, 2, 0)),
        (Capacity(16, 2), {"train.loader_workers": 4, "cpus_per_worker": 1}, (2, 1, 1)),
        (Capacity(16, 1), {"train.loader_workers": 4, "gpus_per_worker": 0.5}, (2, 5, 0.5)),
        (None, {"train.loader_workers": 4}, (9, 5, 0)),
    ],
)
def test_reserved_cpus_follow_the_loader_processes(
    settings: Settings, capacity: Capacity | None, fields: dict[str, Any], expected: tuple[int, float, float]
) -> None:
    train = {key: value for key, value in fields.items() if key.startswith("train.")}
    resources = {key: value for key, value in fields.items() if key not in train}
    file = tiny_sweep(set=train, resources=resources)
    trial = trials(settings, train)[0]
    found = places(file, "s.yaml", [trial] * 9, capacity)
    assert (found.at_a_time, found.cpus, found.gpus) == expected


def test_workers_that_would_share_a_gpu_are_refused(settings: Settings) -> None:
    planned = trials(settings, {"train.workers": 2})
    with pytest.raises(UsageError, match=r"^s.yaml: train.workers: 2 workers need 2 GPUs and 1 are there; use one"):
        places(tiny_sweep(set={"train.workers": 2}), "s.yaml", planned, Capacity(8, 1))
    on_cpus = tiny_sweep(set={"train.workers": 2}, resources={"gpus_per_worker": 0})
    assert places(on_cpus, "s.yaml", planned, Capacity(8, 1)).gpus == 0


def test_where_colours_are_computed_is_questioned_where_it_does_not_suit_the_machine(settings: Settings) -> None:
    file = tiny_sweep()
    loader = trials(settings, {})
    device = trials(settings, {"compute.augmentation": "device"})
    assert loader[0].identity != device[0].identity
    assert places(file, "s.yaml", loader, Capacity(8, 0)).notes == ()
    assert places(file, "s.yaml", device, Capacity(8, 1)).notes == ()
    assert "device computes their colours on the GPU" in places(file, "s.yaml", loader, Capacity(8, 1)).notes[0]
    assert "without a GPU, loader takes less time" in places(file, "s.yaml", device, Capacity(8, 0)).notes[0]
