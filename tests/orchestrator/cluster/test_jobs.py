"""Sweeps on a running cluster through the Ray Jobs API: a real `ray start` on loopback."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from s3_server import free_port
from staged import SEEDS
from tiny import TINY

from mcc_core.errors import UsageError
from mcc_core.experiment_files import resolve
from mcc_core.files import file_digest
from mcc_core.methods.registry import network_of
from orchestrator.cluster.jobs import _pack, is_remote, submit_job

PRESETS = Path(__file__).parents[3] / "mcc_core" / "presets"


@pytest.mark.parametrize("on", ["cluster", "ray://head:10001", "http://", "head:8265"])
def test_other_addresses_are_refused(on: str) -> None:
    with pytest.raises(UsageError, match="expected local, auto or http://HEAD:8265"):
        is_remote(on)
    assert not is_remote("local") and not is_remote("auto") and is_remote("http://head:8265")


def test_what_cannot_hold_on_a_cluster_is_refused_before_anything_is_sent(tmp_path: Path) -> None:
    file = tmp_path / "sweep.yaml"
    file.write_text(yaml.safe_dump({"name": "s", "base": "../x.yaml"}))
    kept = {"MCC_STORAGE": "s3://bucket/x"}
    for environ, message in (
        ({}, "MCC_STORAGE: not set, and a cluster cannot write to this machine"),
        (kept | {"MLFLOW_TRACKING_URI": "http://me:secret@host"}, "MLFLOW_TRACKING_URI: holds a password"),
        (kept, "only a file below the current folder is shipped"),
    ):
        with pytest.raises(UsageError, match=message) as caught:
            submit_job("http://127.0.0.1:1", file, [], environ)
        assert "secret" not in str(caught.value)


def test_bases_of_stages_and_points_are_shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("own.yaml", "other.yaml", "point.yaml"):
        (tmp_path / name).write_text("{}")
    points = [{"name": "p", "base": "point.yaml"}, {"name": "q", "set": {"loss.mcc": 0}}]
    stages: dict[str, dict[str, Any]] = {
        "seeds": {"base": "own.yaml", "points": points},
        "other": {"base": "other.yaml"},
        "tiny": {"base": "tiny"},
    }
    (tmp_path / "s.yaml").write_text(yaml.safe_dump({"name": "s", "stages": stages}))
    (tmp_path / "out").mkdir()
    _pack(tmp_path / "s.yaml", tmp_path / "out")
    shipped = {file.name for file in (tmp_path / "out").iterdir()}
    assert shipped == {"mcc_core", "orchestrator", "s.yaml", "own.yaml", "other.yaml", "point.yaml"}
    variants = {"other.yaml": {"points": points}, "tiny": {"set": {"loss.mcc": 0}}}
    (tmp_path / "v.yaml").write_text(yaml.safe_dump({"name": "v", "base": "tiny", "bases": variants}))
    (tmp_path / "varied").mkdir()
    _pack(tmp_path / "v.yaml", tmp_path / "varied", "own.yaml")
    shipped = {file.name for file in (tmp_path / "varied").iterdir()}
    assert shipped == {"mcc_core", "orchestrator", "v.yaml", "own.yaml", "other.yaml", "point.yaml"}
    with pytest.raises(UsageError, match=r"^--base: gone\.yaml: neither a preset"):
        _pack(tmp_path / "v.yaml", tmp_path / "out3", "gone.yaml")
    stages["seeds"]["points"] = [{"name": "p", "base": "gone.yaml"}]
    (tmp_path / "s.yaml").write_text(yaml.safe_dump({"name": "s", "stages": stages}))
    with pytest.raises(UsageError, match=r"s\.yaml: stages\.seeds\.points\[0\]\.base: gone\.yaml: neither a preset"):
        _pack(tmp_path / "s.yaml", tmp_path / "out2")


def test_a_wrong_token_is_one_line(tmp_path: Path) -> None:
    class Refusing(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(403, "Forbidden")

        def log_message(self, *_: object) -> None:
            pass

    (tmp_path / "s.yaml").write_text("name: s\nbase: tiny\n")
    with ThreadingHTTPServer(("127.0.0.1", 0), Refusing) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        on = f"http://127.0.0.1:{server.server_port}"
        with pytest.raises(UsageError, match="RAY_AUTH_TOKEN") as caught:
            submit_job(on, tmp_path / "s.yaml", [], {"MCC_STORAGE": "s3://b/p"})
        server.shutdown()
    assert "\n" not in str(caught.value)


@pytest.fixture
def running_cluster() -> Iterator[tuple[str, dict[str, str]]]:
    """A cluster that somebody else started: (address of its Jobs API, environment)."""
    folder = Path(tempfile.mkdtemp(prefix="mcc"))
    gcs, dashboard, agent = free_port(), free_port(), free_port()
    environment = os.environ | {"RAY_AUTH_MODE": "disabled", "RAY_OBJECT_STORE_ALLOW_SLOW_STORAGE": "1"}
    environment |= {"OMP_NUM_THREADS": "1", "RAY_TRAIN_V2_ENABLED": "1", "RAY_USAGE_STATS_ENABLED": "0"}
    ray = [str(Path(sys.executable).parent / "ray"), "start", "--block", "--num-cpus", "4"]
    ray += ["--object-store-memory", str(128 << 20), "--disable-usage-stats"]
    head = [
        *ray,
        "--temp-dir",
        str(folder),
        "--head",
        "--node-ip-address",
        "127.0.0.1",
        "--port",
        str(gcs),
        "--dashboard-port",
        str(dashboard),
        "--dashboard-agent-listen-port",  # another Ray here may have the default: then no job is taken
        str(agent),
    ]
    with (folder / "node.log").open("w") as log:
        node = subprocess.Popen(head, env=environment, stdout=log, stderr=log, start_new_session=True)
        time.sleep(12)
        assert node.poll() is None, (folder / "node.log").read_text()
        yield f"http://127.0.0.1:{dashboard}", environment
        node.terminate()
        node.wait(timeout=60)
    shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.slow
def test_a_sweep_on_a_cluster_outlives_its_submitter(
    running_cluster: tuple[str, dict[str, str]], tmp_path: Path
) -> None:
    address, environment = running_cluster
    environment |= {"MCC_STORAGE": str(tmp_path / "storage"), "MCC_HOME": str(tmp_path / "home")}
    points = [{"name": f"p{i}", "set": {"loss.mcc": 0.1 * (i + 1)}} for i in range(3)]
    (tmp_path / "laptop").mkdir()
    content = {"name": "far", "base": "tiny", "set": TINY, "points": points}
    (tmp_path / "laptop" / "far.yaml").write_text(yaml.safe_dump(content))

    def mcc(*arguments: str, cwd: str = "laptop") -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", "from orchestrator.cli import main; main()", "sweep", *arguments]
        return subprocess.run(command, cwd=tmp_path / cwd, env=environment, capture_output=True, text=True, timeout=400)

    submit = ("submit", "far.yaml", "--on", address, "--detach", "--remote-python", sys.executable)
    sent, deadline = mcc(*submit), time.monotonic() + 120
    while sent.returncode == 1 and time.monotonic() < deadline:  # the head is still starting
        sent = mcc(*submit)
    assert sent.returncode == 0, sent.stderr
    job = sent.stdout.split()[1].rstrip(";")
    (tmp_path / "elsewhere").mkdir()
    followed = mcc("attach", job, "--on", address, cwd="elsewhere")
    print(followed.stdout)
    assert followed.returncode == 0, followed.stdout + followed.stderr
    record = json.loads(mcc("status", "far", "--json", cwd="elsewhere").stdout)
    assert record["states"] == {"finished": 3}
    code = mcc("attach", "nothing", "--on", address)
    assert code.returncode == 2 and "no such job" in code.stderr and code.stderr.count("\n") == 1


@pytest.mark.slow
def test_stages_on_a_cluster(running_cluster: tuple[str, dict[str, str]], tmp_path: Path) -> None:
    address, environment = running_cluster
    environment |= {"MCC_STORAGE": str(tmp_path / "storage"), "MCC_HOME": str(tmp_path / "home"), "COLUMNS": "160"}
    shapes = {name: value for name, value in SEEDS.items() if name.startswith("data.")}
    network = shapes | {
        "model.backbone_args": {"channels": [8, 8, 8, 8], "layers": [1, 1, 1, 1], "stem_width": 8},
        "train.crop": 32,
        "train.batch_size": 2,
        "train.iterations": 4,
        "train.eval_every": 4,
        "train.eval_train_images": 8,
    }
    stages = {
        "seeds": {"base": "own.yaml", "set": SEEDS},
        "refine": {"of": "seeds", "refine": {"kind": "par"}, "parameters": {"refine.threshold": [0.3, 0.5]}},
        "segment": {"of": "refine", "base": "segmentation-tiny", "set": network},
        "full": {"base": "segmentation-tiny", "set": network | {"labels.supervision": "full"}},
    }
    laptop = tmp_path / "laptop"
    laptop.mkdir()
    (laptop / "far.yaml").write_text(yaml.safe_dump({"name": "far", "stages": stages}))
    (laptop / "own.yaml").write_text((PRESETS / "tiny.yaml").read_text())
    network_state = network_of(resolve("tiny", SEEDS), 3).state_dict()
    start = "encoder.vit."
    backbone = {name.removeprefix(start): value for name, value in network_state.items() if name.startswith(start)}
    torch.save(backbone, laptop / "net.pth")

    def mcc(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", "from orchestrator.cli import main; main()", *arguments]
        return subprocess.run(command, cwd=laptop, env=environment, capture_output=True, text=True, timeout=600)

    images = [text for key, value in shapes.items() for text in ("--set", f"{key}={value}")]
    made = mcc("data", "labels", "segmentation-tiny", "--out", "full-labels", "--supervision", "full", *images)
    assert made.returncode == 0, made.stderr
    environment["MCC_HOME"] = str(tmp_path / "other-home")  # as another machine's
    where = ["--on", address, "--detach", "--remote-python", sys.executable]
    where += ["--set", "full.labels.source=full-labels", "--set", "seeds.model.weights=net.pth"]
    sent, deadline = mcc("sweep", "submit", "far.yaml", *where), time.monotonic() + 120
    while sent.returncode == 1 and time.monotonic() < deadline:  # the head is still starting
        sent = mcc("sweep", "submit", "far.yaml", *where)
    assert sent.returncode == 0, sent.stderr
    followed = mcc("sweep", "attach", sent.stdout.split()[1].rstrip(";"), "--on", address)
    print(followed.stdout)
    assert followed.returncode == 0, followed.stdout + followed.stderr
    assert "what each stage adds" in followed.stdout
    record = json.loads(mcc("sweep", "status", "far", "--json").stdout)
    assert record["states"] == {"finished": 6}
    assert {trial["stage"] for trial in record["trials"]} == set(stages)
    (seeds,) = (trial["identity"] for trial in record["trials"] if trial["stage"] == "seeds")
    ran = yaml.safe_load((tmp_path / "storage" / "trials" / seeds / "experiment.yaml").read_text())
    assert ran["model"]["weights"] == f"{tmp_path}/storage/files/{file_digest(laptop / 'net.pth')}/net.pth"
