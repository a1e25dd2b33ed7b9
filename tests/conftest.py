"""Options and environment of the whole suite."""

from __future__ import annotations

import os

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("DO_NOT_TRACK", "true")


# Files whose tests start Ray again and again. They begin first, so that no process is left with one at the end.
_LONG = (
    *("docs/test_commands.py", "workflows/test_control.py", "execution/test_runner.py", "workflows/test_posthoc.py"),
    *("worker/test_worker.py", "execution/test_search_runs.py", "orchestrator/test_secrets.py"),
    *("evaluation/test_run.py", "methods/test_seam.py", "cli/test_cli.py"),
)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="run the tests marked slow too")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: not item.path.as_posix().endswith(_LONG))
    if not config.getoption("--slow"):
        skip = pytest.mark.skip(reason="slow: minutes long; run `make test-slow`")
        for item in items:
            if item.get_closest_marker("slow"):
                item.add_marker(skip)
