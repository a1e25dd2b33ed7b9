"""A sweep in a folder of its own that can be run, hurt and held against another: the tools of `benchmarks/chaos.py`."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

ITERATIONS, LOG_EVERY, EVAL_EVERY = 600, 5, 50
TIMED = "images_per_second"


@dataclass
class Verdict:
    """One row of the table."""

    fault: str
    lost: str
    recovery_s: float
    since: str
    complete: bool
    equal: bool | None  # None: there is no final model
    notes: list[str] = field(default_factory=list)


class Lab:
    """A folder with a sweep in it, the processes that run it, and what they wrote."""

    def __init__(self, folder: Path, **environment: str) -> None:
        from tiny import TINY

        self.folder = folder
        self.home = Path(environment.get("MCC_HOME", folder / "home"))
        quiet = {"OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0", "MLFLOW_DISABLE_TELEMETRY": "true"}
        self.environment = os.environ | quiet | {"MCC_HOME": str(self.home)} | environment
        self.output = folder / "output.txt"
        self.fields: dict[str, Any] = {
            "name": "chaos",
            "base": "tiny",
            "set": TINY
            | {"train.iterations": ITERATIONS, "train.log_every": LOG_EVERY, "train.eval_every": EVAL_EVERY},
        }

    def submit(self, *arguments: str) -> subprocess.Popen[bytes]:
        """`mcc sweep submit` as the leader of its own process group."""
        self.folder.mkdir(parents=True, exist_ok=True)
        file = self.folder / "sweep.yaml"
        file.write_text(yaml.safe_dump(self.fields))
        command = [sys.executable, "-c", "from orchestrator.cli import main; main()", "sweep", "submit", str(file)]
        with self.output.open("ab") as output:
            return subprocess.Popen(
                [*command, *arguments],
                env=self.environment,
                cwd=self.folder,
                stdout=output,
                stderr=output,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )

    def finish(self, process: subprocess.Popen[bytes], code: int = 0, timeout: float = 400) -> None:
        """Wait for a submit; any other exit code than `code` fails the scenario."""
        try:
            found = process.wait(timeout)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise RuntimeError(f"did not end in {timeout:g} s:\n{self.tail()}") from None
        if found != code:
            raise RuntimeError(f"exit code {found} instead of {code}:\n{self.tail()}")

    def tail(self) -> str:
        return self.output.read_text(errors="replace")[-3000:]

    @property
    def storage(self) -> Any:
        from orchestrator.storage.store import Storage

        return Storage(self.environment.get("MCC_STORAGE") or str(self.home))

    def trials(self) -> list[str]:
        """Identities of the sweep's trials, in order."""
        from orchestrator.records import sweeps as catalog

        return [t["identity"] for t in catalog.find(self.storage, None).document["trials"]]

    def events(self, trial: int = 0) -> list[dict[str, Any]]:
        """Everything that every attempt wrote; nothing while storage does not answer."""
        from mcc_core.errors import MCCError
        from orchestrator.records.events import EventReader

        try:
            return [e for _, events in EventReader(self.storage, self.trials()[trial]) for e in events]
        except (OSError, MCCError):
            return []

    def until(self, what: Callable[[], Any], process: subprocess.Popen[bytes] | None, timeout: float = 180) -> Any:
        """The first true answer of `what`, asked often while the process runs."""
        deadline = time.monotonic() + timeout
        while not (found := what()):
            if time.monotonic() > deadline or (process is not None and process.poll() is not None):
                if process is not None:
                    process.kill()
                raise RuntimeError(f"waited in vain:\n{self.tail()}")
            time.sleep(0.1)
        return found

    def reached(self, iteration: int, trial: int = 0) -> bool:
        """Whether a checkpoint lies behind and the log is past an iteration."""
        events = self.events(trial)
        steps = [e["iteration"] for e in events if e["kind"] == "metrics"]
        return max(steps, default=0) >= iteration and any(e["kind"] == "checkpoint" for e in events)

    def worker(self, trial: int = 0) -> int:
        """Process id of the newest attempt."""
        return int([e for e in self.events(trial) if e["kind"] == "start"][-1]["info"]["pid"])

    def recovery(self, since: float, trial: int = 0) -> float:
        """Seconds until the first measurement after a moment, by a new attempt if there was one."""
        events = [e for e in self.events(trial) if e["t"] > since]
        starts = [i for i, e in enumerate(events) if e["kind"] == "start"]
        return float(next(e["t"] for e in events[max(starts, default=0) :] if e["kind"] == "metrics") - since)

    def repeated(self, trial: int = 0) -> int:
        """Recorded iterations trained again; the last seconds before a kill were not recorded."""
        seen, again = 0, 0
        for event in self.events(trial):
            if event["kind"] == "start":
                again += max(0, seen - event["iteration"])
            seen = event["iteration"] if event["kind"] == "start" else max(seen, event["iteration"])
        return again

    def curve(self, trial: int = 0) -> list[tuple[int, dict[str, float]]]:
        """Every metrics event of the settled log, without wall-clock figures."""
        from orchestrator.records.events import settled

        events = [e for e in settled(self.events(trial)) if e["kind"] == "metrics"]
        return [(e["iteration"], {k: v for k, v in e["metrics"].items() if k != TIMED}) for e in events]

    def tracked(self, trial: int = 0) -> list[tuple[int, float]]:
        """(step, loss) of the trial in MLflow, in the order in which MLflow has them."""
        from mlflow import MlflowClient

        uri = self.environment.get("MLFLOW_TRACKING_URI") or f"sqlite:///{self.home}/mlflow.db"
        client = MlflowClient(tracking_uri=uri)
        (run,) = client.search_runs(
            [e.experiment_id for e in client.search_experiments()],
            f"tags.`mcc.identity` = '{self.trials()[trial]}'",
        )
        return [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, "loss/total")]

    def model(self, trial: int = 0) -> dict[str, Any]:
        """Weights of the newest checkpoint."""
        from mcc_core.checkpoint import load
        from orchestrator.records.checkpoints import newest_checkpoint

        with tempfile.TemporaryDirectory() as folder:
            one, file, _ = newest_checkpoint(self.storage, self.trials()[trial], Path(folder))
            assert one is not None and file is not None, "no checkpoint"
            return load(file).model

    def held_against(self, reference: Lab, trial: int = 0, its: int | None = None) -> tuple[bool, bool]:
        """(history complete and the same in the log and in MLflow, final weights equal to the bit)."""
        import torch

        its = trial if its is None else its
        ours, theirs = self.curve(trial), reference.curve(its)
        losses = [(i, m["loss/total"]) for i, m in theirs if "loss/total" in m]
        ours_model, their_model = self.model(trial), reference.model(its)
        equal = ours_model.keys() == their_model.keys() and all(
            torch.equal(v, their_model[k]) for k, v in ours_model.items()
        )
        return ours == theirs and self.tracked(trial) == losses, equal

    def verdict(
        self, fault: str, reference: Lab, moment: float, since: str, trial: int = 0, took: float | None = None
    ) -> Verdict:
        complete, equal = self.held_against(reference, trial)
        lost = f"{self.repeated(trial)} iterations trained again" if self.repeated(trial) else "nothing recorded"
        took = self.recovery(moment, trial) if took is None else took
        return Verdict(fault, lost, took, since, complete, equal)


@contextlib.contextmanager
def environment_of(values: dict[str, str]) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.update(values)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
