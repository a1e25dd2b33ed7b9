"""What a trial's machine is doing, as metrics under the name of its node."""

from __future__ import annotations

import math

from orchestrator.worker.machine import MachineWatch


def test_it_measures_now_and_then_and_always_at_the_end() -> None:
    watch = MachineWatch(every_s=3600)
    assert watch.measured() == {}
    found = watch.measured(last=True)
    names = {name.removeprefix(f"system/{watch.node}/") for name in found}
    assert {"cpu_utilization_percentage", "system_memory_usage_megabytes"} <= names
    assert all(name.startswith(f"system/{watch.node}/") for name in found)
    assert all(math.isfinite(value) and value >= 0 for value in found.values())
    assert MachineWatch(every_s=0).measured().keys() == found.keys()
