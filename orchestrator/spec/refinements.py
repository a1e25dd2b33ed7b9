"""Refinements as sweep files name them: their fields, and what each takes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mcc_core.config import Experiment
from mcc_core.errors import UsageError
from mcc_core.methods.registry import method_of
from mcc_core.validation import settable, validate

if TYPE_CHECKING:
    from mcc_core.refinement.base import Refinement


def fields() -> list[str]:
    """Dotted names of the fields of a refinement."""
    from mcc_core.refinement.base import Refinement

    return settable(Refinement)


def refinement(given: Mapping[str, Any], source: str, network: Experiment | None) -> Refinement:
    """Raw fields as a refinement. Raises UsageError, one line per mistake.

    Args:
        network: whose maps it takes; None: labels that another refinement made.
    """
    from mcc_core.pseudo_labels.crf import require_crf
    from mcc_core.refinement.base import Refinement
    from mcc_core.refinement.seeds import asked_of_labels, refuse_certainty

    where = f"{source}.refine"
    made = validate(Refinement, given, where)
    try:
        if "crf" in made.chain:
            require_crf()
    except UsageError as error:
        raise UsageError(f"{where}: kind: {error}") from None
    try:
        if network is None:
            asked_of_labels(made)
        else:
            refuse_certainty(made)
    except UsageError as error:
        raise UsageError(f"{where}: {error}") from None
    if network is not None and made.seeds not in (known := method_of(network).map_stages):
        raise UsageError(
            f"{where}: seeds: {made.seeds!r}: method {network.method} has "
            f"{' and '.join(known) or 'no class maps to refine'}"
        )
    own = network is not None and method_of(network).finds_boundaries
    if "irn" in made.chain and made.irn.network is None and not own:
        raise UsageError(
            f"{where}: irn.network: is missing: the checkpoint of a trial of the method irn; "
            f"{'a label set' if network is None else f'method {network.method}'} finds no boundaries"
        )
    return made
