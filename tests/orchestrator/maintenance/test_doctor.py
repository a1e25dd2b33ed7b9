"""`mcc doctor` on a machine in order, and with each thing really broken."""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path

import commands
import pytest
from mlflow_server import mlflow_server
from s3_server import free_port

from mcc_core.experiment_files import preset_names, resolve
from orchestrator.findings import Answer, Finding
from orchestrator.maintenance import doctor as doctor_module
from orchestrator.maintenance.doctor import examine
from orchestrator.settings import Settings

SECRET = "d0ctor-s3cr3t-value"


def of(found: list[Finding], section: str, level: str) -> list[str]:
    return [one.detail for one in found if (one.section, one.level) == (section, level)]


def doctor(home: Path, *arguments: str, block: str = "") -> subprocess.CompletedProcess[str]:
    """The command in a process of its own; `block`: a module that cannot be imported there."""
    script = f"import sys; sys.modules.update(dict.fromkeys({[block] if block else []}))\n"
    script += f"sys.argv = {['mcc', 'doctor', *arguments]}\nfrom orchestrator.cli import main; main()"
    (home / "program.py").write_text(script)
    return commands.run_program(home / "program.py", cwd=home, env={"MCC_HOME": str(home / ".mcc")})


def test_a_machine_in_order(tmp_path: Path) -> None:
    done = doctor(tmp_path, "--json")
    found = json.loads(done.stdout)
    assert done.returncode == 0 and not [one for one in found if one["level"] == "fail"], done.stdout
    assert {one["section"] for one in found} == {"packages", "device", "ray", "storage", "mlflow", "data", "weights"}
    assert all(one["fix"] for one in found if one["level"] == "warn")
    weights = "\n".join(one["detail"] for one in found if one["section"] == "weights")
    for name in preset_names():
        assert resolve(name).model.weights == "random" or name in weights, name


def test_a_missing_extra_is_named_with_what_gets_it(tmp_path: Path) -> None:
    done = doctor(tmp_path, block="pydensecrf")
    assert done.returncode == 0  # without CRF everything else works
    line = next(n for n, text in enumerate(done.stdout.splitlines()) if "no mcc[crf]" in text)
    assert "fix: pip install 'mcc[crf]'" in done.stdout.splitlines()[line + 1]


def test_storage_and_mlflow_that_are_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "doctor")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    settings = Settings.at(
        tmp_path, storage="s3://bucket/prefix", tracking_uri=f"http://user:{SECRET}@127.0.0.1:{free_port()}"
    )
    began = time.monotonic()
    found = list(examine(settings))
    assert time.monotonic() - began < 90
    assert of(found, "storage", "fail") and of(found, "mlflow", "fail")
    assert all(one.fix for one in found if one.level == "fail")
    assert SECRET not in repr(found)


def test_a_home_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    found = list(examine(Settings.at(tmp_path / "file" / ".mcc")))
    assert of(found, "storage", "fail")


def test_a_server_that_takes_artifacts_and_one_that_does_not(tmp_path: Path) -> None:
    with mlflow_server(tmp_path) as server:
        found = list(examine(Settings.at(tmp_path, tracking_uri=server.uri)))
        assert not of(found, "mlflow", "fail") and len(of(found, "mlflow", "ok")) == 2
        assert not any((tmp_path / "artifacts").rglob("*probe*"))
        (tmp_path / "artifacts").rename(tmp_path / "gone")
        (tmp_path / "artifacts").write_text("a file in the way")
        (broken,) = of(list(examine(Settings.at(tmp_path, tracking_uri=server.uri))), "mlflow", "fail")
        assert "PUT answers 500" in broken


@pytest.mark.parametrize(("optional", "level"), [("", "fail"), ("recipes on prepared datasets", "warn")])
def test_silence_about_what_only_some_recipes_need_is_no_failure(optional: str, level: str) -> None:
    def busy() -> Answer:
        yield "ok", "one of two", ""
        time.sleep(0.5)
        yield "ok", "two of two", ""

    section = doctor_module._Section("some", busy, 0.1, optional)
    first, silence = doctor_module._within(section)
    assert first == ("ok", "one of two", "") and silence[0] == level and silence[2]
    assert silence[1] == "no answer within 0.1 s" + (f": only {optional} need it" if optional else "")


def test_a_dataset_whose_index_is_broken(tmp_path: Path) -> None:
    (tmp_path / "data/voc").mkdir(parents=True)
    (tmp_path / "data/voc/index.json").write_text('{"format": 1}')
    found = list(examine(Settings.at(tmp_path), data=tmp_path / "data"))
    assert "index.json" in of(found, "data", "fail")[0] and "no " in of(found, "data", "warn")[0]
