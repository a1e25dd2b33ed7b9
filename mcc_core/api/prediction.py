"""What a network says of one image, as arrays and as a picture."""

from __future__ import annotations

import base64
import html
import io
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import PIL.Image

from mcc_core.config import Experiment
from mcc_core.data.voc import palette, palette_png
from mcc_core.evaluation import inference
from mcc_core.evaluation.visualize import overlay
from mcc_core.files import whole


@dataclass(frozen=True, eq=False, repr=False)
class Prediction:
    """One image's results. In a notebook it shows its picture and its class scores."""

    _found: inference.Prediction
    _experiment: Experiment
    classes: tuple[str, ...]  # foreground names; class k is label k + 1 of the mask

    @property
    def image(self) -> np.ndarray:
        """The image, H,W,3 uint8."""
        return self._found.image

    @property
    def mask(self) -> np.ndarray:
        """Label of each pixel, H,W uint8: 0 background, k + 1 for `classes[k]`."""
        return self._found.mask

    @cached_property
    def scores(self) -> np.ndarray:
        """C float32 probabilities that the image has the class."""
        return self._found.scores.float().numpy()

    @cached_property
    def cams(self) -> dict[str, np.ndarray]:
        """Class activation maps C,H,W float32 in [0, 1], by stage: `cam`, and `aux_cam` where the network has one."""
        return {stage: cam.float().numpy() for stage, cam in self._found.maps.items()}

    @property
    def palette(self) -> np.ndarray:
        """RGB colour of each label, 256,3 uint8 (PASCAL VOC's)."""
        return np.array(palette(), np.uint8).reshape(256, 3)

    @property
    def present(self) -> tuple[str, ...]:
        """Names of the classes in the mask."""
        labels = np.unique(self.mask)
        return tuple(self.classes[label - 1] for label in labels if 0 < label <= len(self.classes))

    def overlay(self) -> PIL.Image.Image:
        """The mask in colour over the image."""
        return overlay(self.image, self.mask)

    def panel(self) -> PIL.Image.Image:
        """A labelled row: image, CAMs, pseudo-label, mask."""
        return inference.panel(self._found, self._experiment, self.classes)

    def save(self, file: str | Path) -> None:
        """Write the mask as a PNG with the palette, whole or not at all. Raises OSError."""
        with whole(Path(file)) as partial:
            partial.write_bytes(palette_png(self.mask))

    def __repr__(self) -> str:
        height, width = self.mask.shape
        return f"<Prediction {width}x{height}: {', '.join(self.present) or 'background alone'}>"

    def _repr_png_(self) -> bytes:
        stream = io.BytesIO()
        self.panel().save(stream, "PNG")
        return stream.getvalue()

    def _repr_html_(self) -> str:
        picture = base64.b64encode(self._repr_png_()).decode()
        order = np.argsort(-self.scores)[:5]
        rows = "".join(
            f"<tr><td>{html.escape(self.classes[k])}</td><td>{self.scores[k]:.3f}</td>"
            f"<td>{(self.mask == k + 1).mean():.1%}</td></tr>"
            for k in order
        )
        return (
            f'<img alt="prediction" src="data:image/png;base64,{picture}">'
            f"<table><tr><th>class</th><th>score</th><th>of the pixels</th></tr>{rows}</table>"
        )
