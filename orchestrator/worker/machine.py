"""What the machine of a trial's first worker is doing while it trains, as metrics `system/<node>/...`.

MLflow shows names that begin with `system/` on a page of their own. They go the way of every metric, through the event
log, so that no worker ever waits for MLflow.
"""

from __future__ import annotations

import re
import socket
import threading
from collections.abc import Callable
from contextlib import suppress

import psutil
import torch

EVERY_S = 10.0
_MB = 1e6


class MachineWatch:
    """Measures in a thread, every few seconds and once at the end. `tell` gets the metrics."""

    def __init__(self, tell: Callable[[dict[str, float]], None], every_s: float = EVERY_S) -> None:
        self.tell, self.every_s = tell, every_s
        self.node = re.sub(r"[^\w.-]", "_", socket.gethostname())
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="machine", daemon=True)

    def start(self) -> None:
        """Begin."""
        psutil.cpu_percent()  # counts from here
        self._net = psutil.net_io_counters()
        self._thread.start()

    def close(self) -> None:
        """Measure for the last time, unless it is closed or was never begun."""
        if self._over.is_set() or self._thread.ident is None:
            return
        self._over.set()
        self._thread.join()
        self.tell(self._measured())

    def _watch(self) -> None:
        while not self._over.wait(self.every_s):
            self.tell(self._measured())

    def _measured(self) -> dict[str, float]:
        memory, net = psutil.virtual_memory(), psutil.net_io_counters()
        found = {
            "cpu_utilization_percentage": psutil.cpu_percent(),
            "system_memory_usage_megabytes": memory.used / _MB,
            "system_memory_usage_percentage": memory.percent,
        }
        if net is not None and self._net is not None:  # a container may have none
            found["network_receive_megabytes"] = (net.bytes_recv - self._net.bytes_recv) / _MB
            found["network_transmit_megabytes"] = (net.bytes_sent - self._net.bytes_sent) / _MB
        if torch.cuda.is_initialized():
            free, total = torch.cuda.mem_get_info()
            found["gpu_0_memory_usage_megabytes"] = (total - free) / _MB
            found["gpu_0_memory_usage_percentage"] = 100 * (total - free) / total
            with suppress(ModuleNotFoundError, RuntimeError):  # needs nvidia-ml-py
                found["gpu_0_utilization_percentage"] = float(torch.cuda.utilization())
        return {f"system/{self.node}/{name}": float(value) for name, value in found.items()}
