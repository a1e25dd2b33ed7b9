"""Commands on a sweep from another folder than the one that runs it: stop, resume, watch, logs, retry, delete."""

from __future__ import annotations

import json
import os
import subprocess
import time
from pathlib import Path
from typing import Any

import commands
import pytest
import yaml
from s3_server import s3_server
from tiny import TINY
from trained_before import train_before

from orchestrator.records.events import history
from orchestrator.settings import Settings
from orchestrator.storage.store import Storage

LAST = 300
SET = TINY | {"train.iterations": LAST, "train.eval_every": 50, "train.log_every": 25}


class Place:
    """A folder with a home of its own, and a storage that others share."""

    def __init__(self, folder: Path, storage: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.storage = folder, Storage(storage)
        self.environment = os.environ | {
            "MCC_HOME": str(folder / "home"),
            "MCC_STORAGE": storage,
            "MLFLOW_TRACKING_URI": f"sqlite:///{folder.parent / 'mlflow.db'}",
            "OMP_NUM_THREADS": "1",
            "COLUMNS": "160",
        }

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        command = [str(commands.as_program(self.folder / "bin")), "sweep", *arguments]
        pipe = subprocess.PIPE
        return subprocess.Popen(command, cwd=self.folder, env=self.environment, stdout=pipe, stderr=pipe, text=True)

    def mcc(self, *arguments: str, code: int = 0) -> str:
        process = self.start(*arguments)
        out, err = process.communicate(timeout=300)
        assert process.returncode == code, out + err
        return out + err

    def write(self, name: str, **fields: Any) -> str:
        content = {"name": name, "base": "tiny", "set": SET, "points": [{"name": "one", "set": {}}]} | fields
        (self.folder / f"{name}.yaml").write_text(yaml.safe_dump(content))
        return f"{name}.yaml"

    def identity(self, sweep: str) -> str:
        return str(json.loads(self.mcc("status", sweep, "--json"))["trials"][0]["identity"])

    def metrics(self, identity: str) -> dict[tuple[int, str], float]:
        """Values of losses and scores by step and key; every step has a key once."""
        found: dict[tuple[int, str], float] = {}
        for event in history(self.storage, identity):
            for key, value in event["metrics"].items() if event["kind"] == "metrics" else ():
                assert (event["iteration"], key) not in found
                if key.startswith(("loss/", "val/", "train/")):
                    found[event["iteration"], key] = value
        return found


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Place:
    root = tmp_path_factory.mktemp("control")
    return Place(root / "here", str(root / "storage"))


@pytest.fixture(scope="module")
def there(here: Place) -> Place:
    return Place(here.folder.parent / "there", here.storage.url)


@pytest.mark.slow
def test_stopped_from_elsewhere_and_resumed_without_the_file(here: Place, there: Place) -> None:
    """The test of a bucket and the runner's own show that the numbers are those of a sweep left alone."""
    stop_and_resume(here, there)


@pytest.mark.slow
def test_stopped_and_resumed_through_a_bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "s3").mkdir()
    with s3_server(tmp_path / "s3") as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        here, there = (Place(tmp_path / name, f"s3://{server.bucket}/sweeps") for name in ("here", "there"))
        disturbed = stop_and_resume(here, there)
    lone = Place(tmp_path / "lone", str(tmp_path / "lone-storage"))
    lone.mcc("submit", lone.write("long"))
    assert lone.metrics(lone.identity("long")) == disturbed


def stop_and_resume(here: Place, there: Place) -> dict[tuple[int, str], float]:
    """What the trial measured in the end; its history has every step once."""
    running = here.start("submit", here.write("long"))
    deadline = time.monotonic() + 120
    while True:
        found = [key for key in here.storage.folders("trials") if here.storage.list(f"{key}/checkpoints")]
        if found or time.monotonic() > deadline or running.poll() is not None:
            break
        time.sleep(0.3)
    assert running.poll() is None and found, running.communicate()
    watching = there.start("watch", "long", "--every", "0.5")
    assert "stopped; go on with: mcc sweep resume long-" in there.mcc("stop", "long")
    out, err = running.communicate(timeout=120)
    assert running.returncode == 130, out + err
    seen, _ = watching.communicate(timeout=60)
    assert watching.returncode == 0 and "stopped" in seen
    assert "is not running" in there.mcc("stop", "long", code=2)
    record = json.loads(there.mcc("status", "long", "--json"))
    assert record["states"] == {"stopped": 1} and record["best"] is None
    identity = record["trials"][0]["identity"]
    assert 0 < max(step for step, _ in there.metrics(identity)) < LAST
    there.mcc("resume", "long")
    disturbed = there.metrics(identity)
    assert json.loads(there.mcc("best", "long", "--json"))["identity"] == identity
    assert max(step for step, _ in disturbed) == LAST
    return disturbed


MIXED: dict[str, Any] = {
    "set": TINY,
    "points": [{"name": "one", "set": {}}, {"name": "bad", "set": {"optim.lr": 1e30}}],
}


def test_a_sweep_is_looked_at_and_deleted_from_elsewhere(tmp_path: Path) -> None:
    """What needs no Ray; what does is below, and slow."""
    here = Place(tmp_path / "here", str(tmp_path / "storage"))
    there = Place(tmp_path / "there", here.storage.url)
    settings = Settings.at(here.folder / "home", storage=here.storage.url)
    mixed = here.folder / here.write("mixed", **MIXED)
    assert "was not submitted to" in here.mcc("submit", mixed.name, "--resume", code=2)
    train_before(mixed, settings)
    assert "not finite" in there.mcc("logs", "bad")
    assert "has no such trial; such as one" in there.mcc("logs", "nobody", code=2)
    record = json.loads(there.mcc("status", "mixed", "--json"))
    assert record["states"] == {"finished": 1, "failed": 1}
    good, bad = (t["identity"] for t in record["trials"])
    assert "one did not fail" in there.mcc("retry", "mixed", "--trial", "one", code=2)
    assert "has no such trial" in there.mcc("retry", "mixed", "--trial", "nobody", code=2)
    assert "is not running" in there.mcc("stop", "mixed", code=2)
    here.mcc("submit", here.write("alone", set=TINY))
    assert there.identity("alone") == good
    check_deletion(there, good, bad)


def check_deletion(there: Place, good: str, bad: str) -> None:
    """Of the sweep `mixed`, whose good trial the sweep `alone` has too."""
    listed = there.mcc("delete", "mixed", code=2)
    assert "nothing was deleted" in listed and "  bad\n" in listed and "  one\n" not in listed
    assert there.storage.list(f"trials/{bad}/events")
    told = there.mcc("delete", "mixed", "--yes")
    assert "kept, as another sweep has them: one" in told and "deleted" in told
    assert there.storage.folders(f"trials/{bad}") == [] and there.storage.list(f"trials/{good}/events")
    assert "alone" in {s["name"] for s in json.loads(there.mcc("list", "--json"))}
    assert "no such sweep" in there.mcc("status", "mixed", code=2)


@pytest.mark.slow
def test_failed_trials_are_run_again(here: Place, there: Place) -> None:
    here.mcc("submit", here.write("mixed", **MIXED), code=1)
    assert "not finite" in there.mcc("logs", "bad", "--sweep", "mixed") or "iteration" in there.mcc("logs", "bad")
    record = json.loads(there.mcc("status", "mixed", "--json"))
    good, bad = (t["identity"] for t in record["trials"])
    before = len(there.storage.list(f"trials/{good}/events"))
    attempts = len(there.storage.list(f"trials/{bad}/attempts"))
    assert "1 failed trials are run again" in there.mcc("retry", "mixed", "--trial", "bad", code=1)
    assert len(there.storage.list(f"trials/{good}/events")) == before
    assert len(there.storage.list(f"trials/{bad}/attempts")) > attempts
    here.mcc("submit", here.write("alone", set=TINY))
    assert there.identity("alone") == good
    check_deletion(there, good, bad)
