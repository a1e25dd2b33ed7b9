"""`mcc ui`: MLflow's pages on the embedded store."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Annotated

import typer


def ui(
    port: Annotated[int, typer.Option("--port", min=1, max=65535, help="Port of the pages.")] = 5000,
    host: Annotated[str, typer.Option("--host", help="Address to listen on.")] = "127.0.0.1",
) -> None:
    """Open MLflow's pages on your runs.

    Starts MLflow on the embedded store; with MLFLOW_TRACKING_URI set to a server, prints where that is.
    """
    from orchestrator.redaction import redact
    from orchestrator.settings import Settings
    from orchestrator.tracking.liveness import Watcher, settle_soon
    from orchestrator.tracking.queries import page

    settings = Settings.from_environment()
    if settings.tracking_uri.startswith(("http://", "https://")):
        print(f"MLflow is at {redact(settings.tracking_uri.rstrip('/'))}{page(settings)}", flush=True)
        settle_soon(settings)
        return
    settings.home.mkdir(parents=True, exist_ok=True)
    print(f"MLflow: http://{host}:{port}{page(settings)}  (Ctrl-C ends it)", flush=True)
    # One worker without the job runner: with more, each request takes seven times as long.
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", settings.tracking_uri]
    command += ["--artifacts-destination", settings.artifact_root.as_uri(), "--host", host, "--port", str(port)]
    command += ["--workers", "1"]
    quiet = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    try:
        with Watcher(settings):
            code = subprocess.run(command, env=os.environ | quiet, check=False).returncode
    except KeyboardInterrupt:
        code = 0
    raise typer.Exit(code)
