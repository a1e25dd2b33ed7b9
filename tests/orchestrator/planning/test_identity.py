"""A trial's identity covers the source that its training runs."""

from __future__ import annotations

import grimp

from orchestrator.planning.identity import _NOT_TRAINING

# Imported by training, but for messages, pictures, the list of methods and the names that others' files use.
HARMLESS = {"errors", "visualize", "registry", "published"}


def test_what_training_imports_is_part_of_it() -> None:
    graph = grimp.build_graph("mcc_core", cache_dir=None)
    run = {name.rsplit(".", 1)[-1] for name in graph.find_upstream_modules("mcc_core.training.engine")}
    assert {name for name in run if f"{name}.py" in _NOT_TRAINING} == HARMLESS
