"""Options and environment of the whole suite, and which process runs which file."""

from __future__ import annotations

import os
import sys

import mlflow_tables
import pytest
from hypothesis import settings
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_worker_niceness", "0")  # Ray's is 15: other tests would starve its workers
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("DO_NOT_TRACK", "true")
mlflow_tables.begin_run()

# Files whose tests start Ray. Two Rays at once on two cores take several times as long as one after the other.
_RAY = (
    *("orchestrator/execution/test_runner.py", "orchestrator/execution/test_search_runs.py"),
    *("docs/test_commands.py", "orchestrator/test_secrets.py", "orchestrator/evaluation/test_run.py"),
)
# Without Ray, and long: not left for the end, when the other process has nothing to do.
_LONG = (
    *("orchestrator/worker/test_worker.py", "orchestrator/workflows/test_posthoc.py", "methods/test_contract.py"),
    *("orchestrator/workflows/test_control.py", "orchestrator/cli/test_cli.py"),
)


# Of the tests that name no number of their own. `make test-slow` runs all of them again, with more.
settings.register_profile("quick", max_examples=100)
settings.register_profile("thorough", max_examples=1000)


def pytest_configure(config: pytest.Config) -> None:
    settings.load_profile("thorough" if config.getoption("--slow") else "quick")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="run the tests marked slow too")


class _Scheduling(LoadScopeScheduling):  # type: ignore[misc]  # pytest-xdist hides its types
    """A file is run by one process, all files that start Ray by the same."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.split("::", 1)[0]
        return "ray" if file.endswith(_RAY) else file


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> LoadScopeScheduling:
    return _Scheduling(config, log)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Files that take long begin first."""
    items.sort(key=_rank)
    skip = pytest.mark.skip(reason="slow: minutes long; run `make test-slow`")
    for item in items:
        if item.get_closest_marker("slow") and not config.getoption("--slow"):
            item.add_marker(skip)


def pytest_collection_finish() -> None:
    if "mlflow" in sys.modules:
        mlflow_tables.share()


def _rank(item: pytest.Item) -> int:
    path = item.path.as_posix()
    return 0 if path.endswith(_RAY) else 1 if path.endswith(_LONG) else 2
