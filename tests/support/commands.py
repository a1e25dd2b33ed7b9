"""`mcc` as a process of its own, without seconds of imports: each command is a fork of a process that has them done.

    commands.run("sweep", "list", cwd=folder, env={"MCC_HOME": ...})
    commands.run_program(folder / "page.py", cwd=folder, env={})

A command has its own process group, folder, environment, standard streams and exit, as from a shell. Ray, which reads
the environment as it is imported, is imported by each. Tests that kill a command, or start it from Ray's side, use the
real `mcc` beside the Python that runs them.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any, NoReturn

import mlflow_tables

MCC = Path(sys.executable).with_name("mcc")
_PRELOADED = (
    *("timm", "pandas", "PIL.Image", "pyarrow.fs", "jinja2", "pydantic", "rich.console", "typer"),
    *("mcc_core.methods.registry", "mcc_core.evaluation.scoring", "mcc_core.training.engine"),
    *("orchestrator.cli.app", "orchestrator.planning.plan", "orchestrator.planning.stage_plan"),
    *("orchestrator.workflows.compare", "orchestrator.workflows.control", "orchestrator.workflows.terminal"),
    *("orchestrator.reports.sweep", "orchestrator.analysis.figures", "orchestrator.tracking.sync"),
    *("mlflow.store.tracking.sqlalchemy_store", "mlflow.store.model_registry.sqlalchemy_store"),
)
_SERVER = """
import sys
sys.path.insert(0, sys.argv[2])
import commands
del sys.path[0]  # what lies beside is not the command's
commands.end_with(commands.serve())
"""


def run(*arguments: str, cwd: Path, env: Mapping[str, str], timeout: float = 300) -> subprocess.CompletedProcess[str]:
    """Run `mcc ARGUMENTS` and wait. `env` is added to this process's.

    Raises subprocess.TimeoutExpired; the command and what is in its process group are killed then.
    """
    return _run(("mcc", *arguments), cwd, env, timeout)


def run_program(
    file: Path, *arguments: str, cwd: Path, env: Mapping[str, str], timeout: float = 300
) -> subprocess.CompletedProcess[str]:
    """Run `python FILE ARGUMENTS` in the same way."""
    return _run((str(file.resolve()), *arguments), cwd, env, timeout)


def _run(words: tuple[str, ...], cwd: Path, env: Mapping[str, str], timeout: float) -> subprocess.CompletedProcess[str]:
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err, socket.socket(socket.AF_UNIX) as connection:
        connection.connect(address())
        connection.settimeout(timeout)
        _ask(connection, words, str(cwd), {**os.environ, **env}, [_nothing(), out.fileno(), err.fileno()])
        try:
            code = int(connection.recv(16))
        except TimeoutError:
            raise subprocess.TimeoutExpired(words, timeout) from None
        written = []
        for stream in (out, err):
            stream.seek(0)
            written.append(stream.read().decode(errors="backslashreplace"))
    return subprocess.CompletedProcess(words, code, *written)


def as_program(folder: Path) -> Path:
    """A program `mcc` in a folder, for the PATH of a shell; its standard streams are the shell's."""
    folder.mkdir(exist_ok=True)
    program = folder / "mcc"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -S {Path(__file__).resolve()} {address()} "$@"\n')
    program.chmod(0o755)
    return program


@cache
def address() -> str:
    """The socket of this process's server, which is started by the first call and ends with this process."""
    path = os.path.join(tempfile.mkdtemp(prefix="mcc-"), "socket")
    command = [sys.executable, "-c", _SERVER, path, str(Path(__file__).parent)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
    assert server.stdin is not None and server.stdout is not None
    atexit.register(server.stdin.close)
    assert server.stdout.readline() == b"ready\n"
    return path


def serve() -> Callable[[], object]:
    """Take commands until standard input ends. Returns, in each command's process, what it is to call."""
    for name in _PRELOADED:
        __import__(name)
    if "ray" in sys.modules:
        raise RuntimeError("a preloaded module imports Ray, which reads the environment then")
    mlflow_tables.share()
    gc.collect()
    gc.freeze()  # else each command's first collection copies the memory of all modules
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(sys.argv[1])
        server.listen(16)
        print("ready", flush=True)
        while True:
            ready, _, _ = select.select([server.fileno(), 0], [], [])
            if 0 in ready:
                os._exit(0)
            connection, _ = server.accept()
            with contextlib.suppress(ChildProcessError):
                while os.waitpid(-1, os.WNOHANG) != (0, 0):
                    pass
            if os.fork():
                connection.close()
                continue
            server.close()
            asked, streams = _asked(connection)
            if (command := os.fork()) == 0:
                connection.close()
                return _become(asked, streams)
            _answer(connection, command)


def end_with(main: Callable[[], object]) -> NoReturn:
    """Call `main` and end as Python does, but for taking all modules down: most of a short command's time."""
    code: object = 0
    try:
        main()
    except SystemExit as ending:
        code = ending.code
    if isinstance(code, str):
        print(code, file=sys.stderr)
    threading._shutdown()  # type: ignore[attr-defined]  # waits for threads that are no daemons
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else int(code is not None))


def _answer(connection: socket.socket, command: int) -> None:
    """Wait for a command and say its exit code; kill its group when nobody waits any more."""
    ended = os.pidfd_open(command)
    ready, _, _ = select.select([ended, connection.fileno()], [], [])
    if ended not in ready:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(command, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(command, 0)[1])
    with contextlib.suppress(OSError):
        connection.sendall(str(code).encode())
    os._exit(0)


def _become(asked: dict[str, Any], streams: list[int]) -> Callable[[], object]:
    os.setpgid(0, 0)
    for target, stream in enumerate(streams):
        os.dup2(stream, target)
        os.close(stream)
    os.environ.clear()
    os.environ.update(asked["env"])
    os.chdir(str(asked["cwd"]))
    program, *arguments = asked["words"]
    sys.argv = [str(MCC) if program == "mcc" else program, *arguments]
    inherited = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    sys.path[:0] = [path for path in inherited if path and path not in sys.path]
    sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115
    if program == "mcc":
        from orchestrator.cli import main

        return main
    sys.path.insert(0, os.path.dirname(program))
    return partial(runpy.run_path, program, run_name="__main__")


def _ask(
    connection: socket.socket, words: tuple[str, ...], cwd: str, env: Mapping[str, str], streams: list[int]
) -> None:
    message = json.dumps({"words": words, "cwd": cwd, "env": dict(env)}).encode()
    socket.send_fds(connection, [len(message).to_bytes(8, "big")], streams)
    connection.sendall(message)


def _asked(connection: socket.socket) -> tuple[dict[str, Any], list[int]]:
    head, streams, _, _ = socket.recv_fds(connection, 8, 3)
    length, message = int.from_bytes(head, "big"), b""
    while len(message) < length:
        message += connection.recv(1 << 16)
    return json.loads(message), streams


@cache
def _nothing() -> int:
    return os.open(os.devnull, os.O_RDONLY)


if __name__ == "__main__":
    with socket.socket(socket.AF_UNIX) as asking:
        asking.connect(sys.argv[1])
        _ask(asking, ("mcc", *sys.argv[2:]), os.getcwd(), os.environ, [0, 1, 2])
        sys.exit(int(asking.recv(16)))
