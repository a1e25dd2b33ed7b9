"""Whether MLflow can be fed."""

from __future__ import annotations

import os
import socket
import time
import uuid

from orchestrator.findings import LIMIT_S, Answer, Level, one_line
from orchestrator.settings import Settings


def mlflow_answers(settings: Settings) -> Answer:
    uri = settings.tracking_uri
    if uri.startswith(("http://", "https://")):
        yield from _server(settings)
        return
    folder = settings.home
    while not folder.exists():
        folder = folder.parent
    if not os.access(folder, os.W_OK):
        yield "fail", f"{uri}: {folder} cannot be written", "choose another MCC_HOME, or let this user write there"
        return
    yield "ok", f"{uri}: embedded, no server", ""


def _server(settings: Settings) -> Answer:
    from urllib.parse import urlsplit

    from mlflow.exceptions import MlflowException

    from orchestrator.tracking import client as mlflow_files

    address = urlsplit(settings.tracking_uri)
    port = address.port or (443 if address.scheme == "https" else 80)
    try:
        socket.create_connection((address.hostname or "", port), timeout=5).close()
    except OSError as error:
        yield "fail", f"{settings.tracking_uri}: {one_line(error)}", "start the server, or mend MLFLOW_TRACKING_URI"
        return
    began = time.perf_counter()
    try:
        client = mlflow_files.client(settings)
        experiment = client.get_experiment_by_name(settings.experiment_name)
    except MlflowException as error:
        text = one_line(error)
        refused = "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD" if "401" in text or "403" in text else ""
        fix = f"set {refused}; behind another host name: --allowed-hosts" if refused else "look at the server's log"
        yield "fail", f"{settings.tracking_uri}: {text}", fix
        return
    spent = 1000 * (time.perf_counter() - began)
    there = "there" if experiment else "not there yet"
    yield "ok", f"{settings.tracking_uri}: {spent:.0f} ms, experiment {settings.experiment_name} {there}", ""
    yield _artifacts(settings.tracking_uri)


def _artifacts(uri: str) -> tuple[Level, str, str]:
    """Whether the server takes artifacts: a few bytes sent through it, and deleted."""
    from mlflow.utils.credentials import get_default_host_creds
    from mlflow.utils.rest_utils import http_request

    where = f"/api/2.0/mlflow-artifacts/artifacts/mcc-doctor/{uuid.uuid4().hex}"
    began = time.perf_counter()
    for method, more in (("PUT", {"data": b"probe"}), ("DELETE", {})):
        answer = http_request(
            get_default_host_creds(uri), where, method, max_retries=0, raise_on_status=False, timeout=LIMIT_S, **more
        )
        if answer.status_code >= 400:
            text = f"artifacts through the server: {method} answers {answer.status_code}"
            return "fail", text, "mlflow server --artifacts-destination s3://...; then look at the server's log"
    return "ok", f"artifacts through the server: {1000 * (time.perf_counter() - began):.0f} ms", ""
