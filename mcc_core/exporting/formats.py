"""Writing each format, and running what was written."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from mcc_core.checkpoint import Checkpoint, load, save_weights
from mcc_core.errors import MCCError, UsageError
from mcc_core.exporting.deployed import INPUT, LEAST_CELLS, Deployed

Format = Literal["onnx", "torch-export", "safetensors"]
SUFFIXES: dict[Format, str] = {"onnx": ".onnx", "torch-export": ".pt2", "safetensors": ".safetensors"}
Run = Callable[[Tensor], tuple[Tensor, ...]]


def write(kind: Format, network: Deployed, saved: Checkpoint, about: dict[str, Any], file: Path) -> Run:
    """Write a file of a format; returns the function that it holds. Raises UsageError where a library is missing,
    MCCError, in one line, where the network cannot be expressed."""
    if kind == "safetensors":
        save_weights(saved, file, about)
        return Deployed(load(file).network())
    if kind == "onnx":
        _require_onnx()
    try:
        with _quiet():
            program = _program(network)
            if kind == "onnx":
                return _onnx(program, network.outputs, about, file)
            torch.export.save(program, file, extra_files={"mcc.json": json.dumps(about)})
            return torch.export.load(file).module()
    except (MCCError, OSError):
        raise
    except Exception as error:  # the exporters raise what they like
        line = next((line for line in str(error).splitlines() if line.strip()), "")[:200]
        method = saved.experiment.method
        raise MCCError(f"--format {kind}: {method} cannot be exported: {type(error).__name__}: {line}") from None


def _program(network: Deployed) -> torch.export.ExportedProgram:
    """The network for any number of images of any size in whole cells."""
    stride = network.network.stride
    height, width = (torch.export.Dim(name, min=LEAST_CELLS) for name in ("height_cells", "width_cells"))
    sizes = {0: torch.export.Dim("batch"), 2: stride * height, 3: stride * width}
    # Three different numbers, none of them 1: equal ones would be taken for the same.
    example = torch.zeros(2, 3, 6 * stride, 7 * stride)
    with torch.no_grad():
        return torch.export.export(network, (example,), dynamic_shapes={INPUT: sizes}, strict=False)


def _onnx(program: torch.export.ExportedProgram, outputs: tuple[str, ...], about: dict[str, Any], file: Path) -> Run:
    import onnx
    import onnxruntime

    made = torch.onnx.export(program, dynamo=True, input_names=[INPUT], output_names=list(outputs), verbose=False)
    assert made is not None
    proto = made.model_proto
    # Every runtime shows texts by key; `mcc` has all of it.
    shown = {key: about[key] for key in ("classes", "labels", "input", "mean", "std", "stride", "least_side")}
    texts = {"mcc": about, **shown}
    onnx.helper.set_model_props(proto, {k: v if isinstance(v, str) else json.dumps(v) for k, v in texts.items()})
    onnx.save_model(proto, str(file))
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])

    def run(images: Tensor) -> tuple[Tensor, ...]:
        return tuple(map(torch.from_numpy, session.run(list(outputs), {INPUT: images.numpy()})))

    return run


def _require_onnx() -> None:
    if missing := [name for name in ("onnx", "onnxscript", "onnxruntime") if find_spec(name) is None]:
        raise UsageError(f"--format onnx: {missing[0]} is not installed: run `pip install 'mcc[export]'`")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """What exporters say of their own working is nothing that a user can act on."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
