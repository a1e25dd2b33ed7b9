"""What MLflow loads of a model: a function from image files to masks and class scores."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from mcc_core.api.model import load
from mcc_core.data.voc import palette_png
from mcc_core.errors import DataError, UsageError

if TYPE_CHECKING:
    from mcc_core.evaluation.protocols import ProtocolName


class Served:
    """A network that takes the content of image files."""

    def __init__(self, file: Path) -> None:
        self.model = load(file)

    def predict(self, data: Any, params: Mapping[str, Any] | None = None) -> list[dict[str, Any]]:
        """For each image: `mask`, a PNG with a palette (0 background); `classes` in it; `scores` by class.

        Args:
            data: a frame or mapping whose column `image` has the bytes of image files.
            params: `protocol`: single, ms (default) or ms_crf.

        Raises UsageError for a column that is missing, or an image that cannot be read.
        """
        if "image" not in data:
            raise UsageError("no column image: it holds the bytes of image files, as base64 in JSON")
        protocol = cast("ProtocolName", str((params or {}).get("protocol", "ms")))  # checked where it is used
        answers = []
        for number, content in enumerate(data["image"]):
            if not isinstance(content, bytes):
                raise UsageError(f"image {number}: {type(content).__name__}: expected the bytes of an image file")
            with tempfile.TemporaryDirectory() as folder:
                file = Path(folder) / "image"
                file.write_bytes(content)
                try:
                    predicted = self.model.predict(file, protocol=protocol)
                except DataError as error:
                    reason = str(error).removeprefix(f"{file}: ")
                    raise UsageError(f"image {number}: {reason}") from None
            scores = dict(zip(predicted.classes, map(float, predicted.scores), strict=True))
            answers.append({"mask": palette_png(predicted.mask), "classes": [*predicted.present], "scores": scores})
        return answers


def _load_pyfunc(path: str) -> Served:
    """MLflow's entry."""
    return Served(Path(path))
