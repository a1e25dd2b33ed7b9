"""Hosts on one machine: each a network, process and mount namespace of its own, with its own name, /tmp and /dev/shm,
on a bridge that the machine itself is on too. Needs root, `ip` (iproute2) and `unshare` (util-linux)."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class Host:
    """A host that runs one command. Killing it takes everything that it started, as a power cut does."""

    name: str
    address: str
    link: str  # the machine's end of its cable
    log: Path
    process: subprocess.Popen[bytes] | None = field(default=None, init=False)

    def run(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        """Start the host's command."""
        script = f"mount -t tmpfs tmpfs /tmp && mount -t tmpfs tmpfs /dev/shm && hostname {self.name} && exec "
        inside = ["unshare", "--mount", "--uts", "--pid", "--fork", "--kill-child", "--mount-proc"]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                ["ip", "netns", "exec", self.name, *inside, "bash", "-c", script + shlex.join(command)],
                env=dict(environment),
                cwd="/",
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )

    def kill(self) -> None:
        """End everything on the host at once."""
        if self.process is not None:
            self.process.kill()
            self.process.wait(timeout=20)

    def cut_power(self) -> None:
        """End everything on the host at once, and no connection is closed: others hear nothing at all."""
        self.cable(False)
        self.kill()

    def cable(self, plugged: bool) -> None:
        """Pull out the network cable, or put it back."""
        _ip("link", "set", self.link, "up" if plugged else "down")


class Network:
    """A bridge with hosts on it; the machine itself has the address `gateway`."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.hosts = folder, list[Host]()
        self._bridge, self._net = f"mcc{os.getpid()}", f"10.213.{os.getpid() % 256}"
        self.gateway = f"{self._net}.1"

    def add(self, name: str) -> Host:
        """A new host, named after `name`."""
        number = len(self.hosts) + 2
        own = f"{self._bridge}-{name}"
        outer, inner = f"{self._bridge}v{number}", f"{self._bridge}n{number}"
        host = Host(own, f"{self._net}.{number}", outer, self.folder / f"{name}.log")
        self.hosts.append(host)
        _ip("netns", "add", own)
        _ip("link", "add", outer, "type", "veth", "peer", "name", inner, "netns", own)
        _ip("link", "set", outer, "master", self._bridge, "up")
        for words in (
            ("addr", "add", f"{host.address}/24", "dev", inner),
            ("link", "set", inner, "up"),
            ("link", "set", "lo", "up"),
        ):
            _ip("-netns", own, *words)
        return host

    def _open(self) -> None:
        _ip("link", "add", self._bridge, "type", "bridge")
        _ip("addr", "add", f"{self.gateway}/24", "dev", self._bridge)
        _ip("link", "set", self._bridge, "up")

    def _close(self) -> None:
        for host in self.hosts:
            host.kill()
        time.sleep(0.2)
        for host in self.hosts:
            with contextlib.suppress(OSError):
                _ip("netns", "del", host.name)
        with contextlib.suppress(OSError):
            _ip("link", "del", self._bridge)


@contextlib.contextmanager
def network(folder: Path) -> Iterator[Network]:
    """A network for as long as a `with` block. Raises OSError where the machine does not allow it."""
    made = Network(folder)
    try:
        made._open()
        yield made
    finally:
        made._close()


def ray_node(host: Host, environment: Mapping[str, str], head: Host, cpus: int = 2) -> None:
    """`ray start` on a host, as its manual has it."""
    ray = [str(Path(sys.executable).parent / "ray"), "start", "--block", "--num-cpus", str(cpus)]
    ray += ["--node-ip-address", host.address, "--object-store-memory", str(128 << 20)]
    where = ["--head", "--dashboard-host", "0.0.0.0"] if host is head else ["--address", f"{head.address}:6379"]
    host.run([*ray, *where], environment)


def wait_for_nodes(address: str, number: int, timeout: float = 180) -> None:
    """Until so many nodes are part of the cluster whose dashboard is at an address."""
    deadline, alive = time.monotonic() + timeout, 0
    while alive < number:
        if time.monotonic() > deadline:
            raise RuntimeError(f"{alive} of {number} nodes came up (a Docker engine here? iptables -P FORWARD ACCEPT)")
        time.sleep(1)
        with contextlib.suppress(OSError, ValueError, KeyError):
            with urllib.request.urlopen(f"{address}/nodes?view=summary", timeout=5) as answer:
                nodes = json.load(answer)["data"]["summary"]
            alive = sum(node["raylet"]["state"] == "ALIVE" for node in nodes)


def _ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True)
    if done.returncode:
        raise OSError(f"ip {' '.join(words)}: {done.stderr.strip()}")
