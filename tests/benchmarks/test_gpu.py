"""The page of a GPU is made at a small size on a CPU; a part that fails is in it, and the others are too."""

from __future__ import annotations

import json
import multiprocessing
import time
from collections.abc import Iterator
from typing import Any

import gpu
import gpu_parts
import pytest
import torch

CPU = torch.device("cpu")


@pytest.mark.slow
def test_the_page_on_a_cpu() -> None:
    page = gpu.measured(CPU, list(gpu_parts.PARTS), small=True, patience=10)  # beside other tests
    parts = page["parts"]
    assert {name: part["failed"] for name, part in parts.items()} == dict.fromkeys(gpu_parts.PARTS, "")
    assert json.loads(json.dumps(page)) == page

    def column(part: str, name: str) -> list[Any]:
        return [row[name] for row in parts[part]["rows"] if name in row]

    steps = parts["golden"]["rows"]
    assert not [row for row in steps if "failed" in row]
    assert {row["method"] for row in steps} == {"mcc", "toco", "afa", "fsr"}
    assert sum(row["out of float32's tolerance"] for row in steps if row["precision"] == "float32") == 0
    drift = {r["precision"]: r["largest error"] for r in steps if r["figure"] == "loss" and r["method"] == "mcc"}
    assert drift["float32"] < 1e-5 < drift["bfloat16"]
    assert {"ours", "plain"} == set(column("steps", "form")) and min(column("steps", "step ms")) > 0
    assert min(column("counts", "operations")) > 1000 and column("counts", "constants") == [0, 0]
    assert column("counts", "waits of a step, counted without a GPU")[0] <= 2
    assert set(column("training", "relative gap")) == {0.0} and column("training", "iterations") == [4]
    assert min(column("evaluation", "images/s")) > 0 and min(column("loader", "images/s")) > 0
    assert column("compiling", "pass") == ["compiled", "CUDA graph", "as it is"] and not column("compiling", "failed")
    assert column("compiling", "given up") == [0, 0] and min(column("compiling", "step ms")) > 0
    assert column("compiling", "graphs")[1] > 0
    text = gpu.markdown(page)
    assert all(f"## {name}\n" in text for name in gpu_parts.PARTS) and "Not finished" not in text


def _breaks(setting: gpu_parts.Setting) -> Iterator[dict[str, Any]]:
    yield {"measured": 1.0}
    raise RuntimeError("no such kernel\nand more")


def _lasts(setting: gpu_parts.Setting) -> Iterator[dict[str, Any]]:
    yield {"measured": 2.0}
    time.sleep(60)


def _ends(setting: gpu_parts.Setting) -> Iterator[dict[str, Any]]:
    yield {"measured": 3.0}


def test_a_part_that_fails_is_said_and_the_others_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = {"breaks": (60.0, _breaks), "lasts": (2.0, _lasts), "ends": (60.0, _ends)}
    monkeypatch.setattr(
        gpu_parts, "PARTS", {name: gpu_parts.Part(most, name, rows) for name, (most, rows) in seconds.items()}
    )
    monkeypatch.setattr(multiprocessing, "get_context", _forking)
    page = gpu.measured(CPU, list(seconds), small=True)
    assert [part["rows"] for part in page["parts"].values()] == [[{"measured": float(n)}] for n in (1, 2, 3)]
    failed = [part["failed"] for part in page["parts"].values()]
    assert failed == ["RuntimeError: no such kernel", "ended after its 2 seconds", ""]
    assert gpu.markdown(page).count("Not finished") == 2
    late = gpu.measured(CPU, ["ends"], small=True, limit=gpu.RESERVE)
    assert late["parts"]["ends"]["failed"] == "no time was left"


def _forking(kind: str, start: Any = multiprocessing.get_context) -> Any:
    """A fork has the parts of this process."""
    return start("fork")
