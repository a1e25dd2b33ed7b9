"""A real MLflow server process for tests, for as long as a `with` block; it can be killed and come back."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import mlflow_tables
from s3_server import free_port


@dataclass
class MlflowServer:
    """A server with its database in a folder, and artifacts there or in a bucket."""

    folder: Path
    artifacts: str
    port: int
    environment: Mapping[str, str]
    host: str = "127.0.0.1"
    process: subprocess.Popen[bytes] = field(init=False)

    @property
    def uri(self) -> str:
        return f"http://{self.host}:{self.port}"

    def start(self) -> None:
        """Start the server and wait until it answers."""
        command = [sys.executable, "-m", "mlflow", "server", "--host", self.host, "--port", str(self.port)]
        command += ["--allowed-hosts", f"{self.host}:{self.port}"]
        command += ["--backend-store-uri", f"sqlite:///{self.folder}/mlflow.db", "--workers", "1"]
        command += ["--artifacts-destination", self.artifacts]
        mlflow_tables.prepare(self.folder / "mlflow.db")
        quiet = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
        with (self.folder / "mlflow.log").open("ab") as log:
            self.process = subprocess.Popen(
                command,
                env=os.environ | quiet | dict(self.environment),
                cwd=self.folder,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        deadline = time.monotonic() + 300
        while True:
            try:
                with urllib.request.urlopen(f"{self.uri}/health", timeout=2):
                    return
            except OSError as error:
                if time.monotonic() > deadline or self.process.poll() is not None:
                    raise RuntimeError((self.folder / "mlflow.log").read_text()[-3000:]) from error
                time.sleep(0.2)

    def kill(self) -> None:
        """End the server and its workers at once."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(timeout=20)


@contextlib.contextmanager
def mlflow_server(
    folder: Path,
    artifacts: str | None = None,
    environment: Mapping[str, str] | None = None,
    host: str = "127.0.0.1",
) -> Iterator[MlflowServer]:
    """Start a server; `artifacts` may be `s3://bucket/prefix` with the keys in `environment`."""
    where = artifacts or (folder / "artifacts").as_uri()
    server = MlflowServer(folder, where, free_port(host), environment or {}, host)
    try:
        server.start()
        yield server
    finally:
        server.kill()
