"""Refinements as sweep files name them: their fields, and what each takes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from mcc_core.config import Experiment
from mcc_core.errors import UsageError
from mcc_core.methods.registry import is_frozen, method_of
from mcc_core.validation import settable, validate

if TYPE_CHECKING:
    from mcc_core.refinement.base import Refinement


def fields() -> list[str]:
    """Dotted names of the fields of a refinement."""
    from mcc_core.refinement.base import Refinement

    return settable(Refinement)


def supervision(own: str, refines: Iterable[Mapping[str, Any]]) -> str:
    """`full` of labels that refinements make of seeds of the supervision `own`, where those or a step's network saw
    masks that people drew; else `weak`."""
    from mcc_core.refinement.base import Refinement
    from mcc_core.refinement.seeds import supervision_with

    seen = (supervision_with("weak", Refinement.model_validate(fields)) for fields in refines)
    return "full" if own == "full" or "full" in seen else "weak"


def refinement(
    given: Mapping[str, Any],
    source: str,
    network: Experiment | None,
    brought: Experiment | None = None,
    *,
    confident: bool = False,
) -> Refinement:
    """Raw fields as a refinement, with the whole paths of networks. Raises UsageError, one line per mistake.

    Args:
        network: whose maps it takes, trained or frozen; None: labels that another refinement made.
        brought: of the stage whose trained network it brings along, for the kinds that take one.
        confident: labels have confidence.
    """
    import torch

    from mcc_core.pseudo_labels.crf import require_crf
    from mcc_core.refinement.base import Refinement
    from mcc_core.refinement.clip_seeds import asked_of_clip
    from mcc_core.refinement.kinds import STEPS
    from mcc_core.refinement.seeds import asked_of_labels, refuse_certainty

    where = f"{source}.refine"
    made = validate(Refinement, given, where)
    try:
        if "crf" in made.chain:
            require_crf()
    except UsageError as error:
        raise UsageError(f"{where}: kind: {error}") from None
    _check_learned(made, source, network, brought)
    made = _with_whole_paths(made, where)
    cpu = torch.device("cpu")
    try:
        if network is not None and is_frozen(network):
            asked_of_clip(_without(made, brought), cpu)
        elif network is None:
            asked_of_labels(_without(made, brought), cpu)
            if confident:
                refuse_certainty(made, "those of the stage before have it (keep_confidence)")
        else:
            for kind in made.networks:
                STEPS[kind].asks(None, made, cpu)
            refuse_certainty(made)
    except UsageError as error:
        raise UsageError(f"{where}: {error}") from None
    if network is not None and "random_walk" in made.chain and not method_of(network).has_attention:
        raise UsageError(
            f"{where}: kind: random_walk: the network of method {network.method} has no attention between patches; par "
            "and crf need none"
        )
    if network is not None and made.seeds not in (known := method_of(network).map_stages):
        raise UsageError(
            f"{where}: seeds: {made.seeds!r}: method {network.method} has "
            f"{' and '.join(known) or 'no class maps to refine'}"
        )
    return made


def _without(made: Refinement, brought: Experiment | None) -> Refinement:
    """The refinement without the kinds whose network a stage is yet to train."""
    from mcc_core.refinement.kinds import learned

    there = made.chain if brought is None else [kind for kind in made.chain if kind not in learned(made)]
    return made.model_copy(update={"kind": tuple(there) or ("none",)})


def takes_network(made: Refinement) -> bool:
    """Whether a kind of its chain takes a trained network beside that of the maps."""
    from mcc_core.refinement.kinds import learned

    return bool(learned(made))


def learners_of_files(made: Refinement) -> list[str]:
    """Methods of the networks that are given as files."""
    from mcc_core.refinement.kinds import STEPS

    return [str(STEPS[kind].learner) for kind in made.networks]


def _with_whole_paths(made: Refinement, where: str) -> Refinement:
    """The refinement with paths of networks that other processes find too, and what they are. Raises UsageError for one
    of no file."""
    from mcc_core.refinement.base import content_digest

    changed: dict[str, Any] = {}
    for kind, given in made.networks.items():
        file = given.expanduser().resolve()
        if not file.is_file():
            raise UsageError(f"{where}.{kind}.network: {file}: no such file")
        asked, digest = getattr(made, kind), content_digest(file, f"{where}.{kind}.network")
        if asked.digest not in (None, digest):
            raise UsageError(f"{where}.{kind}.digest: {asked.digest}: {file} has {digest}")
        changed[kind] = asked.model_copy(update={"network": file, "digest": digest})
    return made.model_copy(update=changed)


def _check_learned(made: Refinement, source: str, network: Experiment | None, brought: Experiment | None) -> None:
    """Raise UsageError unless each kind that takes a trained network has one of its method."""
    from mcc_core.refinement.kinds import STEPS, learned

    for kind in learned(made):
        learner, file = STEPS[kind].learner, getattr(made, kind).network
        if brought is not None and file is not None:
            raise UsageError(f"{source}.refine.{kind}.network: {file}: the stage has a network already; take one out")
        if brought is not None and brought.method != learner:
            raise UsageError(f"{source}.network: trains method {brought.method}; {kind} takes one of method {learner}")
        if brought is None and file is None and (network is None or network.method != learner):
            raise UsageError(
                f"{source}.network: is missing: {kind} takes a trained network: name a stage of method {learner}, or "
                f"give a checkpoint as refine.{kind}.network"
            )
