"""The list of refinements."""

from __future__ import annotations

from pathlib import Path

from mcc_core.refinement.affinities import Psa
from mcc_core.refinement.base import LEARNED, Kind, Refinement, Step
from mcc_core.refinement.boundaries import Irn
from mcc_core.refinement.pixelwise import Crf, Par
from mcc_core.refinement.random_walk import RandomWalk

STEPS: dict[Kind, Step] = {step.kind: step for step in (RandomWalk(), Irn(), Psa(), Par(), Crf())}


def learned(refinement: Refinement) -> tuple[Kind, ...]:
    """Kinds of a chain that take a trained network, the `network` of their section."""
    return tuple(kind for kind in refinement.chain if kind in LEARNED)


def with_network(refinement: Refinement, file: Path) -> Refinement:
    """The refinement with a checkpoint as the network of each kind that takes one."""
    sections = {kind: getattr(refinement, kind) for kind in learned(refinement)}
    return refinement.model_copy(
        update={
            kind: section.model_copy(update={"network": file, "digest": None}) for kind, section in sections.items()
        }
    )
