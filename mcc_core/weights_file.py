"""Reading a file of weights, never unpickling code, and saying in plain words what is wrong with one."""

from __future__ import annotations

import io
import json
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from mcc_core.errors import UsageError

_WRAPPINGS = ("model", "state_dict", "model_state_dict")
# What torch says of a global that a pickle asks for, in its several versions.
_GLOBAL = re.compile(r"(?:GLOBAL|global|[Uu]nsupported (?:class|global)[: ]+)\s*([A-Za-z_][\w.]*\.\w+)")
_PICKLE = (b"\x80", b"PK\x03\x04")  # torch.save: before 1.6, and since


def read_content(path: Path | io.BytesIO, source: str = "") -> dict[Any, Any]:
    """The mapping that a `.safetensors`, `.pth` or `.pt` file holds; its kind is told by its content, not its name.

    Raises UsageError, which begins with `source` and the path and says what the file is instead.
    """
    where = f"{source}{path}" if isinstance(path, Path) else f"{source}checkpoint"
    if isinstance(path, io.BytesIO):
        begin = path.getvalue()[:512]
    elif path.is_dir():
        raise UsageError(f"{where}: is a folder, not a file of weights")
    elif not path.exists():
        raise UsageError(f"{where}: no such file")
    else:
        try:
            with path.open("rb") as file:
                begin = file.read(512)
        except OSError as error:
            raise UsageError(f"{where}: cannot be read: {error.strerror or error}") from None
    if (other := _other_kind(begin)) is not None:
        raise UsageError(f"{where}: {other}")
    if isinstance(path, Path) and _is_safetensors(begin):
        try:
            return dict(load_file(path))
        except Exception:
            raise UsageError(f"{where}: it is a safetensors file that is cut short or damaged") from None
    if not begin.startswith(_PICKLE):
        start = begin[:16].decode("ascii", "replace").replace("\ufffd", "?")
        raise UsageError(f"{where}: it is no weights file (torch.save or safetensors); it begins with {start!r}")
    if begin.startswith(_PICKLE[1]) and not zipfile.is_zipfile(path):
        raise UsageError(f"{where}: it is cut short: a copy or a download of it did not end")
    if isinstance(path, io.BytesIO):
        path.seek(0)
    try:
        with warnings.catch_warnings(action="ignore"):  # of odd files, which are refused or read all the same
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a broken pickle leads to
        raise UsageError(f"{where}: {_unreadable(str(error), path)}") from None
    if not isinstance(content, Mapping):
        raise UsageError(f"{where}: it holds one {type(content).__name__}, not tensors by name (a state_dict)")
    return dict(content)


def named_tensors(content: Mapping[Any, Any], where: str) -> dict[str, Tensor]:
    """Tensors by name, out of a wrapping (`model`, `state_dict`, ...), without `module.` before each name.

    Raises UsageError where there are none, which gives the top names, and where a value is not finite.
    """
    state: Mapping[Any, Any] = content
    for key in _WRAPPINGS:
        if isinstance(content.get(key), Mapping):
            state = content[key]
            break
    tensors = {str(name).removeprefix("module."): t for name, t in state.items() if isinstance(t, Tensor)}
    if not tensors:
        raise UsageError(
            f"{where}: no tensors by name at its top or under {', '.join(_WRAPPINGS)}; {top_names(content)}"
        )
    require_finite(tensors, where)
    return tensors


def top_names(content: Mapping[Any, Any]) -> str:
    """What stands at the top of a file, in words."""
    if not content:
        return "it holds nothing"
    shown = [f"{name} ({_kind(value)})" for name, value in list(content.items())[:4]]
    more = f" and {len(content) - 4} more" if len(content) > 4 else ""
    return f"its top names are {', '.join(shown)}{more}"


def require_finite(tensors: Mapping[str, Any], where: str) -> None:
    """Raise UsageError where a tensor, at any depth, has a NaN or an infinity."""
    bad = [
        (name, tensor) for name, tensor in _walk(tensors) if _is_real(tensor) and not tensor.float().isfinite().all()
    ]
    if bad:
        name, tensor = bad[0]
        count = int((~tensor.float().isfinite()).sum())
        more = f", and {len(bad) - 1} more tensors are so" if len(bad) > 1 else ""
        raise UsageError(
            f"{where}: not finite: {name} has {count:,} of {tensor.numel():,} values NaN or infinite{more}; "
            "a network of it predicts nothing"
        )


def _walk(node: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    for name, value in node.items():
        if isinstance(value, Tensor):
            yield f"{prefix}{name}", value
        elif isinstance(value, Mapping):
            yield from _walk(value, f"{prefix}{name}.")


def _is_real(tensor: Tensor) -> bool:
    return tensor.is_floating_point() and tensor.numel() > 0


def _kind(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"tensor {'x'.join(map(str, value.shape)) or 'of one value'}"
    if isinstance(value, Mapping):
        return f"{len(value)} inside" + (f", such as {next(iter(value))}" if value else "")
    return type(value).__name__


def _is_safetensors(begin: bytes) -> bool:
    return len(begin) > 8 and begin[8:9] == b"{" and int.from_bytes(begin[:8], "little") < 1 << 30


def _other_kind(begin: bytes) -> str | None:
    """What a file is that by its first bytes cannot be one of weights."""
    text = begin.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if not begin:
        return "it is empty (0 bytes)"
    if text.startswith((b"<!doctype html", b"<html", b"<head", b"<body")) or b"<html" in text:
        return "it is HTML, a web page: the link led to a page about the file or to a login, not to the file"
    if text.startswith(b"<"):
        return "it is XML, not weights: a server's error message may have been saved instead of the file"
    if text.startswith(b"version https://git-lfs"):
        return "it is a Git LFS pointer, not the file itself; git lfs pull fetches that"
    if text.startswith((b"{", b"[")):
        try:
            header = json.loads(begin)
        except ValueError:
            header = None
        said = f": {header['error']}" if isinstance(header, dict) and isinstance(header.get("error"), str) else ""
        return f"it is JSON, not weights{said}"
    for magic, kind in ((b"\x1f\x8b", "a gzip archive"), (b"Rar!", "a RAR archive"), (b"7z\xbc\xaf", "a 7z archive")):
        if begin.startswith(magic):
            return f"it is {kind}; unpack it first"
    for magic, kind in ((b"\x89PNG", "a PNG image"), (b"\xff\xd8\xff", "a JPEG image"), (b"%PDF", "a PDF")):
        if begin.startswith(magic):
            return f"it is {kind}, not weights"
    return None


def _unreadable(message: str, path: Path | io.BytesIO) -> str:
    """Why torch could not read a file without running code, in our words."""
    if "TorchScript" in message:
        return "it is a TorchScript program, not weights; whoever made it can save its state_dict() instead"
    if refused := _GLOBAL.search(message):
        return (
            f"it holds pickled code ({refused[1]}), which is not run; whoever made it can save its state_dict() alone, "
            "which holds tensors only"
        )
    if "weights_only" in message or "Weights only" in message or "Unpickl" in message:
        if zipfile.is_zipfile(path):
            return "it holds pickled code or is damaged, and is not run; a state_dict() saved alone can be read"
        return "it is cut short, damaged, or a pickle that torch.save did not write"
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if not any(name.endswith("data.pkl") for name in archive.namelist()):
                return "it is a zip archive, not weights; unpack it first"
    return "it is cut short or damaged"
