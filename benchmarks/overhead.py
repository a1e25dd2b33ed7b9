"""Seconds of a trial outside its training loop: the documented Ray pattern (a Tune function that builds a TorchTrainer)
against this orchestrator's, with single-worker trials of a few iterations, by turns.

    python benchmarks/overhead.py [--trials 6] [--rounds 3] [--concurrent 2]

A slot is the time from one trial's start to the next's where they follow each other; outside is the slot less the
training loop itself, which both run the same way. The start of the cluster is in neither. The documented pattern keeps
no record but one report; ours also writes its event log, pictures and checkpoints.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests" / "support"))


def plain_loop(config: dict[str, Any]) -> None:
    """A worker of Ray Train: the same engine and one report."""
    import ray.train
    import torch

    from mcc_core.data.index import build_index
    from mcc_core.methods.mcc.config import Experiment
    from mcc_core.training.engine import Callbacks, train
    from mcc_core.validation import validate

    torch.set_num_threads(1)
    experiment = validate(Experiment, config["experiment"], "plain")
    index = build_index(experiment.data, Path(config["home"]))
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as work:
        train(experiment, config["seed"], index, device=torch.device("cpu"), workdir=Path(work), callbacks=Callbacks())
    with Path(config["times"]).open("a") as stream:
        stream.write(f"{time.perf_counter() - began}\n")
    ray.train.report({"done": 1})


def plain_drive(config: dict[str, Any]) -> None:
    """The pattern of Ray's documentation: a Tune function that builds a trainer."""
    import ray.train
    from ray.train.torch import TorchTrainer
    from ray.tune.integration.ray_train import TuneReportCallback

    TorchTrainer(
        plain_loop,
        train_loop_config=config,
        scaling_config=ray.train.ScalingConfig(num_workers=1, resources_per_worker={"CPU": 1}),
        run_config=ray.train.RunConfig(
            name=f"train-{config['seed']}",
            storage_path=config["home"],
            callbacks=[TuneReportCallback()],  # type: ignore[list-item]
        ),
    ).fit()


def run_one(kind: str, trials: int, concurrent: int) -> dict[str, float]:
    """Run the trials one way: seconds of a slot, and of the loop where it is measured."""
    from tiny import settings_in, tiny_sweep

    from orchestrator.cluster.session import cluster
    from orchestrator.execution.runner import run
    from orchestrator.planning.plan import plan_sweep

    with tempfile.TemporaryDirectory() as folder:
        settings, times = settings_in(Path(folder)), Path(folder) / "times"
        sweep = tiny_sweep(seeds=list(range(trials)), set={"train.panels": 0}, resources={"max_concurrent": concurrent})
        plan = plan_sweep(sweep, "overhead", settings=settings, estimate=False)
        with cluster(settings):
            began = time.perf_counter()
            if kind == "ours":
                results = run(plan, settings)
                assert all(r.status == "finished" for r in results), results
            else:
                experiment = plan.trials[0].experiment.model_dump(mode="json")
                _run_plain(experiment, trials, concurrent, str(settings.home), str(times))
            slot = (time.perf_counter() - began) * concurrent / trials
        found = {"slot_s": slot}
        if times.exists():
            found["loop_s"] = statistics.mean(map(float, times.read_text().split()))
    return found


def _run_plain(experiment: dict[str, Any], trials: int, concurrent: int, home: str, times: str) -> None:
    from ray import tune

    space = {"experiment": experiment, "home": home, "times": times, "seed": tune.grid_search(list(range(trials)))}
    tuner = tune.Tuner(
        tune.with_resources(plain_drive, {"CPU": 0.01}),
        param_space=space,
        tune_config=tune.TuneConfig(max_concurrent_trials=concurrent),
        run_config=tune.RunConfig(name="plain", storage_path=home, verbose=0),
    )
    assert not tuner.fit().errors
    assert len(Path(times).read_text().split()) == trials


def measure(kind: str, trials: int, concurrent: int) -> dict[str, float]:
    """`run_one` in a process of its own."""
    numbers = ["--trials", str(trials), "--concurrent", str(concurrent)]
    child = subprocess.run(
        [sys.executable, __file__, "--kind", kind, *numbers],
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        text=True,
        timeout=900,
        check=True,
    )
    return dict(json.loads(child.stdout.strip().splitlines()[-1]))


def main() -> None:
    """Print seconds outside the loop, both ways, and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--concurrent", type=int, default=2)
    parser.add_argument("--kind", choices=["plain", "ours"], help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.kind:
        print(json.dumps(run_one(chosen.kind, chosen.trials, chosen.concurrent)), flush=True)
        return
    outside: dict[str, list[float]] = {"plain": [], "ours": []}
    for number in range(chosen.rounds):
        plain = measure("plain", chosen.trials, chosen.concurrent)
        ours = measure("ours", chosen.trials, chosen.concurrent)
        outside["plain"].append(plain["slot_s"] - plain["loop_s"])
        outside["ours"].append(ours["slot_s"] - plain["loop_s"])
        print(f"round {number + 1}: loop {plain['loop_s']:.2f} s, outside {outside['plain'][-1]:.2f} and "
              f"{outside['ours'][-1]:.2f} s", flush=True)  # fmt: skip
    plain_s, ours_s = (statistics.median(outside[kind]) for kind in ("plain", "ours"))
    print(f"outside the loop, medians: documented pattern {plain_s:.2f} s, ours {ours_s:.2f} s, "
          f"ours / documented {ours_s / plain_s:.2f}")  # fmt: skip


if __name__ == "__main__":
    main()
