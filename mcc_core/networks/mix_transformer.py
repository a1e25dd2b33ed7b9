"""The mix transformer (SegFormer's encoder) of segmentation_models_pytorch, with strides of one's choice.

Optional: the library comes with the extra `afa`. It is under the MIT licence; its file of the mix transformer, and the
ImageNet weights, are under NVIDIA's source code licence, which does not allow commercial use.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mcc_core.errors import UsageError
from mcc_core.networks.backbones import shape_text
from mcc_core.weights_file import named_tensors, read_content

_STAGES = (1, 2, 3, 4)


@dataclass(frozen=True)
class Stages:
    """One forward pass of images B,3,H,W."""

    maps: tuple[Tensor, Tensor, Tensor, Tensor]  # B,D,h,w of each stage, normalised
    last_inputs: tuple[Tensor, ...]  # B,D,h,w before each block of the last stage

    def detach(self) -> Stages:
        """The same values without their graph."""
        one, two, three, four = (x.detach() for x in self.maps)
        return Stages((one, two, three, four), tuple(x.detach() for x in self.last_inputs))


class MixTransformer(nn.Module):
    """Four stages of overlapping patches and attention over fewer keys.

    Args:
        backbone: mit_b0 to mit_b5; overrides: arguments of the library's class, such as `embed_dims` and `depths`.
        strides: of the four patch embeddings. Kernels stay, so that pretrained weights load.
        weights: "imagenet" (a download), "random", or a file.

    Raises UsageError when the library is missing or a name, an argument or the weights do not fit.
    """

    def __init__(
        self,
        backbone: str,
        overrides: dict[str, Any],
        strides: Sequence[int],
        drop_path: float,
        weights: str | Path,
    ) -> None:
        super().__init__()
        if weights == "imagenet" and overrides:
            raise UsageError(
                "model.weights: imagenet's do not fit a backbone with backbone_args; give random or a file"
            )
        source, settings = _library(backbone)
        params = {k: v for k, v in settings["params"].items() if k not in ("out_channels", "patch_size")}
        try:
            # On the CPU even where nothing is to be allocated: the library reads numbers from tensors.
            with torch.device("cpu"):
                library = source(**params | {"drop_path_rate": drop_path} | overrides)
        except (TypeError, AssertionError, IndexError, ValueError) as error:
            raise UsageError(f"model.backbone_args: {overrides}: {error}") from None
        # The library's own names are those of published checkpoints, so its parts become ours.
        for stage, stride in zip(_STAGES, strides, strict=True):
            embed = getattr(library, f"patch_embed{stage}")
            embed.proj.stride = (stride, stride)
            for part in ("patch_embed", "block", "norm"):
                setattr(self, f"{part}{stage}", getattr(library, f"{part}{stage}"))
        self.widths: list[int] = [getattr(library, f"patch_embed{stage}").proj.out_channels for stage in _STAGES]
        self.stride = strides[0] * strides[1] * strides[2] * strides[3]
        self.least_side = self._least_side(strides)
        self.use_bfloat16 = self.recompute = False
        if weights != "random":
            file = _download(settings, backbone) if weights == "imagenet" else Path(weights)
            where = f"model.weights: {file}"
            fill(self, named_tensors(read_content(file, "model.weights: "), where), where)

    def _least_side(self, strides: Sequence[int]) -> int:
        """The smallest side of an image whose keys can still be merged in every stage."""
        least, pixels = 1, 1
        for stage, stride in zip(_STAGES, strides, strict=True):
            pixels *= stride
            least = max(least, pixels * max((block.attn.sr_ratio for block in self._blocks(stage)), default=1))
        return least

    def _blocks(self, stage: int) -> Any:
        return getattr(self, f"block{stage}")

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of the last stage for images of so many pixels."""
        for stage in _STAGES:
            conv = getattr(self, f"patch_embed{stage}").proj
            height, width = (
                (side + 2 * conv.padding[0] - conv.kernel_size[0]) // conv.stride[0] + 1 for side in (height, width)
            )
        return height, width

    def compile_blocks(self) -> None:
        """torch.compile every block."""
        for stage in _STAGES:
            for block in self._blocks(stage):
                block.compile()

    def forward(self, images: Tensor) -> Stages:
        """Normalised maps of all stages of images B,3,H,W."""
        with torch.autocast(images.device.type, dtype=torch.bfloat16, enabled=self.use_bfloat16):
            x, maps, last_inputs = images, [], []
            for stage in _STAGES:
                x = getattr(self, f"patch_embed{stage}")(x)
                for block in self._blocks(stage):
                    if stage == 4:
                        last_inputs.append(x.to(images.dtype))
                    recompute = self.recompute and torch.is_grad_enabled()
                    x = checkpoint(block, x, use_reentrant=False) if recompute else block(x)
                x = getattr(self, f"norm{stage}")(x).contiguous()
                maps.append(x.to(images.dtype))
        return Stages((maps[0], maps[1], maps[2], maps[3]), tuple(last_inputs))


def fill(encoder: MixTransformer, tensors: dict[str, Tensor], where: str) -> None:
    """Put named tensors, of a backbone or of a whole network, into `encoder`. Raises UsageError, with `where`."""
    state = {name.removeprefix("encoder."): t.float() for name, t in tensors.items()}
    own = encoder.state_dict()
    starts = ", ".join(list(state)[:3]) or "nothing"
    if missing := [name for name in own if name not in state]:
        lacks = f"lacks {len(missing)} tensors of the mix transformer, such as {missing[0]}"
        raise UsageError(f"{where}: {lacks}; it starts with {starts}")
    if wrong := [name for name in own if state[name].shape != own[name].shape]:
        shape, other = (shape_text(x[wrong[0]]) for x in (state, own))
        raise UsageError(f"{where}: does not fit model.backbone: {wrong[0]} is {shape}, not {other}")
    encoder.load_state_dict({name: state[name] for name in own})


def _library(backbone: str) -> tuple[Any, dict[str, Any]]:
    """The library's class and its settings of a backbone."""
    try:
        from segmentation_models_pytorch.encoders import mix_transformer as library
    except ImportError:
        raise UsageError(
            "a mix transformer needs segmentation_models_pytorch, which is not installed: run `pip install 'mcc[afa]'`"
        ) from None
    known: dict[str, Any] = library.mix_transformer_encoders
    if backbone not in known:
        raise UsageError(f"model.backbone: {backbone!r} is not a mix transformer: expected {', '.join(known)}")
    return library.MixVisionTransformer, known[backbone]


def _download(settings: dict[str, Any], backbone: str) -> Path:
    """The file of ImageNet weights, from the cache or the net."""
    from huggingface_hub import hf_hub_download

    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    place = settings["pretrained_settings"]["imagenet"]
    try:
        return Path(hf_hub_download(place["repo_id"], filename="model.safetensors", revision=place["revision"]))
    except Exception as error:
        raise UsageError(
            f"model.weights: could not download {backbone} ({type(error).__name__}); give a local file "
            "(--set model.weights=FILE, .safetensors or .pth) or --set model.weights=random"
        ) from None
