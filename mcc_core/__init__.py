"""Segmentation from image-level labels, in plain PyTorch: `import mcc_core as mcc`.

What `__all__` names is public and stays; everything else may change. Nothing heavy is imported before it is used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mcc_core.api.experiments import experiment, index
    from mcc_core.api.export import export
    from mcc_core.api.model import Model, load
    from mcc_core.api.prediction import Prediction
    from mcc_core.api.scores import Scores, evaluate
    from mcc_core.api.training import Training, train
    from mcc_core.config import Experiment
    from mcc_core.data.index import DataIndex
    from mcc_core.errors import DataError, MCCError, TrainingFault, UsageError
    from mcc_core.exporting.check import Exported

__version__ = "0.1.0"

__all__ = [
    "DataError",
    "DataIndex",
    "Experiment",
    "Exported",
    "MCCError",
    "Model",
    "Prediction",
    "Scores",
    "Training",
    "TrainingFault",
    "UsageError",
    "evaluate",
    "experiment",
    "export",
    "index",
    "load",
    "train",
]

_MODULES = {
    "api.experiments": ("experiment", "index"),
    "api.export": ("export",),
    "api.model": ("Model", "load"),
    "api.prediction": ("Prediction",),
    "api.scores": ("Scores", "evaluate"),
    "api.training": ("Training", "train"),
    "config": ("Experiment",),
    "data.index": ("DataIndex",),
    "exporting.check": ("Exported",),
    "errors": ("DataError", "MCCError", "TrainingFault", "UsageError"),
}
_PLACES = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    member = getattr(import_module(f"{__name__}.{_PLACES[name]}"), name)
    globals()[name] = member
    return member


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
