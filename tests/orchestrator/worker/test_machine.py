"""What a trial's machine is doing, as metrics under the name of its node."""

from __future__ import annotations

import math
import time

from orchestrator.worker.machine import MachineWatch


def test_it_measures_every_few_seconds_and_once_at_the_end() -> None:
    told: list[dict[str, float]] = []
    watch = MachineWatch(told.append, every_s=0.05)
    watch.close()  # never begun
    assert told == []
    watch.start()
    deadline = time.monotonic() + 30
    while len(told) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    watch.close()
    count = len(told)
    watch.close()
    time.sleep(0.2)
    assert len(told) == count >= 3
    names = {name.removeprefix(f"system/{watch.node}/") for name in told[-1]}
    assert {"cpu_utilization_percentage", "system_memory_usage_megabytes"} <= names
    assert all(name.startswith(f"system/{watch.node}/") for name in told[-1])
    assert all(math.isfinite(value) and value >= 0 for metrics in told for value in metrics.values())
