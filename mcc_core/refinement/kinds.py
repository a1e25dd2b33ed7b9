"""The list of refinements."""

from __future__ import annotations

from mcc_core.refinement.affinities import Psa
from mcc_core.refinement.base import Kind, Step
from mcc_core.refinement.boundaries import Irn
from mcc_core.refinement.pixelwise import Crf, Par
from mcc_core.refinement.random_walk import RandomWalk

STEPS: dict[Kind, Step] = {step.kind: step for step in (RandomWalk(), Irn(), Psa(), Par(), Crf())}
