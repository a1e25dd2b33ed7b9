"""An evaluation as an MLflow run: parameters, scores, files. One run per evaluation, however often it is made."""

from __future__ import annotations

import time
from pathlib import Path

from mcc_core.errors import MCCError
from mcc_core.evaluation.protocols import PROTOCOLS
from mcc_core.files import json_digest
from orchestrator.evaluation.run import Evaluation
from orchestrator.redaction import redact
from orchestrator.settings import Settings
from orchestrator.text import reason
from orchestrator.tracking import client as mlflow_files
from orchestrator.tracking.names import metric_name

_BATCH = 1000  # metrics in one request


def track_evaluation(settings: Settings, result: Evaluation, checkpoint: Path) -> str:
    """Log an evaluation; returns the run's id. A setting's scores have its name in front where it is not a protocol's.

    Raises MCCError, in one line, when MLflow does not answer: the files in `result.folder` have everything.
    """
    import mlflow.exceptions
    from mlflow.entities import Metric, Param

    digest = json_digest(result.header, 32)
    now = int(1000 * time.time())
    try:
        client = mlflow_files.client(settings)
        experiment = mlflow_files.experiment(client, settings)
        known = client.search_runs([experiment], f"tags.`mcc.evaluation` = '{digest}'", max_results=1)
        if known:
            run = str(known[0].info.run_id)
        else:
            tags = {
                "mcc.kind": "evaluation",
                "mcc.evaluation": digest,
                "mcc.checkpoint": str(result.header["checkpoint"]),
            }
            name = f"{checkpoint.stem} {result.header['split']}"
            run = str(client.create_run(experiment, now, tags, name).info.run_id)
            params = {"checkpoint": str(checkpoint), "split": result.header["split"], "images": len(result.images)}
            params["precision"] = result.header.get("precision", "float32")
            client.log_batch(run, params=[Param(key, str(value)) for key, value in params.items()])
        scores = [
            Metric(metric_name(m.key if name in PROTOCOLS else f"{name}/{m.key}"), m.value, now, 0)
            for name, metrics in result.metrics.items()
            for m in metrics
        ]
        for start in range(0, len(scores), _BATCH):
            client.log_batch(run, metrics=scores[start : start + _BATCH])
        for file in ("metrics.json", "metrics.csv"):
            client.log_artifact(run, str(result.folder / file))
        client.set_terminated(run, "FINISHED")
    except (mlflow.exceptions.MlflowException, OSError) as error:
        raise MCCError(redact(f"MLflow at {settings.tracking_uri}: {type(error).__name__}: {reason(error)}")) from None
    return run
