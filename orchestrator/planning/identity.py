"""Identity of a trial: a hash of what can change its numbers, so that the same work is never done twice.

Part of it: the resolved experiment, the seed, the source of `mcc_core`, the initial weights, the data, the label set.
Not part of it: where they lie, what is only shown or logged, comments, the orchestrator.
"""

from __future__ import annotations

import ast
import hashlib
import inspect
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mcc_core
from mcc_core.config import Experiment, ModelConfig
from mcc_core.data.label_source import labels_identity
from mcc_core.files import file_digest, json_digest
from mcc_core.methods.base import Method
from mcc_core.methods.registry import FROZEN, METHODS, files_of, method_named, method_of

# Fields whose value cannot change a recorded evaluation. The data's content is identified by its fingerprint.
_WITHOUT: dict[str, tuple[str, ...]] = {
    "data": ("root", "classes", "on_corrupt"),
    "train": ("log_every", "panels", "loader_workers", "eval_batch"),
}
# Files that training does not run, or that say nothing but messages and pictures.
_NOT_TRAINING = {
    *("visualize.py", "inference.py", "crf.py", "errors.py", "protocols.py", "scoring.py"),
    *("published.py", "import_weights.py", "registry.py"),
    *("archives.py", "prepare.py", "prepare_voc.py", "prepare_coco.py", "prepare_folder.py", "make_labels.py"),
}
# What is offered to others, and what is made of a trained network, below the package.
_NOT_TRAINING_PLACES = ("__init__.py", "api/", "exporting/", "refinement/", "clip/")


def trial_identity(experiment: Experiment, seed: int, fingerprint: str) -> str:
    """16 hexadecimal digits. Raises OSError when a weights file cannot be read, UsageError when a label set cannot."""
    fields: dict[str, Any] = experiment.model_dump(mode="json")
    fields.pop("description")
    fields.pop("compat")  # a name for values that are all there
    for section, names in _WITHOUT.items():
        for name in names:
            fields[section].pop(name)
    method = method_of(experiment)
    content = {
        "experiment": fields,
        "seed": seed,
        "source": method_source(method),
        "weights": weights_identity(experiment.model),
        "data": fingerprint,
    }
    for name, content_hash in file_contents(experiment).items():
        section, field = name.split(".")
        fields[section][field] = content_hash
    fields["model"].pop("weights")
    if (labels := method.labels(experiment)) is not None:
        fields["labels"].pop("source")
        content["labels"] = labels_identity(labels)
    return json_digest(content, 16)


def refined_identity(
    refine: Mapping[str, Any], of: str, fingerprint: str, network: str | None = None, learners: Sequence[str] = ()
) -> str:
    """Identity of the labels that a refinement makes of what the trial `of` made: 16 hexadecimal digits.

    Args:
        network: of the trial whose network the refinement brings along.
        learners: methods of networks that are files, whose code no other identity has.
    """
    content = {"refine": refine, "of": of, "source": refinement_source(), "data": fingerprint}
    content |= {"network": network} if network is not None else {}
    content |= {"code": [method_source(method_named(name)) for name in learners]} if learners else {}
    return json_digest(content, 16)


def frozen_identity(experiment: Experiment, fingerprint: str) -> str:
    """Identity of the class maps of a network that is not trained: 16 hexadecimal digits. No seed is part of it."""
    method = method_of(experiment)
    fields: dict[str, Any] = experiment.model_dump(mode="json", include={"method", "clip"})
    for name, content_hash in file_contents(experiment).items():
        section, field = name.split(".")
        if section in fields:
            fields[section][field] = content_hash
    package = Path(mcc_core.__file__).parent
    source = [source_hash(package / room) for room in method.rooms]
    return json_digest({"experiment": fields, "source": source, "data": fingerprint}, 16)


def file_contents(experiment: Experiment) -> dict[str, str]:
    """SHA-256 of each file that an experiment names, by field as `section.field`. Raises OSError, UsageError."""
    stats = {name: (file, file.stat()) for name, file in files_of(experiment).items()}
    return {name: _file_hash(file, stat.st_size, stat.st_mtime_ns) for name, (file, stat) in stats.items()}


def weights_identity(model: ModelConfig) -> str:
    """What the initial weights are: a file by its content, a download by name and version."""
    if model.weights == "random":
        return "random"
    if model.weights == "timm":
        return f"timm {version('timm')} {model.backbone}"
    if isinstance(model.weights, str):  # of a revision that the source names
        return f"{model.weights} {model.backbone}"
    file = Path(model.weights)
    stat = file.stat()
    return _file_hash(file, stat.st_size, stat.st_mtime_ns)


def method_source(method: Method) -> str:
    """Hash of the code that a method's training runs: what all methods share, and its own folder or module.

    Adding or changing one method does not change the others'.
    """
    package = Path(mcc_core.__file__).parent
    others = tuple(f"methods/{name}/" for name in (*METHODS, *FROZEN) if name != method.name)
    places = tuple(place for place in _NOT_TRAINING_PLACES if place not in method.rooms)
    shared = source_hash(package, (*places, *others))
    own = Path(inspect.getfile(type(method)))
    if own.is_relative_to(package):
        return shared
    return shared + (source_hash(own.parent) if own.name == "__init__.py" else _sha256(_code(own.read_text()).encode()))


def refinement_source() -> str:
    """Hash of the code that makes labels of maps; that of the network is in the identity of what it refines."""
    package = Path(mcc_core.__file__).parent
    rooms = [source_hash(package / room, skipped=frozenset()) for room in ("refinement", "pseudo_labels")]
    # How a network is asked for its maps, which training does not run.
    asked = [_code((package / "evaluation" / name).read_text("utf-8")) for name in ("protocols.py", "scoring.py")]
    return _sha256("\0".join([*rooms, *asked]).encode())


@lru_cache(maxsize=32)
def source_hash(
    package: Path, without: tuple[str, ...] = (), skipped: frozenset[str] = frozenset(_NOT_TRAINING)
) -> str:
    """Hash of a package's Python code without folders and files of some names, blind to comments, docstrings and
    layout."""
    digest = hashlib.sha256()
    for file in sorted(package.rglob("*.py")):
        place = file.relative_to(package).as_posix()
        if file.name not in skipped and not place.startswith(without):
            digest.update(f"{place}\0{_code(file.read_text('utf-8'))}\0".encode())
    return digest.hexdigest()


def _code(text: str) -> str:
    tree = ast.parse(text)
    for node in _with_body(tree):
        first = node.body[0] if node.body else None
        if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str):
            node.body = node.body[1:]
    return ast.dump(tree, include_attributes=False)


def _with_body(tree: ast.AST) -> Iterator[ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


@lru_cache(maxsize=64)
def _file_hash(file: Path, size: int, mtime_ns: int) -> str:
    return file_digest(file)


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
