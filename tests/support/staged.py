"""The smallest sweep of stages: seeds, labels by a threshold."""

from __future__ import annotations

from typing import Any

from tiny import TINY

from orchestrator.planning.plan import Plan
from orchestrator.planning.stage_plan import plan_stages
from orchestrator.settings import Settings
from orchestrator.spec.stages_file import StagesFile

SEEDS = TINY | {"train.eval_train_images": 8}
SHAPES = {name: value for name, value in SEEDS.items() if name.startswith("data.")}


# The pairs that a boundary network learns of, the network, and seeds that walk between its boundaries.
BOUNDARIES: dict[str, Any] = {
    "unsure": {"of": "seeds", "refine": {"kind": "none", "threshold": 0.3, "foreground": 0.5}},
    "boundaries": {"of": "unsure", "base": "irn-tiny", "set": SHAPES},
    "refine": {"of": "seeds", "network": "boundaries", "refine": {"kind": "irn", "irn": {"log_steps": 2}}},
}


def staged(**fields: Any) -> StagesFile:
    """Seeds of a tiny network, and labels of two thresholds; `fields` are further stages, or fields of the sweep."""
    stages: dict[str, Any] = {
        "seeds": {"base": "tiny", "set": SEEDS},
        "refine": {"of": "seeds", "refine": {"kind": "none"}, "parameters": {"refine.threshold": [0.3, 0.5]}},
    }
    own = {name: value for name, value in fields.items() if name in StagesFile.model_fields and name != "seeds"}
    stages |= {name: value for name, value in fields.items() if name not in own}
    return StagesFile.model_validate({"name": "staged", "stages": stages} | own)


def staged_plan(settings: Settings, *, overrides: dict[str, Any] | None = None, **fields: Any) -> Plan:
    """The plan of such a sweep, without an estimate of its time."""
    return plan_stages(staged(**fields), "s.yaml", overrides, settings=settings, estimate=False)
