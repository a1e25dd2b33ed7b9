"""What the machine of a trial's first worker is doing while it trains, as metrics `system/<node>/...`.

MLflow shows names that begin with `system/` on a page of their own. They go the way of every metric, through the event
log, so that no worker ever waits for MLflow; and they are taken with a step, so that a trial that hangs stays silent.
"""

from __future__ import annotations

import re
import socket
import time
from contextlib import suppress

import psutil
import torch

EVERY_S = 10.0
_MB = 1e6


class MachineWatch:
    """Measures at most every few seconds, when it is asked."""

    def __init__(self, every_s: float = EVERY_S) -> None:
        self.every_s = every_s
        self.node = re.sub(r"[^\w.-]", "_", socket.gethostname())
        self._last = time.monotonic()
        self._net = psutil.net_io_counters()
        psutil.cpu_percent()  # counts from here

    def measured(self, *, last: bool = False) -> dict[str, float]:
        """Metrics since it was asked before; nothing where that was just now, unless this is the last time."""
        now = time.monotonic()
        if not last and now - self._last < self.every_s:
            return {}
        self._last = now
        memory, net = psutil.virtual_memory(), psutil.net_io_counters()
        values = {
            "cpu_utilization_percentage": psutil.cpu_percent(),
            "system_memory_usage_megabytes": memory.used / _MB,
            "system_memory_usage_percentage": memory.percent,
        }
        if net is not None and self._net is not None:  # a container may have none
            values["network_receive_megabytes"] = (net.bytes_recv - self._net.bytes_recv) / _MB
            values["network_transmit_megabytes"] = (net.bytes_sent - self._net.bytes_sent) / _MB
        if torch.cuda.is_initialized():
            free, total = torch.cuda.mem_get_info()
            values["gpu_0_memory_usage_megabytes"] = (total - free) / _MB
            values["gpu_0_memory_usage_percentage"] = 100 * (total - free) / total
            with suppress(ModuleNotFoundError, RuntimeError):  # needs nvidia-ml-py
                values["gpu_0_utilization_percentage"] = float(torch.cuda.utilization())
        return {f"system/{self.node}/{name}": float(value) for name, value in values.items()}
