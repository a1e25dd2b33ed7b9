"""An empty MLflow database, made once for a whole run of tests: MLflow's own migrations take seconds each time.

What tests get is a copy of what MLflow made, in a file that has no tables yet.
"""

from __future__ import annotations

import atexit
import fcntl
import os
import shutil
import sqlite3
import tempfile
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

_FOLDER = "MCC_TEST_TABLES"  # of the run, for its processes


def begin_run() -> None:
    """Make the folder that the processes of this run share; it ends with this process."""
    if _FOLDER not in os.environ:
        os.environ[_FOLDER] = tempfile.mkdtemp(prefix="mcc-tables-")
        atexit.register(shutil.rmtree, os.environ[_FOLDER], ignore_errors=True)


def share() -> None:
    """From now on, databases that MLflow makes in this process get copies of the run's tables."""
    from mlflow.store.db import utils
    from mlflow.store.model_registry import sqlalchemy_store as registry

    if _FOLDER in os.environ and not isinstance(utils._initialize_tables, _Copying):
        copying = _Copying(Path(os.environ[_FOLDER]), utils._initialize_tables)
        for module in (utils, registry):
            vars(module)["_initialize_tables"] = copying


def prepare(file: Path) -> None:
    """Make a database for an MLflow server, which is a process of its own."""
    from mlflow.store.db import utils

    share()
    if isinstance(utils._initialize_tables, _Copying) and not file.exists():
        shutil.copy(utils._initialize_tables.made(), file)


class _Copying:
    def __init__(self, folder: Path, of_mlflow: Callable[[Any], None]) -> None:
        self.folder, self.of_mlflow = folder, of_mlflow

    def __call__(self, engine: Any) -> None:
        from mlflow.store.db.utils import _is_empty_database

        file = engine.url.database
        if engine.dialect.name != "sqlite" or file in (None, "", ":memory:") or not _is_empty_database(engine):
            self.of_mlflow(engine)
            return
        with closing(sqlite3.connect(self.made())) as made, closing(sqlite3.connect(file)) as target:
            made.backup(target)

    def made(self) -> Path:
        from sqlalchemy import create_engine

        file = self.folder / "mlflow.db"
        if not file.exists():
            with (self.folder / "lock").open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                if not file.exists():
                    engine = create_engine(f"sqlite:///{file}.part")
                    self.of_mlflow(engine)
                    engine.dispose()
                    os.replace(f"{file}.part", file)
        return file
