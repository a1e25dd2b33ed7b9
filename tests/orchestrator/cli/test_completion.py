"""Completion in a real bash, with the script that the command itself gives."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

BIN = Path(sys.executable).parent
ROOT = Path(__file__).parents[3]
pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")

COMPLETE = """
eval "$(_MCC_COMPLETE=source_bash mcc)"
complete -p mcc
COMP_WORDS=("$@") COMP_CWORD=$(($# - 1))
_mcc_completion mcc
printf '%s\\n' "${COMPREPLY[@]}"
"""


def bash(script: str, *arguments: str, home: Path) -> subprocess.CompletedProcess[str]:
    env = os.environ | {"PATH": f"{BIN}:{os.environ['PATH']}", "MCC_HOME": str(home), "HOME": str(home)}
    command = ["bash", "--norc", "-c", script, "bash", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=env, cwd=ROOT, timeout=60)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["swe"], {"sweep"}),
        (["sweep", "st"], {"status", "stop"}),
        (["sweep", "submit", "--max"], {"--max-concurrent"}),
        (["train", "ti"], {"tiny"}),
        (["train", "mcc_core/presets/v"], {"mcc_core/presets/voc.yaml"}),
        (["train", "tiny", "--set", "mask.ra"], {"mask.ratio="}),
        (["sweep", "plan", "x.yaml", "--base", "v"], {"voc"}),
        (["reproduce", "voc-t"], {"voc-table1", "voc-table2"}),
        (["schema", ""], {"experiment", "sweep"}),
        (["sweep", "status", "m"], {"mine-1234"}),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bash_completes(words: list[str], expected: set[str], tmp_path: Path) -> None:
    for name in ("mine-1234", "other-5678"):
        (tmp_path / "sweeps" / name).mkdir(parents=True)
    done = bash(COMPLETE, "mcc", *words, home=tmp_path)
    registered, *found = done.stdout.splitlines()
    assert "_mcc_completion mcc" in registered, done.stderr
    assert set(found) == expected


def test_completion_installs_itself(tmp_path: Path) -> None:
    done = bash("mcc --install-completion; true", home=tmp_path)
    assert "bash completion installed" in done.stdout, done.stderr
    script = "source ~/.bashrc; complete -p mcc"
    assert "_mcc_completion mcc" in bash(script, home=tmp_path).stdout


def test_completing_values_imports_nothing_heavy() -> None:
    script = "import sys\nfrom orchestrator.cli import completion as c\n"
    script += "c.experiments(''), c.fields(''), c.tables(''), c.sweep_names('')\n"
    script += "print([m for m in ('torch', 'ray', 'mlflow', 'boto3') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == "[]", done.stderr
