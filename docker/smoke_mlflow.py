"""What MLflow must have after the smoke sweep, asked through its REST API from outside. Needs no package."""

import base64
import json
import os
import sys
import urllib.error
import urllib.request

TRIALS = 7  # of sweeps/mask_ablation.yaml
address = sys.argv[1]
login = base64.b64encode(f"admin:{os.environ['PASSWORD']}".encode()).decode()


def ask(path: str, body: object = None, authorized: bool = True) -> dict:
    request = urllib.request.Request(
        f"{address}/api/2.0/{path}",
        data=None if body is None else json.dumps(body).encode(),
        headers={"Content-Type": "application/json"} | ({"Authorization": f"Basic {login}"} if authorized else {}),
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)


try:
    ask("mlflow/experiments/get-by-name?experiment_name=mcc", authorized=False)
    sys.exit("MLflow answers without a password")
except urllib.error.HTTPError as error:
    assert error.code == 401, error

experiment = ask("mlflow/experiments/get-by-name?experiment_name=mcc")["experiment"]["experiment_id"]
runs = ask("mlflow/runs/search", {"experiment_ids": [experiment], "max_results": 100})["runs"]
trials = [run for run in runs if any(tag["key"] == "mcc.identity" for tag in run["data"]["tags"])]
assert len(trials) == TRIALS and len(runs) == TRIALS + 1, f"{len(trials)} trials in {len(runs)} runs"
for run in trials:
    assert run["info"]["status"] == "FINISHED", run["info"]
    metrics = {metric["key"] for metric in run["data"]["metrics"]}
    assert {"val/seg/single/miou", "val/cam/ms/miou", "loss/total"} <= metrics, metrics
    history = ask(
        f"mlflow/metrics/get-history?run_id={run['info']['run_id']}&metric_key=val/seg/single/miou&max_results=100"
    )["metrics"]
    assert [int(one["step"]) for one in history] == [20, 40, 60], history
parent = next(run for run in runs if run not in trials)
files = {file["path"] for file in ask(f"mlflow/artifacts/list?run_id={parent['info']['run_id']}")["files"]}
assert {"leaderboard.md", "heatmap.png"} <= files, files
pictures = ask(f"mlflow/artifacts/list?run_id={trials[0]['info']['run_id']}")["files"]
assert pictures, "a trial without pictures"
print(f"         MLflow: {len(trials)} finished trials, each evaluation once; {', '.join(sorted(files))}")
