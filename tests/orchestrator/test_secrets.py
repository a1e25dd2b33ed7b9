"""Nothing that is written holds a credential, names cannot escape their folder, and what is read is data."""

from __future__ import annotations

import ast
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import commands
import pytest
import yaml
from experiments import plan_record
from hypothesis import given, settings
from hypothesis import strategies as st
from mlflow import MlflowClient
from mlflow_server import mlflow_server
from s3_server import s3_server
from tiny import TINY
from trained_before import train_before

import mcc_core
import orchestrator
from mcc_core.errors import MCCError, UsageError
from orchestrator.environment import environment_record
from orchestrator.settings import Settings
from orchestrator.spec.sweep_file import SweepFile, load_sweep
from orchestrator.storage.store import Storage
from orchestrator.tracking.rebuilding import rebuild

PACKAGES = [Path(package.__file__ or "").parent for package in (mcc_core, orchestrator)]
CANARIES = {
    "AWS_ACCESS_KEY_ID": "AKIACANARY7QXKEYID",
    "AWS_SECRET_ACCESS_KEY": "canarySecret9f3ZxWv8TqLm2",
    "MLFLOW_TRACKING_USERNAME": "canaryuser51",
    "MLFLOW_TRACKING_PASSWORD": "canaryPassword77Kp",
}


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """Ray's sockets need a short path."""
    folder = Path(tempfile.mkdtemp(prefix="mcc"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.parametrize("by_ray", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_sweep_on_s3_and_mlflow_writes_no_credential(
    by_ray: bool, tmp_path: Path, short_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("s3", "mlflow", "run"):
        (tmp_path / name).mkdir()
    key, secret = CANARIES["AWS_ACCESS_KEY_ID"], CANARIES["AWS_SECRET_ACCESS_KEY"]
    with s3_server(tmp_path / "s3", key=key, secret=secret) as server:
        artifacts = f"s3://{server.bucket}/mlflow"
        with mlflow_server(tmp_path / "mlflow", artifacts, server.environment) as mlflow:
            environment = server.environment | CANARIES | {"MCC_STORAGE": f"s3://{server.bucket}/storage"}
            environment |= {"MLFLOW_TRACKING_URI": mlflow.uri, "RAY_TMPDIR": str(short_folder), "OMP_NUM_THREADS": "1"}
            sweep = {"name": "canary", "base": "tiny", "set": TINY, "points": [{"name": "good", "set": {}}]}
            sweep["points"].append({"name": "bad", "set": {"optim.lr": 1e30}})  # type: ignore[attr-defined]
            (tmp_path / "run" / "sweep.yaml").write_text(yaml.safe_dump(sweep))

            def mcc(*arguments: str) -> subprocess.CompletedProcess[str]:
                return commands.run(*arguments, cwd=tmp_path / "run", env=environment, timeout=400)

            if not by_ray:
                for name, value in environment.items():
                    monkeypatch.setenv(name, value)
                home = tmp_path / "run" / ".mcc"
                there = {"storage": environment["MCC_STORAGE"], "tracking_uri": mlflow.uri}
                train_before(tmp_path / "run" / "sweep.yaml", Settings.at(home, **there))
                alone = sweep | {"name": "alone", "points": [{"name": "good", "set": {}}]}  # has nothing to run
                (tmp_path / "run" / "sweep.yaml").write_text(yaml.safe_dump(alone))
            done = mcc("sweep", "submit", "sweep.yaml")
            view = mcc("track", "rebuild", "canary")  # on a busy machine MLflow may not have had everything yet
            output = done.stdout + done.stderr + view.stdout + view.stderr
            written = {"output": output.encode()}
            assert done.returncode == by_ray, output[-3000:]  # the bad point failed, as it should
            served = (tmp_path / "mlflow" / "mlflow.log").read_text()
            assert view.returncode == 0, output[-3000:] + served[-3000:]
            client = MlflowClient(tracking_uri=mlflow.uri)
            runs = client.search_runs([e.experiment_id for e in client.search_experiments()])
            assert {run.info.status for run in runs} == {"FINISHED", "FAILED"} and len(runs) == (3 if by_ray else 5)
            assert any(run.data.tags.get("mcc.cause") == "nan" for run in runs)
        objects = server.client().get_paginator("list_objects_v2").paginate(Bucket=server.bucket)
        for one in (one for page in objects for one in page["Contents"]):
            written[one["Key"]] = server.client().get_object(Bucket=server.bucket, Key=one["Key"])["Body"].read()
    tops = {name.split("/")[0] + "/" + name.split("/")[1] for name in written if "/" in name}
    assert {"storage/sweeps", "storage/trials"} <= tops
    assert any(name.startswith("mlflow/") and name.endswith("last.pt") for name in written)
    for folder in (tmp_path / "run", tmp_path / "mlflow", short_folder):
        for file in folder.rglob("*"):
            if file.is_file() and not file.is_symlink():
                written[str(file)] = file.read_bytes()
    assert any("session_" in name and name.endswith(".log") for name in written) == by_ray
    found = {(name, what) for name, content in written.items() for what in CANARIES if _holds(content, CANARIES[what])}
    assert not found
    assert len(written) > (100 if by_ray else 50)


def _holds(content: bytes, secret: str) -> bool:
    return secret.encode() in content or secret.encode("utf-16-le") in content


def test_an_address_with_a_password_is_not_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(MCCError, match=r"MLflow at http://\*\*\*@127.0.0.1:1: ") as caught:
        rebuild(Settings.at(tmp_path, tracking_uri="http://me:canary@127.0.0.1:1"), plan_record("s"))
    assert "canary" not in str(caught.value)
    for url in ("s3://key:canary@bucket/x", "s3://bucket/x?secret_key=canary"):
        with pytest.raises(UsageError, match="keys come from AWS_ACCESS_KEY_ID") as refused:
            Storage(url)
        assert "canary" not in str(refused.value)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://me:canary@127.0.0.1:1")
    with pytest.raises(UsageError, match="AWS_ENDPOINT_URL: expected") as refused:
        Storage("s3://bucket/x")
    assert "canary" not in str(refused.value)


def test_the_record_of_the_environment_hides_what_the_environment_says_is_secret(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in CANARIES.items():
        monkeypatch.setenv(name, value)
    command = ["mcc", "--set", f"x={CANARIES['AWS_SECRET_ACCESS_KEY']}", "http://a:canaryword@host/"]
    recorded = environment_record(command)["command"]
    assert recorded == ["mcc", "--set", "x=***", "http://***@host/"]


@settings(max_examples=60)
@given(st.text(max_size=80) | st.sampled_from(["..", "../x", "a/../../x", "/etc", "x\n", ".hidden", "a" * 65, "a\0"]))
def test_a_name_is_refused_or_stays_in_its_folder(name: str) -> None:
    try:
        sweep = SweepFile.model_validate({"name": name, "base": "tiny", "points": [{"name": name}]})
    except ValueError:
        return
    folder = Path("/some/sweeps").resolve()
    assert (folder / sweep.name).resolve().parent == folder
    assert (folder / f"{sweep.points[0].name}").resolve().parent == folder


@given(st.lists(st.sampled_from(["..", ".", "a", "", "b\\..", "\0", "~", "c d", "%2e%2e"]), max_size=6).map("/".join))
def test_a_key_is_refused_or_lies_inside_the_storage(key: str) -> None:
    storage = Storage("/some/storage")
    try:
        path = storage.local(key)
    except ValueError:
        return
    assert path is not None and path.resolve().is_relative_to("/some/storage")
    for method in (storage.read, storage.exists, storage.delete, storage.list, storage.folders, storage.delete_folder):
        with pytest.raises(ValueError):
            method(f"{key}/../../escape")


def test_a_sweep_file_never_executes(tmp_path: Path) -> None:
    proof = tmp_path / "executed"
    for i, text in enumerate(
        (
            f"!!python/object/apply:os.system ['touch {proof}']",
            f"name: x\nbase: tiny\ndescription: !!python/object/new:os.system ['touch {proof}']",
            f"name: x\nbase: tiny\nset: {{train.iterations: !!python/name:os.system ''}}\n# {proof}",
        )
    ):
        file = tmp_path / f"{i}.yaml"
        file.write_text(text)
        with pytest.raises(UsageError):
            load_sweep(file)
    file.write_text(f"name: x\nbase: tiny\nset: {{train.iterations: \"__import__('os').system('touch {proof}')\"}}\n")
    with pytest.raises(UsageError, match="expected a whole number"):
        load_sweep(file)
    assert not proof.exists()


# Calls that would run what they read, by dotted name; a last part alone stands for a method of anything.
_BANNED = {
    *("eval", "exec", "compile", "__import__", "os.system", "os.popen", "importlib.import_module"),
    *("pickle.load", "pickle.loads", "pickle.Unpickler", "marshal.loads", "shelve.open", "joblib.load", "dill.loads"),
    *("cloudpickle.load", "cloudpickle.loads"),
    *("yaml.load", "yaml.load_all", "yaml.unsafe_load", "yaml.full_load", "yaml.unsafe_load_all", "yaml.full_load_all"),
    *("yaml.Loader", "yaml.UnsafeLoader", "yaml.FullLoader", "torch.jit.load", "torch.package.PackageImporter"),
}


_LAZY = Path(mcc_core.__file__)  # imports modules of its own, of a table in it, when they are asked for


@pytest.mark.parametrize("file", [f for p in PACKAGES for f in sorted(p.rglob("*.py"))], ids=lambda f: f.name)
def test_source_loads_data_only(file: Path) -> None:
    tree = ast.parse(file.read_text("utf-8"))
    imported = {
        alias.asname or alias.name: f"{node.module}.{alias.name}"
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Load):  # a field may be called so
            name = ast.unparse(node)
            if file != _LAZY:
                assert imported.get(name, name) not in _BANNED, f"{file}:{node.lineno}: {name}"
        if isinstance(node, ast.Call):
            name, given_ = ast.unparse(node.func), {k.arg: ast.unparse(k.value) for k in node.keywords}
            if imported.get(name, name) in {"torch.load", "torch.hub.load_state_dict_from_url"}:
                assert given_.get("weights_only") == "True", f"{file}:{node.lineno}: without weights_only=True"
            assert given_.get("shell", "False") == "False", f"{file}:{node.lineno}: a shell"
            assert given_.get("allow_pickle", "False") == "False", f"{file}:{node.lineno}: allow_pickle"
