"""The power of whole machines is cut: nobody there says a word, and pages and commands elsewhere tell the truth.

The machines are hosts of `tests/support/hosts.py`: their cable goes dead and all of their processes end at once.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import commands
import pytest
import yaml
from begun import begin, one_trial
from chaos_lab import LOG_EVERY, Lab, environment_of
from hosts import Network, network, ray_node, wait_for_nodes
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow_server import mlflow_server

from orchestrator.records import layout
from orchestrator.records.leases import Lease, held
from orchestrator.records.sweeps import find
from orchestrator.settings import Settings
from orchestrator.storage.store import Storage
from orchestrator.tracking.background import BackgroundSync
from orchestrator.tracking.liveness import settle_all

pytestmark = pytest.mark.slow

QUIET = {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1"}
ITERATIONS = 1_000_000  # none ends by itself
SETTLED_S = 90 + 20 + 60  # the lease, the next look of who comes by, and what a busy machine adds


@dataclass
class Place:
    """Machines with a storage and an MLflow server that outlive them."""

    net: Network
    lab: Lab
    client: MlflowClient

    @property
    def settings(self) -> Settings:
        environment = self.lab.environment
        return Settings.at(
            self.lab.home, storage=environment["MCC_STORAGE"], tracking_uri=environment["MLFLOW_TRACKING_URI"]
        )

    def runs(self, sweep: str) -> dict[str, Run]:
        """The runs of a sweep by kind, `sweep` and `trial`."""
        if (found := self.client.get_experiment_by_name("mcc")) is None:
            return {}
        runs = self.client.search_runs([found.experiment_id], f"tags.`mcc.sweep` = '{sweep}'")
        return {run.data.tags["mcc.kind"]: run for run in runs}

    def shown(self, sweep: str) -> dict[str, str]:
        return {kind: run.info.status for kind, run in self.runs(sweep).items()}

    def begun(self) -> str:
        """Wait until a trial trains behind a checkpoint and MLflow shows it; the sweep's id."""
        self.lab.until(lambda: list((Path(self.lab.environment["MCC_STORAGE"])).glob("sweeps/*/plan.json")), None, 600)
        sweep = find(self.lab.storage, "chaos").id
        running = {"trial": "RUNNING", "sweep": "RUNNING"}
        self.lab.until(lambda: self.lab.reached(25) and self.shown(sweep) == running, None, 600)
        return sweep

    def told(self) -> str:
        done = commands.run("sweep", "status", "chaos", cwd=self.lab.folder, env=self.lab.environment)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def stop(self, sweep: str) -> None:
        """`mcc sweep stop`, and MLflow says so."""
        done = commands.run("sweep", "stop", "chaos", cwd=self.lab.folder, env=self.lab.environment)
        assert done.returncode == 0, done.stderr
        self.lab.until(lambda: self.shown(sweep) == {"trial": "KILLED", "sweep": "KILLED"}, None, 120)
        assert self.runs(sweep)["trial"].data.tags["mcc.state"] == "stopped"

    def starts(self) -> list[dict[str, Any]]:
        return [e for e in self.lab.events() if e["kind"] == "start"]


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    # Outside of /tmp, which every host has for itself.
    with tempfile.TemporaryDirectory(dir="/var/tmp", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        try:
            made = network(folder)
            net = made.__enter__()
        except (OSError, FileNotFoundError) as error:
            pytest.skip(f"no hosts on this machine: {error}")
        try:
            (folder / "mlflow").mkdir()
            with (
                environment_of(os.environ | QUIET),
                mlflow_server(folder / "mlflow", host=net.gateway) as server,
            ):
                storage = folder / "storage"
                lab = Lab(folder / "lab", MCC_STORAGE=str(storage), MLFLOW_TRACKING_URI=server.uri)
                lab.fields["set"] |= {"train.iterations": ITERATIONS, "train.eval_every": 20}
                lab.folder.mkdir()
                lab.output.touch()
                (lab.folder / "sweep.yaml").write_text(yaml.safe_dump(lab.fields))
                yield Place(net, lab, MlflowClient(tracking_uri=server.uri))
        finally:
            made.__exit__(None, None, None)


def test_of_a_machine_with_driver_node_and_trial_others_tell(place: Place) -> None:
    """Another sweep that lives is the one that comes by; it stays open."""
    host, lab = place.net.add("gone"), place.lab
    submit = [sys.executable, "-c", "from orchestrator.cli import main; main()", "sweep", "submit"]
    # Its home is on a disk that nobody sees again.
    host.run([*submit, str(lab.folder / "sweep.yaml")], lab.environment | {"MCC_HOME": "/tmp/home"})
    sweep = place.begun()

    alive = {"trial": "RUNNING", "sweep": "RUNNING"}
    storage = Storage(place.settings.storage)
    other = one_trial("lives-1", "b" * 16)
    storage.write(layout.plan("lives-1"), json.dumps(other).encode())
    begin(storage, place.net.folder, "b" * 16)
    with held(Lease(storage, "lives", "lives-1", ["b" * 16])), BackgroundSync(place.settings, other) as feeder:
        lab.until(lambda: place.shown("lives-1") == alive, None, 60)
        time.sleep(25)  # it looked for runs without a process
        assert place.shown(sweep) == alive and "running" in place.told()
        host.cut_power()
        cut = time.monotonic()
        assert place.shown(sweep) == alive and "running" in place.told()  # it may only be slow
        lab.until(lambda: place.shown(sweep) == {"trial": "KILLED", "sweep": "KILLED"}, None, 200)
        took = time.monotonic() - cut
        assert 60 < took < SETTLED_S, took
        assert place.shown("lives-1") == alive and feeder.problem is None
    print(f"told {took:.0f} s after the power was cut")
    assert "interrupted" in place.told()
    dead = place.runs(sweep)["trial"]
    assert dead.data.tags["mcc.state"] == "interrupted" and dead.data.tags["mcc.settled"]
    # The living sweep above was ended without a word, and is told of by the command.
    assert place.shown("lives-1") == {"trial": "KILLED", "sweep": "KILLED"}

    seen = lab.curve()[-1][0]
    again = lab.submit()
    lab.until(lambda: len(place.starts()) > 1 and place.shown(sweep) == alive, again, 600)
    first, second = place.starts()
    assert first["iteration"] == 0 and second["iteration"] >= 20 and second["info"]["host"] == socket.gethostname()
    lab.until(lambda: lab.events()[-1]["iteration"] > seen, again, 600)  # MLflow keeps what was measured twice once
    place.stop(sweep)
    lab.finish(again, code=130)
    run = place.runs(sweep)["trial"]
    assert run.info.run_id == dead.info.run_id and not run.data.tags["mcc.settled"]
    steps = [i for i, metrics in lab.curve() if "loss/total" in metrics]
    assert steps == list(range(LOG_EVERY, steps[-1] + 1, LOG_EVERY)) and [i for i, _ in lab.tracked()] == steps


def test_of_a_node_that_is_lost_the_living_driver_tells(place: Place) -> None:
    """The trial waits for a node, says so, and goes on when there is one; its runs are not closed."""
    lab = place.lab
    head, node = place.net.add("head"), place.net.add("node")
    for host in (head, node):
        ray_node(host, dict(os.environ), head, cpus=1)  # the head's is not whole: the driver's place is on it
    on = f"http://{head.address}:8265"
    wait_for_nodes(on, 2)
    lab.finish(lab.submit("--on", on, "--remote-python", sys.executable, "--detach"))
    sweep = place.begun()
    assert place.starts()[-1]["info"]["host"] == node.name

    def state() -> tuple[str, str]:
        run = place.runs(sweep)["trial"]
        assert run.info.status == "RUNNING"
        return run.data.tags["mcc.state"], run.data.tags.get("mcc.message", "")

    assert state() == ("running", "")
    node.cut_power()
    cut = time.monotonic()
    lab.until(lambda: state()[0] == "waiting", None, 200)
    print(f"told {time.monotonic() - cut:.0f} s after the power was cut: {state()[1]}")
    assert state()[1] in " ".join(place.told().split())
    assert settle_all(place.settings) == 0  # the driver lives, and so does its sweep

    ray_node(spare := place.net.add("spare"), dict(os.environ), head, cpus=1)
    lab.until(lambda: len(place.starts()) > 1, None, 200)
    assert place.starts()[-1]["iteration"] >= 20 and place.starts()[-1]["info"]["host"] == spare.name
    lab.until(lambda: state() == ("running", ""), None, 60)
    assert "waits" not in place.told()
    place.stop(sweep)
