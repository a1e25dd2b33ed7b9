"""Each trial's best checkpoint as a model of MLflow: its scores, its registry, and its answers to images."""

from __future__ import annotations

import base64
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from mlflow import MlflowClient
from mlflow_server import mlflow_server
from PIL import Image
from s3_server import free_port

import mcc_core as mcc
from mcc_core.errors import UsageError
from orchestrator.records.sweeps import find
from orchestrator.settings import Settings
from orchestrator.storage.store import Storage
from orchestrator.tracking import client as mlflow_files
from orchestrator.tracking.rebuilding import rebuild
from orchestrator.tracking.registration import check_names, register_trial
from orchestrator.tracking.sync import Tracker
from orchestrator.workflows.networks import find_network

FINISHED = "0fc7aeed0919c2dc"
PICTURE = Path(__file__).parents[3] / "docs/images/photograph.jpg"


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """A sweep of two trials, one finished and one cut off, fed to MLflow."""
    home = tmp_path_factory.mktemp("home") / "home"
    shutil.copytree(Path(__file__).parents[2] / "data/v0", home)
    made = Settings.at(home)
    _feed(made)
    return made


def _feed(settings: Settings) -> None:
    tracker = Tracker(settings, find(Storage(settings.storage), "before").document)
    tracker.sync()
    tracker.finish()


def models(settings: Settings) -> tuple[MlflowClient, str, list]:  # type: ignore[type-arg]
    client = mlflow_files.client(settings)
    experiment = mlflow_files.experiment(client, settings)
    return client, experiment, list(client.search_logged_models([experiment]))


def test_a_model_knows_its_trial_its_data_and_its_scores(settings: Settings) -> None:
    client, _, (model,) = models(settings)
    (trial,) = [t for t in find(Storage(settings.storage), "before").document["trials"] if t["identity"] == FINISHED]
    assert model.name == "ratio=0_3" and str(model.status) == "READY"
    assert model.tags["mcc.identity"] == FINISHED and model.tags["mcc.data"] == trial["fingerprint"]
    assert model.params == {"method": "mcc", "mask.ratio": "0.3"}
    run = client.get_run(model.source_run_id)
    scores = {m.key: m.value for m in model.metrics}
    assert scores["val/seg/single/miou"] == run.data.metrics["val/seg/single/miou"]
    assert {(m.step, m.dataset_digest) for m in model.metrics} == {(4, trial["fingerprint"][:36])}
    history = client.get_metric_history(run.info.run_id, "val/seg/single/miou")
    assert len({m.step for m in history}) == len(history)  # linking sends no step twice
    assert run.outputs is not None and run.inputs is not None
    assert [output.model_id for output in run.outputs.model_outputs] == [model.model_id]
    (used,) = run.inputs.dataset_inputs
    assert used.dataset.digest == trial["fingerprint"][:36] and used.tags[0].value == "training"
    first = sorted(run.data.params)[0]
    assert first == "_varied/mask.ratio" and run.data.params[first] == "0.3"
    (file,) = settings.artifact_root.rglob("checkpoint.pt")
    assert file.stat().st_nlink >= 2  # no second copy on the disk


def test_feeding_again_makes_no_second_model_and_rebuilding_keeps_one(settings: Settings) -> None:
    before = {model.model_id for model in models(settings)[2]}
    _feed(settings)
    assert {model.model_id for model in models(settings)[2]} == before
    rebuild(settings, find(Storage(settings.storage), "before").document)
    after = {model.model_id for model in models(settings)[2]}
    assert len(after) == 1 and after.isdisjoint(before)


def test_the_winner_goes_into_the_registry_once_and_predicts(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow
    import pandas

    sweep = find(Storage(settings.storage), "before")
    first = register_trial(settings, sweep, FINISHED, "shapes", "champion")
    again = register_trial(settings, sweep, FINISHED, "shapes", None)
    assert (first.version, first.uri, again.version, again.uri) == (1, "models:/shapes@champion", 1, "models:/shapes/1")
    rebuild(settings, sweep.document)  # what is registered stays
    monkeypatch.setenv("MCC_HOME", str(settings.home))
    network = mcc.load("models:/shapes@champion", device="cpu")
    assert network.iteration == 4
    for name in ("models:/shapes/1", "models:/shapes/latest"):
        assert find_network(name, settings).name == "checkpoint.pt"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", settings.tracking_uri)
    mlflow.set_tracking_uri(settings.tracking_uri)
    served = mlflow.pyfunc.load_model("models:/shapes@champion")
    (answer,) = served.predict(pandas.DataFrame({"image": [PICTURE.read_bytes()]}), params={"protocol": "single"})
    wanted = network.predict(PICTURE, protocol="single")
    assert (np.array(Image.open(io.BytesIO(answer["mask"]))) == wanted.mask).all()
    assert answer["classes"] == list(wanted.present) and set(answer["scores"]) == set(network.classes)
    json.dumps(answer["scores"])
    with pytest.raises(Exception, match="image 0: cannot be read as an image: it is no image"):
        served.predict(pandas.DataFrame({"image": [b"not an image"]}))


def test_names_that_the_registry_does_not_take_are_refused() -> None:
    check_names("shapes", "champion")
    with pytest.raises(UsageError, match=r"--register 'a/b': expected a name without spaces, slashes and colons"):
        check_names("a/b", None)
    with pytest.raises(UsageError, match=r"--alias 'v2': expected letters"):
        check_names("a", "v2")


@pytest.mark.slow
def test_on_a_server_the_checkpoint_travels_through_it(tmp_path: Path) -> None:
    shutil.copytree(Path(__file__).parents[2] / "data/v0", tmp_path / "home")
    (tmp_path / "server").mkdir()
    with mlflow_server(tmp_path / "server") as server:
        settings = Settings.at(tmp_path / "home", tracking_uri=server.uri)
        _feed(settings)
        _, _, (model,) = models(settings)
        assert "val/seg/single/miou" in {m.key for m in model.metrics}
        sweep = find(Storage(settings.storage), "before")
        made = register_trial(settings, sweep, FINISHED, "shapes", "champion")
        file = find_network(made.uri, settings)
        assert file.is_relative_to(settings.home / "fetched") and mcc.load(file, device="cpu").iteration == 4
        with pytest.raises(UsageError, match="has no such model"):
            find_network("models:/shapes@other", settings)


@pytest.mark.slow
def test_a_served_model_answers_over_http(settings: Settings) -> None:
    sweep = find(Storage(settings.storage), "before")
    name = register_trial(settings, sweep, FINISHED, "served", "champion").uri
    port = free_port()
    env = os.environ | {"MLFLOW_TRACKING_URI": settings.tracking_uri, "MCC_HOME": str(settings.home)}
    env["PATH"] = f"{Path(sys.executable).parent}:{env['PATH']}"
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", name, "--env-manager", "local"]
    server = subprocess.Popen([*command, "--port", str(port)], env=env, start_new_session=True)
    try:
        deadline = time.monotonic() + 400
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/ping", timeout=2).close()
                break
            except OSError:
                assert time.monotonic() < deadline and server.poll() is None
                time.sleep(0.5)
        record = {"image": base64.b64encode(PICTURE.read_bytes()).decode()}
        body = json.dumps({"dataframe_records": [record], "params": {"protocol": "single"}}).encode()
        asked = urllib.request.Request(
            f"http://127.0.0.1:{port}/invocations", body, {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(asked, timeout=120) as reply:
            (answer,) = json.load(reply)["predictions"]
        mask = Image.open(io.BytesIO(base64.b64decode(answer["mask"])))
        assert mask.size == Image.open(PICTURE).size and len(answer["scores"]) == 8
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait(20)
