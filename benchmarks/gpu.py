"""What one GPU makes of a training step, of the loader, of a run and of evaluation: one page, in at most 8 minutes.

    python benchmarks/gpu.py --out page                        page/gpu.json, page/gpu.md
    python benchmarks/gpu.py --parts golden steps --out page   some of it
    python benchmarks/gpu.py --device cpu --small --out page   the same at a size that tells nothing, as the tests do

Each part has a budget of seconds. One that fails or takes longer is named in the page, with what it had measured until
then; the others go on. The parts are in `gpu_parts.py`, each with what its rows are.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import platform
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

sys.path.append(str(Path(__file__).parents[1] / "tests" / "support"))  # the recorded steps and the counts of waits

import gpu_parts

from mcc_core.device import chosen_device

LIMIT = 480.0  # seconds of the whole
RESERVE = 15.0  # of them for starting, and for the page


def machine(device: torch.device) -> dict[str, Any]:
    """What the figures are of."""
    found: dict[str, Any] = {
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "CPUs": gpu_parts.processors(),
    }
    if device.type == "cuda":
        gpu = torch.cuda.get_device_properties(device)
        found |= {
            "GPU": gpu.name,
            "compute capability": f"{gpu.major}.{gpu.minor}",
            "GPU GiB": round(gpu.total_memory / 2**30, 1),
            "CUDA": torch.version.cuda,
            "cuDNN": torch.backends.cudnn.version(),
        }
    return found


def serve(pipe: Connection) -> None:
    """In a process of its own: run the parts that come by the pipe, and answer with their rows."""
    while (order := pipe.recv()) is not None:
        name, setting = order
        try:
            for row in gpu_parts.PARTS[name].rows(setting):
                pipe.send(("row", row))
        except Exception as error:  # whatever it is, it is said in the page
            pipe.send(("failed", f"{type(error).__name__}: {error}".strip().splitlines()[0]))
        else:
            pipe.send(("done", ""))


class Worker:
    """The process in which parts run; after a part that failed another takes its place, as CUDA may be unusable."""

    def __init__(self) -> None:
        self.process: Any = None

    def run(self, name: str, setting: gpu_parts.Setting) -> dict[str, Any]:
        """A part's rows, its seconds, and `failed` where it did not come to its end in time."""
        began, rows, failed = time.monotonic(), [], ""
        if self.process is None:
            context = multiprocessing.get_context("spawn")
            self.pipe, theirs = context.Pipe()
            self.process = context.Process(target=serve, args=(theirs,))
            self.process.start()
            theirs.close()
        try:
            self.pipe.send((name, setting))
            while True:
                if not self.pipe.poll(max(0.0, began + setting.seconds - time.monotonic())):
                    failed = f"ended after its {setting.seconds:.0f} seconds"
                    break
                kind, found = self.pipe.recv()
                if kind != "row":
                    failed = found
                    break
                rows.append(found)
        except (EOFError, OSError):
            self.process.join(5)
            failed = f"its process ended with exit code {self.process.exitcode}"
        if failed:
            self.end()
        return {"rows": rows, "seconds": round(time.monotonic() - began, 1), "failed": failed}

    def end(self) -> None:
        """End the process, whatever it does."""
        if self.process is not None:
            self.process.kill()
            self.process.join()
            self.pipe.close()
            self.process = None


def measured(
    device: torch.device, parts: Sequence[str], *, small: bool, limit: float = LIMIT, patience: float = 1.0
) -> dict[str, Any]:
    """The page: the machine, and for each part its rows, seconds and what went wrong.

    On a machine that does other work too, all may take `patience` times as long.
    """
    end = time.monotonic() + patience * limit - RESERVE
    page: dict[str, Any] = {"machine": machine(device), "small": small, "parts": {}}
    worker = Worker()
    try:
        for name in parts:
            seconds = min(patience * gpu_parts.PARTS[name].seconds, end - time.monotonic())
            if seconds < 1:
                page["parts"][name] = {"rows": [], "seconds": 0.0, "failed": "no time was left"}
                continue
            page["parts"][name] = worker.run(name, gpu_parts.Setting(str(device), small, seconds))
    finally:
        worker.end()
    return page


def markdown(page: Mapping[str, Any]) -> str:
    """The page for people: a section for each part, a table for each kind of its rows."""
    machine = page["machine"]
    lines = [f"# One step and what is around it on {machine.get('GPU', 'a CPU')}", ""]
    if page["small"]:
        lines += ["Made with `--small`: the figures tell nothing of the speed of any training.", ""]
    lines += [", ".join(f"{name} {value}" for name, value in machine.items()), ""]
    for name, part in page["parts"].items():
        lines += [f"## {name}", "", gpu_parts.PARTS[name].about + f" ({part['seconds']} s)", ""]
        if part["failed"]:
            lines += [f"**Not finished:** {part['failed']}", ""]
        lines += _tables(part["rows"])
    return "\n".join(lines)


def _tables(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    lines: list[str] = []
    kinds: dict[tuple[str, ...], list[Mapping[str, Any]]] = {}
    for row in rows:
        kinds.setdefault(tuple(row), []).append(row)
    for columns, found in kinds.items():
        lines += ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
        lines += ["| " + " | ".join(map(_shown, row.values())) + " |" for row in found] + [""]
    return lines


def _shown(value: object) -> str:
    text = f"{value:.4g}" if isinstance(value, float) else "" if value is None else str(value)
    return text.replace("|", "\\|")


def main() -> None:
    """Measure, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("gpu-page"))
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1")
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--parts", nargs="+", choices=gpu_parts.PARTS, default=list(gpu_parts.PARTS))
    parser.add_argument("--limit", type=float, default=LIMIT, help="seconds of the whole")
    given = parser.parse_args()
    page = measured(chosen_device(given.device), given.parts, small=given.small, limit=given.limit)
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / "gpu.json").write_text(json.dumps(page, indent=2) + "\n")
    (given.out / "gpu.md").write_text(markdown(page))
    print(markdown(page))


if __name__ == "__main__":
    main()
