"""Feeding MLflow in the background of a sweep; what fails is tried again."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping

from orchestrator.records.leases import feeding
from orchestrator.records.plans import PlanRecord
from orchestrator.redaction import redact
from orchestrator.settings import Settings
from orchestrator.storage.store import Storage
from orchestrator.tracking.sync import Tracker

_SETTLE_S = 20.0  # between looks for runs whose process died


class BackgroundSync:
    """Feeds MLflow from a thread, and goes on trying when it is away. `problem` says why it waits, `complaints` which
    trials it cannot show."""

    def __init__(self, settings: Settings, document: PlanRecord, every_s: float = 2.0) -> None:
        self.settings, self.document, self.every_s = settings, document, every_s
        self.problem: str | None = None
        self.complaints: list[str] = []
        self._tracker: Tracker | None = None
        self._lease = feeding(Storage(settings.storage), document["sweep"])
        self._settled = 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="tracking", daemon=True)

    def __enter__(self) -> BackgroundSync:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(timeout=15)
        self._lease.release()

    def finish(self, patience_s: float = 60.0, files: Mapping[str, bytes] | None = None) -> bool:
        """Forward the rest and end the runs; False when MLflow did not answer in time (nothing is lost).

        Args:
            files: of the whole sweep, as `summary` gives them, where they are known.
        """
        end = time.monotonic() + patience_s
        self._stop.set()
        self._thread.join(timeout=patience_s)
        if self._thread.is_alive():
            return False
        while not self._attempt(last=True, files=files):
            if time.monotonic() > end:
                return False
            time.sleep(self.every_s)
        return True

    def _loop(self) -> None:
        while not self._stop.is_set():
            self._attempt(last=False)
            self._stop.wait(self.every_s)

    def _attempt(self, *, last: bool, files: Mapping[str, bytes] | None = None) -> bool:
        try:
            self._lease.refresh()
            if self._tracker is None:
                self._tracker = Tracker(self.settings, self.document)
            self._tracker.sync()
            if last:
                self._tracker.finish(files)
            elif time.monotonic() - self._settled > _SETTLE_S:
                self._tracker.settle()
                self._settled = time.monotonic()
        except Exception as error:  # MLflow, its database, its network, storage: all of it only delays the view
            self.problem = redact(f"{type(error).__name__}: {' '.join(str(error).split())[:200]}")
            self._tracker = None  # what it had not sent yet is read again from storage
            return False
        self.problem, self.complaints = None, self._tracker.complaints
        return True
