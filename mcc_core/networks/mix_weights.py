"""Weights of mix transformers: the ImageNet download, and files in SegFormer's or transformers' naming.

The ImageNet weights are under NVIDIA's source code licence, which does not allow commercial use.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from mcc_core.errors import UsageError
from mcc_core.networks.backbones import shape_text
from mcc_core.networks.mix_sizes import MIX_TRANSFORMERS
from mcc_core.networks.mix_transformer import MixTransformer
from mcc_core.weights_file import named_tensors, read_content

# Revisions of the repositories smp-hub/NAME.imagenet of the Hugging Face hub, which have SegFormer's names of tensors.
_REVISIONS = {
    "mit_b0": "9ce53d104d92d75aabb00aae70677aaab67e7c84",
    "mit_b1": "a04bf4f13a549bce677cf79b04852e7510782817",
    "mit_b2": "868ab6f13871dcf8c3d9f90ee4519403475b65ef",
    "mit_b3": "32558d12a65f1daa0ebcf4f4053c4285e2c1cbda",
    "mit_b4": "3a3454e900a4b4f11dd60eeb59101a9a1a36b017",
    "mit_b5": "ced04d96c586b6297fd59a7a1e244fc78fdb6531",
}
_FILE = "model.safetensors"
_TRANSFORMERS = "segformer.encoder."  # what names of the library transformers begin with
_PARTS = {
    **{"layer_norm_1": "norm1", "layer_norm_2": "norm2", "attention.self.query": "attn.q"},
    **{"attention.self.sr": "attn.sr", "attention.self.layer_norm": "attn.norm"},
    **{"attention.output.dense": "attn.proj", "mlp.dense1": "mlp.fc1", "mlp.dense2": "mlp.fc2"},
}


def load_mix_transformer(encoder: MixTransformer, backbone: str, weights: str | Path) -> None:
    """Load the "imagenet" download of a backbone, or a file, into `encoder`.

    Raises UsageError when they cannot be had or do not fit.
    """
    file = _download(backbone) if weights == "imagenet" else Path(weights)
    where = f"model.weights: {file}"
    fill_mix_transformer(encoder, named_tensors(read_content(file, "model.weights: "), where), where)


def fill_mix_transformer(encoder: MixTransformer, tensors: Mapping[str, Tensor], where: str) -> tuple[str, ...]:
    """Put named tensors, of a backbone or of a whole network, into `encoder`; the names of those without a place.

    Raises UsageError, with `where`.
    """
    state = segformer_names(tensors)
    own = encoder.state_dict()
    starts = ", ".join(list(tensors)[:3]) or "nothing"
    if missing := [name for name in own if name not in state]:
        lacks = f"lacks {len(missing)} tensors of the mix transformer, such as {missing[0]}"
        raise UsageError(f"{where}: {lacks}; it starts with {starts}")
    if wrong := [name for name in own if state[name].shape != own[name].shape]:
        shape, other = (shape_text(x[wrong[0]]) for x in (state, own))
        raise UsageError(f"{where}: does not fit model.backbone: {wrong[0]} is {shape}, not {other}")
    encoder.load_state_dict({name: state[name].float() for name in own})
    return tuple(name for name in state if name not in own)


def mix_transformer_of(tensors: Mapping[str, Tensor], where: str) -> str:
    """The name of the mix transformer that tensors belong to, by their shapes. Raises UsageError, with `where`."""
    state = segformer_names(tensors)
    numbers = [re.match(r"block(\d)\.(\d+)\.", name) for name in state]
    blocks = {(int(m[1]), int(m[2])) for m in numbers if m}
    depths = tuple(sum(stage == s for s, _ in blocks) for stage in (1, 2, 3, 4))
    embeddings = (state.get(f"patch_embed{stage}.proj.weight") for stage in (1, 2, 3, 4))
    widths = tuple(0 if t is None else len(t) for t in embeddings)
    for name, sizes in MIX_TRANSFORMERS.items():
        if (sizes.embed_dims, sizes.depths) == (widths, depths):
            return name
    raise UsageError(f"{where}: no known mix transformer has widths {widths} and depths {depths}")


def segformer_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of a backbone or of a whole network in SegFormer's naming, without `encoder.`.

    The library transformers counts stages from 0, and has keys and values apart.
    """
    state: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if name.startswith(_TRANSFORMERS):
            state |= _from_transformers(name.removeprefix(_TRANSFORMERS), tensor, tensors)
        else:
            state[name.removeprefix("encoder.")] = tensor
    return state


def _from_transformers(name: str, tensor: Tensor, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    if match := re.fullmatch(r"patch_embeddings\.(\d)\.(proj|layer_norm)\.(\w+)", name):
        part = "norm" if match[2] == "layer_norm" else "proj"
        return {f"patch_embed{int(match[1]) + 1}.{part}.{match[3]}": tensor}
    if match := re.fullmatch(r"layer_norm\.(\d)\.(\w+)", name):
        return {f"norm{int(match[1]) + 1}.{match[2]}": tensor}
    match = re.fullmatch(r"block\.(\d)\.(\d+)\.(.+)\.(\w+)", name)
    if not match:
        return {name: tensor}
    begin, part, end = f"block{int(match[1]) + 1}.{match[2]}", match[3], match[4]
    if part == "attention.self.key":
        values = tensors.get(f"{_TRANSFORMERS}{name.replace('.key.', '.value.')}")
        return {} if values is None else {f"{begin}.attn.kv.{end}": torch.cat([tensor, values])}
    if part == "attention.self.value":
        return {}
    return {f"{begin}.{_PARTS.get(part, part)}.{end}": tensor}


def cached_mix_transformer(backbone: str) -> Path | None:
    """The file of the ImageNet download of a backbone in this machine's cache; asks no network."""
    from huggingface_hub import try_to_load_from_cache

    file = try_to_load_from_cache(_repository(backbone), _FILE, revision=_REVISIONS[backbone])
    return Path(file) if isinstance(file, str) else None


def _repository(backbone: str) -> str:
    return f"smp-hub/{backbone}.imagenet"


def _download(backbone: str) -> Path:
    """The file of ImageNet weights, from the cache or the net."""
    from huggingface_hub import hf_hub_download

    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    try:
        return Path(hf_hub_download(_repository(backbone), _FILE, revision=_REVISIONS[backbone]))
    except Exception as error:
        raise UsageError(
            f"model.weights: could not download {backbone} ({type(error).__name__}); give a local file "
            "(--set model.weights=FILE, .safetensors or .pth) or --set model.weights=random"
        ) from None
