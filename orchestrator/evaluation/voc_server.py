"""The file that PASCAL VOC's evaluation server takes."""

from __future__ import annotations

import tarfile
from collections.abc import Sequence
from pathlib import Path

from mcc_core.files import whole

FOLDER = "results/VOC2012/Segmentation/comp6_test_cls"  # comp6: trained with data other than VOC's (ImageNet)


def write_submission(masks: Path, images: Sequence[str], target: Path) -> None:
    """Pack the palette PNGs of `images` from the folder `masks`; `target` appears whole or not at all.

    The same masks give the same bytes up to the compression's time stamp. Raises OSError.
    """
    with whole(target) as partial, tarfile.open(partial, "w:gz") as archive:
        for name in sorted(images):
            entry = tarfile.TarInfo(f"{FOLDER}/{name}.png")
            content = masks / f"{name}.png"
            entry.size = content.stat().st_size
            with content.open("rb") as stream:
                archive.addfile(entry, stream)
