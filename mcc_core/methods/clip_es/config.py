"""The experiment schema of CLIP-ES: the data, and the frozen CLIP. Nothing is trained, so the rest decides nothing."""

from __future__ import annotations

from typing import Literal

from mcc_core import config as shared
from mcc_core.clip.config import ClipConfig


class Experiment(shared.Experiment):
    """One validated configuration of CLIP-ES."""

    method: Literal["clip_es"] = "clip_es"
    clip: ClipConfig = ClipConfig()
