"""The list of methods, and experiments read by the schema of their method."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mcc_core.config import ComputeConfig, Experiment
from mcc_core.errors import UsageError
from mcc_core.methods.afa import AFA
from mcc_core.methods.amn import AMN
from mcc_core.methods.base import Method
from mcc_core.methods.clims import CLIMS
from mcc_core.methods.clip_es import ClipEs
from mcc_core.methods.fsr import FSR
from mcc_core.methods.irn import IRN
from mcc_core.methods.mcc import MCC
from mcc_core.methods.mctformer import MCTformer
from mcc_core.methods.psa import PSA
from mcc_core.methods.recam import ReCAM
from mcc_core.methods.segmentation import Segmentation
from mcc_core.methods.slrnet import SLR
from mcc_core.methods.toco import ToCo
from mcc_core.validation import validate

if TYPE_CHECKING:
    from mcc_core.networks.base import Network

METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        *(MCC(), ToCo(), AFA(), SLR(), FSR(), MCTformer()),
        *(ReCAM(), AMN(), IRN(), PSA(), CLIMS(), Segmentation()),
    )
}
FROZEN: dict[str, Method] = {method.name: method for method in (ClipEs(),)}  # whose maps are there without training
GROUP = "mcc.methods"  # entry points by which installed packages offer methods of their own
DEFAULT = MCC.name


def method_named(name: str, source: str = "method") -> Method:
    """The method of a name: of the package, or one that an installed package offers. Raises UsageError."""
    if name in METHODS:
        return METHODS[name]
    if name in FROZEN:
        return FROZEN[name]
    offered = entry_points(group=GROUP)
    if name not in offered.names:
        known = ", ".join((*METHODS, *FROZEN, *sorted(offered.names)))
        raise UsageError(f"{source}: method: {name!r}: expected one of {known}")
    return _offered(offered[name], source)


@lru_cache(maxsize=16)
def _offered(entry: EntryPoint, source: str) -> Method:
    try:
        method = entry.load()
    except (ImportError, AttributeError) as error:
        raise UsageError(f"{source}: method: {entry.name!r}: {entry.value} cannot be imported: {error}") from None
    if not isinstance(method, Method):
        raise UsageError(f"{source}: method: {entry.name!r}: {entry.value} is no Method but {type(method).__name__}")
    return method


def method_of(experiment: Experiment) -> Method:
    """The method of an experiment."""
    return method_named(experiment.method)


def method_of_fields(fields: Mapping[str, Any], source: str = "method") -> Method:
    """The method that raw fields name, MCC where they name none."""
    return method_named(str(fields.get("method", DEFAULT)), source)


def experiment_of(fields: Mapping[str, Any], source: str) -> Experiment:
    """Raw fields as an experiment of their method. Raises UsageError, one line per mistake."""
    return validate(method_of_fields(fields, source).experiment, fields, source)


def files_of(experiment: Experiment) -> dict[str, Path]:
    """Fields, as `section.field`, that name a file which decides a trial's numbers, beside a label set.

    Raises UsageError for one that is none.
    """
    weights = experiment.model.weights
    own = {"model.weights": weights} if isinstance(weights, Path) else {}
    return own | method_of(experiment).files(experiment)


def is_frozen(experiment: Experiment) -> bool:
    """Whether an experiment trains nothing: its class maps are those of a network that is there already."""
    return experiment.method in FROZEN


def supervision_of(experiment: Experiment) -> str:
    """`full` of an experiment that learns from masks that people drew, else `weak`."""
    labels = method_of(experiment).labels(experiment)
    return "weak" if labels is None else labels.supervision


def network_of(experiment: Experiment, num_classes: int) -> Network:
    """The network of an experiment with its initial weights. Raises UsageError when they cannot be had."""
    network = method_of(experiment).network(experiment, num_classes)
    network.precision, network.deterministic = experiment.compute.precision, experiment.compute.deterministic
    return network


def random_network(experiment: Experiment, num_classes: int) -> Network:
    """The network of an experiment with random weights, of its arithmetic and not compiled, to load weights into."""
    model = experiment.model.model_copy(update={"weights": "random"})
    asked = experiment.compute
    compute = ComputeConfig(precision=asked.precision, deterministic=asked.deterministic)
    return network_of(experiment.model_copy(update={"model": model, "compute": compute}), num_classes)
