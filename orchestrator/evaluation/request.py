"""What a user asks to be evaluated, from command line options to a checked request."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mcc_core import checkpoint as checkpoints
from mcc_core.data.index_file import INDEX
from mcc_core.errors import UsageError
from mcc_core.evaluation.protocols import ProtocolName, supported
from mcc_core.evaluation.scoring import protocol_settings
from mcc_core.experiment_files import load_base, merge, preset_names
from mcc_core.methods.registry import experiment_of, method_of
from orchestrator.evaluation.run import Request

PREFIX = "evaluation."
_DEFAULT: tuple[ProtocolName, ...] = ("cam", "single", "ms")


def evaluation_request(
    checkpoint: Path,
    protocols: Sequence[ProtocolName] | None,
    split: str,
    changes: Mapping[str, Any],
    *,
    data: str | None = None,
    limit: int | None = None,
    keep_masks: bool = False,
    blind: bool = False,
) -> Request:
    """Check a request.

    Args:
        protocols: default: cam, single and ms, as far as the network has what they score.
        changes: dotted fields: those of the experiment's `data` section, and `evaluation.` ones of the protocols.
        data: a preset, whose data section is taken, or a dataset folder; default: the data the checkpoint was
            trained on.
        blind: images without masks are allowed.

    Raises UsageError, one line per mistake.
    """
    saved = checkpoints.load(checkpoint)
    fields = saved.experiment.model_dump(mode="json")
    fields["data"] = data_fields(fields["data"], data)
    known = {key: value for key, value in changes.items() if not key.startswith(PREFIX)}
    if wrong := [key for key in known if not key.startswith("data.")]:
        raise UsageError(f"--set {wrong[0]}: an evaluation takes data.* and {PREFIX}* alone")
    experiment = experiment_of(merge(fields, known, "--set"), f"{checkpoint} with --set")
    special = {key.removeprefix(PREFIX): value for key, value in changes.items() if key.startswith(PREFIX)}
    nested = merge({}, special, "--set")
    possible = supported(method_of(saved.experiment).map_stages)
    protocols = [name for name in _DEFAULT if name in possible] if protocols is None else protocols
    settings = protocol_settings(saved.experiment, len(saved.classes), protocols, nested, "--set evaluation")
    return Request(checkpoint, saved, experiment.data, split, settings, limit, keep_masks, blind)


def data_fields(trained: Mapping[str, Any], data: str | None) -> dict[str, Any]:
    """The data section that `--data` names: a preset's, or a folder's in place of what was trained on.

    Raises UsageError for what is neither.
    """
    if data is None:
        return dict(trained)
    if data in preset_names():
        return dict(load_base(data).get("data", {}))
    if not Path(data).is_dir():
        raise UsageError(f"--data {data}: neither a preset ({', '.join(preset_names())}) nor a folder")
    fields = {**trained, "name": "voc", "root": data}
    if (Path(data) / INDEX).is_file():  # which has the classes' names
        fields["classes"] = None
    return fields
