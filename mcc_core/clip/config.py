"""Which frozen CLIP, and what decides the seeds that it makes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field

from mcc_core.clip.prompts import prompts_file
from mcc_core.config import Strict


class ClipNetworkConfig(Strict):
    """The network and its prompts."""

    model: str = Field("ViT-B-16-quickgelu", description="name of an open_clip network with a vision transformer")
    model_args: dict[str, Any] = Field(
        default_factory=dict, description="overrides of its sizes: embed_dim, vision_cfg and text_cfg"
    )
    weights: str = Field(
        "openai",
        description="a tag of open_clip, which is a download (openai, laion2b_s34b_b88k, ...); random; or a local "
        "file: .safetensors or .pt in open_clip's or OpenAI's naming",
    )
    prompts: str = Field("default", description="default, voc or coco, which are shipped, or a YAML file")

    @property
    def file(self) -> Path | None:
        """The local file of weights, where it is one."""
        path = Path(self.weights)
        return path if path.suffix or path.parent != Path(".") else None

    @property
    def files(self) -> dict[str, Path]:
        """Fields that name a file, as an experiment's `clip` section. Raises UsageError for prompts that are none."""
        weights = {} if self.file is None else {"clip.weights": self.file}
        return {"clip.prompts": prompts_file(self.prompts)} | weights


class ClipConfig(ClipNetworkConfig):
    """The network, its prompts, and the way from attention and gradients to class maps. Defaults are CLIP-ES's."""

    long_side: int = Field(640, ge=16, description="images with a longer side are made smaller, in pixels")
    attention: bool = Field(True, description="class maps are spread by attention between patches; false: as they are")
    attention_blocks: int = Field(8, ge=1, description="last blocks whose attention is averaged")
    rounds: int = Field(3, ge=1, description="of Sinkhorn's normalisation: columns, then rows")
    squarings: int = Field(1, ge=0, description="of the affinity; one is its power 2")
    box: float = Field(
        0.4, ge=0, lt=1, description="a class spreads from boxes around what is above this share of its maximum"
    )
