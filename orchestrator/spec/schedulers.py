"""Which running trials are not worth their time (ASHA, median stopping), and population based training.

Decisions are taken here, from the events in storage, and carried out by the trials themselves: a trial that is pruned
is asked to stop, writes its checkpoint and its last metrics, and may be trained to its end by a later sweep.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from mcc_core.config import Strict

if TYPE_CHECKING:
    pass


class NoScheduler(Strict):
    """Every trial runs to its end."""

    kind: Literal["none"] = "none"


class Asha(Strict):
    """Asynchronous successive halving: at min_iterations x eta^k only the best 1/eta of those that came there go on."""

    kind: Literal["asha"]
    min_iterations: int = Field(ge=1, description="the first decision comes with the first evaluation from here on")
    eta: int = Field(3, ge=2)


class Median(Strict):
    """A trial whose best score so far is below the median of the finished trials at the same iteration stops."""

    kind: Literal["median"]
    min_iterations: int = Field(0, ge=0, description="no decision before")
    min_trials: int = Field(4, ge=1, description="finished trials before the first decision")


class Pbt(Strict):
    """Population based training: after every `interval` iterations the worst members take over the weights of the
    best, and go on with changed parameters. All members reach the end of an interval before any goes on."""

    CHANGEABLE: ClassVar = ("loss.", "thresholds.", "mask.", "contrast.", "optim.lr")

    kind: Literal["pbt"]
    population: int = Field(ge=2, le=1000)
    interval: int = Field(ge=1, description="iterations between two selections")
    quantile: float = Field(0.25, gt=0, le=0.5, description="share of the worst that clones, and of the best it clones")
    factors: tuple[float, float] = Field((0.8, 1.25), description="a changed number is multiplied by one of these")
    resample: float = Field(0.25, ge=0, le=1, description="probability that a value is drawn afresh instead")
    seed: int = Field(0, ge=0, description="of draws and selections")

    @model_validator(mode="after")
    def _factors(self) -> Pbt:
        if not 0 < self.factors[0] < 1 < self.factors[1]:
            raise ValueError(f"factors: {list(self.factors)}: one must be between 0 and 1, the other above 1")
        return self


Scheduler = Annotated[NoScheduler | Asha | Median | Pbt, Field(discriminator="kind")]
PRUNING = ("asha", "median")


# --- population based training ---------------------------------------------------------------------------------------
