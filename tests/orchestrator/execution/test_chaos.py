"""Whole sweeps under injected faults, as `benchmarks/chaos.py` does it: nothing lost, the same model to the bit."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

FILE = Path(__file__).parents[3] / "benchmarks" / "chaos.py"


def _script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("chaos", FILE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["chaos"] = module
    spec.loader.exec_module(module)
    return module


chaos = _script()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return chaos.undisturbed(tmp_path_factory.mktemp("chaos") / "undisturbed")


@pytest.mark.slow
@pytest.mark.parametrize("name", chaos.SCENARIOS)
def test_nothing_is_lost(name: str, undisturbed: Any, tmp_path: Path) -> None:
    verdict = chaos.SCENARIOS[name](tmp_path / name, undisturbed)
    assert verdict.complete and verdict.equal, verdict
