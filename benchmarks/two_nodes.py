"""A sweep on a cluster of two hosts, sent from a third: its submitter is killed, then one of the hosts is lost.

    python benchmarks/two_nodes.py [--fault power|cable] [--keep FOLDER]

`power` ends everything on the host; `cable` takes its network away, and gives it back when another attempt at its trial
is under way.

The hosts have network, process and mount namespaces of their own (tests/support/hosts.py), each a `ray start` with the
defaults. Storage is an S3 server and tracking an MLflow server that all reach over the network; nothing else is shared
but the Python environment. Prints a log of what ran where, and holds every trial against an undisturbed run: each
recorded step once, in the event log and in MLflow, and the final weights equal to the bit. Needs root.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))

from chaos_lab import EVAL_EVERY, Lab, environment_of
from hosts import network, ray_node, wait_for_nodes
from mlflow_server import mlflow_server
from s3_server import s3_server

SEEDS = [0, 1, 2, 3]
QUIET = {
    "RAY_AUTH_MODE": "disabled",
    "RAY_USAGE_STATS_ENABLED": "0",
    "OMP_NUM_THREADS": "1",
    "RAY_TRAIN_V2_ENABLED": "1",
}
BEGAN = time.time()


def say(text: str) -> None:
    print(f"{time.time() - BEGAN:6.1f} s  {text}", flush=True)


def hosts_of(lab: Lab) -> dict[int, list[str]]:
    """Where each trial's attempts ran, by seed."""
    ran = {trial: [e["info"]["host"] for e in lab.events(trial) if e["kind"] == "start"] for trial in range(len(SEEDS))}
    return {trial: [name.rsplit("-", 1)[1] for name in names] for trial, names in ran.items()}


def late(lab: Lab, trial: int, since: float) -> list[str]:
    """What a trial's first attempt stored after a moment, but for what it printed."""
    files = lab.storage.files(f"trials/{lab.trials()[trial]}")
    named = [one.key for one in files if one.modified > since and ("/0001-" in one.key or "-0001." in one.key)]
    return [key for key in named if "/logs/" not in key]


def run(folder: Path, fault: str) -> bool:
    """Whether everything is as it should be."""
    fields: dict[str, Any] = {"seeds": SEEDS, "resources": {"max_concurrent": 2}}
    with contextlib.ExitStack() as stack:
        net = stack.enter_context(network(folder))
        (folder / "s3").mkdir()
        (folder / "mlflow").mkdir()
        s3 = stack.enter_context(s3_server(folder / "s3", host=net.gateway))
        stack.enter_context(environment_of(s3.environment | QUIET))
        mlflow = stack.enter_context(mlflow_server(folder / "mlflow", host=net.gateway))
        say("S3 and MLflow answer")
        head, other = net.add("head"), net.add("other")
        for host in (head, other):
            ray_node(host, dict(os.environ), head)
        on = f"http://{head.address}:8265"
        wait_for_nodes(on, 2)
        say("two nodes are up")
        lab = Lab(folder / "laptop", MCC_STORAGE=f"s3://{s3.bucket}/two", MLFLOW_TRACKING_URI=mlflow.uri)
        lab.fields |= fields
        submitter = lab.submit("--on", on, "--remote-python", sys.executable)
        lab.until(lambda: lab.reached(EVAL_EVERY + 20, 0) and lab.reached(EVAL_EVERY + 20, 1), submitter, 300)
        say(f"two trials run, on {hosts_of(lab)}")
        os.killpg(submitter.pid, signal.SIGKILL)
        submitter.wait()
        job = lab.tail().split("job ")[1].split(";")[0]
        (folder / "elsewhere").mkdir()
        attach = [sys.executable, "-c", "from orchestrator.cli import main; main()", "sweep", "attach", job, "--on", on]
        attached = subprocess.Popen(attach, cwd=folder / "elsewhere", env=lab.environment, stdout=subprocess.PIPE)
        say("submitter killed; attached again from another folder")
        (lost,) = [trial for trial in (0, 1) if hosts_of(lab)[trial] == ["other"]]
        moment = time.time()
        if fault == "power":
            other.kill()
            say(f"host `other` killed, with the trial of seed {lost}")
        else:
            other.cable(False)
            say(f"cable of host `other` pulled out; it trains seed {lost}")
            lab.until(lambda: len(hosts_of(lab)[lost]) > 1, None, 300)
            other.cable(True)
            say(f"cable back in; by now seed {lost} runs on {hosts_of(lab)[lost][-1]} too")
        back = time.time()
        out, _ = attached.communicate(timeout=900)
        say(f"the job ended, attach said {attached.returncode}")
        (folder / "attached.txt").write_bytes(out)
        for trial, names in hosts_of(lab).items():
            say(f"seed {trial} ran on {', then '.join(names)}")
        print(f"the trial went on {lab.recovery(moment, lost):.1f} s after its host was killed; ", end="")
        print(f"{lab.repeated(lost)} recorded iterations trained again")
        lone = Lab(folder / "undisturbed", MCC_STORAGE=str(folder / "undisturbed" / "home"))
        lone.fields |= fields
        lone.environment.pop("RAY_ADDRESS", None)
        lone.finish(lone.submit())
        good = attached.returncode == 0
        if fault == "cable":
            time.sleep(20)
            print(f"stored by the first attempt after that: {late(lab, lost, back) or 'nothing'}")
            good &= not late(lab, lost, back)
        for trial in range(len(SEEDS)):
            complete, equal = lab.held_against(lone, trial)
            good &= complete and equal
            print(f"seed {trial}: history complete: {complete}, final model equal: {equal}", flush=True)
        return good


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fault", choices=["power", "cable"], default="power")
    parser.add_argument("--keep", type=Path, help="work here and leave everything")
    chosen = parser.parse_args()
    with contextlib.ExitStack() as stack:
        folder = chosen.keep or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="nodes-")))
        folder.mkdir(parents=True, exist_ok=True)
        return 0 if run(folder, chosen.fault) else 1


if __name__ == "__main__":
    sys.exit(main())
