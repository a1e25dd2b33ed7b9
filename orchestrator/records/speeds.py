"""How fast trials were: what each leaves for the estimates of later ones."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from mcc_core.config import Experiment
from mcc_core.files import json_digest
from mcc_core.methods.registry import method_of
from orchestrator.records import layout
from orchestrator.storage.store import Storage


@dataclass(frozen=True)
class Speed:
    """What an earlier trial measured: seconds, and bytes in storage."""

    iteration_s: float
    evaluation_s: float | None  # one evaluation; None when it was not measured
    checkpoint_bytes: float | None = None  # of one checkpoint
    picture_bytes: float | None = None  # of one panel, on average


def speed_profile(experiment: Experiment, threads: float, gpus_per_worker: float) -> str:
    """Name of what decides a trial's speed: network, crop, batch, views, and the processors given to it."""
    content = {
        "method": experiment.method,
        "model": experiment.model.model_dump(mode="json", exclude={"weights"}),
        "train": [getattr(experiment.train, name) for name in ("crop", "batch_size", "accumulate", "workers")],
        "compute": experiment.compute.model_dump(mode="json"),
        "views": method_of(experiment).speed_fields(experiment),
        "processors": [threads, gpus_per_worker],
    }
    return json_digest(content, 16)


def refinement_profile(
    experiment: Experiment, refine: Mapping[str, Any], threads: float, gpus_per_worker: float
) -> str:
    """Name of what decides how long an image's labels take: the network, what refines its maps, the processors."""
    return json_digest([speed_profile(experiment, threads, gpus_per_worker), refine], 16)


def speed_record(profile: str, identity: str, speed: Speed) -> tuple[str, bytes]:
    """(key, content) under which a finished trial leaves its speed."""
    return layout.speed(profile, identity), json.dumps(asdict(speed)).encode()


def past_speeds(storage: Storage, profile: str, limit: int = 20) -> list[Speed]:
    """Speeds that earlier trials of a profile left."""
    records = [json.loads(storage.read(key)) for key in storage.list(layout.speeds(profile))[-limit:]]
    return [Speed(**{f.name: record[f.name] for f in fields(Speed) if f.name in record}) for record in records]
