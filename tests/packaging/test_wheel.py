"""The wheel, installed into an environment of its own and used outside the checkout: everything it needs is inside."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import yaml
from tiny import TINY

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `bin` of a virtual environment with the wheel; the other packages are those of the tests."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in ("mcc_core", "orchestrator"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", ".", "--no-deps", "-w", str(folder)], cwd=source, check=True)
    (wheel,) = folder.glob("mcc-*.whl")
    shutil.rmtree(source)
    subprocess.run([sys.executable, "-m", "venv", str(folder / "env")], check=True)
    python = folder / "env/bin/python"
    subprocess.run([*pip, "--python", str(python), "install", "--no-deps", str(wheel)], check=True)
    # A folder that a .pth file names has its own .pth files left alone, so that no editable checkout comes along.
    others = {sysconfig.get_path("purelib"), *(p for p in sys.path if p.endswith("site-packages"))}
    (site,) = folder.glob("env/lib/python*/site-packages")
    (site / "others.pth").write_text("\n".join(others))
    return folder / "env/bin"


def run(installed: Path, folder: Path, *arguments: str) -> str:
    quiet = {"OMP_NUM_THREADS": "1", "COLUMNS": "120", "MCC_HOME": str(folder / "home")}
    keep = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        [*map(str, arguments)], cwd=folder, env=keep | quiet, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_wheel_has_what_it_needs(installed: Path, tmp_path: Path) -> None:
    mcc, python = str(installed / "mcc"), str(installed / "python")
    where = "import mcc_core, orchestrator; print(mcc_core.__file__, orchestrator.__file__)"
    for file in run(installed, tmp_path, python, "-c", where).split():
        assert Path(file).is_relative_to(installed.parent)
    assert "voc-table1" in run(installed, tmp_path, mcc, "reproduce", "--list")  # tables
    assert "ReCAM: walk" in run(installed, tmp_path, mcc, "reproduce", "voc-table1", "--plan")  # and their pipelines
    assert '"$schema"' in run(installed, tmp_path, mcc, "schema", "sweep")  # schemas
    assert "Three next steps" in run(installed, tmp_path, mcc)


@pytest.mark.slow
def test_the_wheel_trains_and_reports(installed: Path, tmp_path: Path) -> None:
    """A preset, Ray's workers and the page's templates, away from the checkout."""
    fields = {"name": "first", "base": "tiny", "set": TINY}
    (tmp_path / "first.yaml").write_text(yaml.safe_dump(fields))
    mcc = str(installed / "mcc")
    out = run(installed, tmp_path, mcc, "sweep", "submit", "first.yaml")
    for stage in ("data and plan: ", "trials (1): ", "MLflow and report: "):
        assert stage in out
    page = run(installed, tmp_path, mcc, "report", "first", "--out", "page").splitlines()[0]
    assert "<html" in (tmp_path / page).read_text()
