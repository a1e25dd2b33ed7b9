"""A line beside each number of a reproduced table: on what, how, with which weights and over how many seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mcc_core import checkpoint as checkpoints
from orchestrator.reproduction.lines import Line, Networks, named, summed
from orchestrator.spec.paper_table import PaperTable
from orchestrator.text import network_text, seeds_text


def numbers(lines: Sequence[Line], table: PaperTable, networks: Networks) -> list[str]:
    """A line for each target that was measured; `networks` are files of checkpoints."""
    weights = {}
    for key, file in networks.items():
        saved = checkpoints.load(file)
        weights[key] = network_text(saved.experiment.model.backbone, saved.experiment.model.weights, saved.iteration)
    return [what_it_is(line, table, weights) for line in lines if line.seeds]


def what_it_is(line: Line, table: PaperTable, weights: Mapping[tuple[str, int], str]) -> str:
    """A measured line in words; `weights` by row and seed."""
    target = line.target
    trained = sorted({weights[target.point, seed] for seed in line.seeds if (target.point, seed) in weights})
    data = next((aspect.text for aspect in line.aspects if aspect.name == "data"), "")
    seeds = seeds_text(line.seeds)
    how = [f"{target.measures}{f': {line.protocol}' if line.protocol else ''}", data, *trained, seeds, line.verdict]
    return f"{named(target.point, table)} {summed(line.seeds)} mIoU: {'; '.join(part for part in how if part)}"
