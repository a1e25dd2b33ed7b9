"""The list of formats."""

from __future__ import annotations

from mcc_core.errors import UsageError
from mcc_core.exporting.label_formats.base import LabelFormat
from mcc_core.exporting.label_formats.coco import Coco
from mcc_core.exporting.label_formats.cvat import Cvat
from mcc_core.exporting.label_formats.labelme import LabelMe
from mcc_core.exporting.label_formats.voc import Voc

FORMATS: dict[str, LabelFormat] = {form.name: form for form in (Voc(), Coco(), LabelMe(), Cvat())}


def label_format(name: str) -> LabelFormat:
    """The format of a name. Raises UsageError."""
    if name not in FORMATS:
        raise UsageError(f"--format {name}: not one of {', '.join(FORMATS)}")
    return FORMATS[name]
