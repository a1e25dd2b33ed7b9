"""Evaluation protocols: what the network computes of an image, and the label map that is made of it.

| protocol | what is scored |
|---|---|
| cam, aux_cam | multi-scale CAM of the squashed image with its image-level labels, background threshold |
| cam_crf | a dense CRF on the final CAMs and the background threshold, scaled to probabilities (ours: not published) |
| refined | what trains the segmentation: final CAMs, or masks, refined; pixels it leaves open are 255, not scored |
| single | segmentation of the squashed image, one scale: the in-training evaluation |
| ms | segmentation over scales and flips: VOC and mean at native size, COCO squashed |
| ms_crf | the same and a dense CRF on its softmax |

The two halves are apart: `network_maps` needs the network, `label_map` only its output at token resolution. So the
second half runs in other processes, and any number of its settings can be tried on one pass of the network.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms.v2 import functional as TF

from mcc_core.config import EvaluationConfig
from mcc_core.data.colours import normalise
from mcc_core.device import fetched, moved
from mcc_core.errors import UsageError
from mcc_core.evaluation.metrics import Protocol, Stage
from mcc_core.evaluation.pseudo_label import at_rest, pseudo_label
from mcc_core.networks.base import Network
from mcc_core.pseudo_labels.cam import MapPair, combined_maps, raw_maps
from mcc_core.pseudo_labels.crf import dense_crf
from mcc_core.pseudo_labels.labels import cam_label

ProtocolName = Literal["cam", "aux_cam", "cam_crf", "refined", "single", "ms", "ms_crf"]
SEGMENTATION: tuple[ProtocolName, ...] = ("single", "ms", "ms_crf")
PROTOCOLS: dict[ProtocolName, tuple[Stage, Protocol]] = {
    "cam": ("cam", "ms"),
    "aux_cam": ("aux_cam", "ms"),
    "cam_crf": ("cam", "ms_crf"),
    "refined": ("pseudo_label", "ms"),
    "single": ("seg", "single"),
    "ms": ("seg", "ms"),
    "ms_crf": ("seg", "ms_crf"),
}
_CAMS = ("cam", "aux_cam", "cam_crf", "refined")
_MULTI = ("ms", "ms_crf")


def network_config(configs: Sequence[EvaluationConfig]) -> EvaluationConfig:
    """What the network must compute so that `label_map` can serve all of `configs`: the scales of all together.

    Raises UsageError when they need the network on squares of different sizes or in different styles.
    """
    first = configs[0]
    for other in configs:
        for name in ("style", "crop", "long_side"):
            if getattr(other, name) != getattr(first, name):
                raise UsageError(
                    f"{name}: {getattr(first, name)} and {getattr(other, name)}: one pass can serve one only"
                )
    scales, cam_scales = (
        tuple(dict.fromkeys(scale for config in configs for scale in getattr(config, name)))
        for name in ("scales", "cam_scales")
    )
    return first.model_copy(update={"scales": scales, "cam_scales": cam_scales})


@dataclass
class Maps:
    """What the network says of one image, at token resolution, on the CPU. Pairs are (image, flip), by scale."""

    single: Tensor | None = None  # 1,C+1,h,w
    multi: dict[float, MapPair] = field(default_factory=dict)
    cam: dict[float, MapPair] = field(default_factory=dict)  # of the classes `present`
    aux_cam: dict[float, MapPair] = field(default_factory=dict)
    scores: dict[float, Tensor] = field(default_factory=dict)  # 1,C class logits by scale, mean over flips; style mean
    present: tuple[int, ...] = ()  # 0-based class indices
    padded: tuple[int, int] | None = None  # size of what `multi` is of, where the image was padded (`padded`)

    def arrays(self, dtype: str) -> dict[str, np.ndarray]:
        """As named arrays for a file."""
        named = {"present": np.array(self.present, np.int64)}
        if self.padded is not None:
            named["padded"] = np.array(self.padded, np.int64)
        if self.single is not None:
            named["single"] = self.single.numpy().astype(dtype)
        for name in ("multi", "cam", "aux_cam"):
            for scale, pair in getattr(self, name).items():
                for j, tensor in enumerate(pair):
                    named[f"{name}/{scale!r}/{j}"] = tensor.numpy().astype(dtype)
        for scale, logits in self.scores.items():
            named[f"scores/{scale!r}"] = logits.numpy().astype(dtype)
        return named

    @classmethod
    def of_arrays(cls, arrays: Mapping[str, np.ndarray]) -> Maps:
        """The inverse of `arrays`, in float32."""
        maps = cls(present=tuple(arrays["present"].tolist()))
        if "padded" in arrays:
            maps.padded = tuple(arrays["padded"].tolist())
        sizes = ("present", "padded")
        tensors = {n: torch.from_numpy(a.astype(np.float32)) for n, a in arrays.items() if n not in sizes}
        maps.single = tensors.pop("single", None)
        for key in tensors:
            name, scale, *_ = key.split("/")
            if name == "scores":
                maps.scores[float(scale)] = tensors[key]
                continue
            getattr(maps, name)[float(scale)] = (tensors[f"{name}/{scale}/0"], tensors[f"{name}/{scale}/1"])
        return maps


@torch.no_grad()
def network_maps(
    model: Network,
    image: np.ndarray,
    labels: Sequence[int],
    protocols: Sequence[ProtocolName],
    config: EvaluationConfig,
    device: torch.device,
) -> Maps:
    """Run the network on one image H,W,3 uint8 for the protocols; its CAMs are of the classes `labels` alone."""
    maps = Maps(present=tuple(labels))
    pixels = torch.from_numpy(image).permute(2, 0, 1)
    square = moved(normalise(TF.resize(pixels, [config.crop, config.crop], antialias=False))[None], device)
    wants_cam = bool(labels) and any(name in protocols for name in _CAMS)
    if wants_cam or "single" in protocols:
        output = model(square)
        maps.single = output.seg
        if wants_cam:
            classes = torch.tensor(list(labels))
            with model.given(torch.zeros(1, model.num_classes).index_fill(1, classes, 1)):
                raw = raw_maps(model, square, config.cam_scales, output, moved(classes, device))
            for stage, pairs in raw.items():
                getattr(maps, stage).update(zip(config.cam_scales, pairs, strict=True))
    if any(name in protocols for name in _MULTI):
        source = square
        if config.style != "coco":
            source = lengthened(moved(normalise(pixels)[None], device), config.long_side)
            size = source.shape[-2:]
            source = padded(source, least_side(model, config.scales))
            maps.padded = _padded_size(source, size)
        maps.multi, maps.scores = _multi_scale(model, source, config)
    return _on_host(maps)


@torch.no_grad()
def segmentation_maps(
    model: Network,
    images: Sequence[np.ndarray],
    protocol: ProtocolName,
    config: EvaluationConfig,
    device: torch.device,
) -> list[Maps]:
    """What single, ms or ms_crf needs of images H,W,3 uint8, all of one size, in one batch."""
    pixels = torch.stack([torch.from_numpy(image).permute(2, 0, 1) for image in images])
    squashed = protocol == "single" or config.style == "coco"
    if squashed:
        pixels = TF.resize(pixels, [config.crop, config.crop], antialias=False)
    source = moved(normalise(pixels), device)
    size = None
    if not squashed:
        source = lengthened(source, config.long_side)
        before = source.shape[-2:]
        source = padded(source, least_side(model, config.scales))
        size = _padded_size(source, before)
    if protocol == "single":
        return [Maps(single=seg[None]) for seg in model(source).seg.cpu()]
    pairs, logits = _multi_scale(model, source, config)
    whole = _on_host(Maps(multi=pairs, scores=logits))
    return [
        Maps(
            multi={scale: (a[i : i + 1], b[i : i + 1]) for scale, (a, b) in whole.multi.items()},
            scores={scale: seg[i : i + 1] for scale, seg in whole.scores.items()},
            padded=size,
        )
        for i in range(len(images))
    ]


def _multi_scale(
    model: Network, images: Tensor, config: EvaluationConfig
) -> tuple[dict[float, MapPair], dict[float, Tensor]]:
    """Segmentation logits by scale, and class logits by scale where the style asks for them."""
    by_scale = dict(zip(config.scales, _raw(model, images, config.scales), strict=True))
    pairs = {scale: pair for scale, (pair, _) in by_scale.items()}
    return pairs, {scale: logits for scale, (_, logits) in by_scale.items()} if config.style == "mean" else {}


def least_side(model: Network, scales: Sequence[float]) -> int:
    """The side, in pixels, that at the smallest of `scales` and at 1 is still a patch."""
    return math.ceil(model.stride / min(1.0, *scales))


def padded(images: Tensor, least: int) -> Tensor:
    """Normalised images B,3,H,W with the mean colour below and to the right where a side is shorter than `least`.

    Training fills what an image smaller than the crop leaves open with the same colour.
    """
    height, width = images.shape[-2:]
    return F.pad(images, (0, max(0, least - width), 0, max(0, least - height)))


def lengthened(images: Tensor, long_side: int | None) -> Tensor:
    """Images B,3,H,W resized so that the longer side is `long_side`, or as they are."""
    if long_side is None:
        return images
    size = lengthened_size((images.shape[-2], images.shape[-1]), long_side)
    return F.interpolate(images, size=size, mode="bilinear", align_corners=False)


def lengthened_size(size: tuple[int, int], long_side: int | None) -> tuple[int, int]:
    """H,W after `lengthened`."""
    if long_side is None:
        return size
    return max(1, round(size[0] * long_side / max(size))), max(1, round(size[1] * long_side / max(size)))


def _padded_size(source: Tensor, before: tuple[int, ...]) -> tuple[int, int] | None:
    size = source.shape[-2], source.shape[-1]
    return size if size != tuple(before) else None


@torch.no_grad()
def raw_logits(model: Network, images: Tensor, scales: Sequence[float]) -> list[MapPair]:
    """Segmentation logits B,C+1,h,w at token resolution for each scale: of the images and of their flips."""
    return [pair for pair, _ in _raw(model, images, scales)]


def _raw(model: Network, images: Tensor, scales: Sequence[float]) -> list[tuple[MapPair, Tensor]]:
    """For each scale `raw_logits`, and class logits B,C as the mean over flips."""
    pairs = []
    for scale in scales:
        target = [max(model.stride, round(side * scale)) for side in images.shape[-2:]]
        scaled = F.interpolate(images, size=target, mode="bilinear", align_corners=False)
        output = model(torch.cat([scaled, scaled.flip(-1)]))
        straight, flipped = output.seg.chunk(2)
        pairs.append(((straight, flipped), output.cls.unflatten(0, (2, -1)).mean(0)))
    return pairs


def combined_logits(pairs: Sequence[MapPair], size: tuple[int, int], style: str) -> Tensor:
    """Logits B,C+1,H,W of `size` over scales and flips."""
    over_flips, over_scales = (torch.add, torch.maximum) if style == "voc" else (torch.maximum, torch.add)

    def one_scale(pair: MapPair) -> Tensor:
        straight, two = (F.interpolate(x, size=size, mode="bilinear", align_corners=False) for x in pair)
        return over_flips(straight, two.flip(-1))

    return reduce(over_scales, map(one_scale, pairs))


def mean_probabilities(maps: Maps, config: EvaluationConfig, size: tuple[int, int]) -> Tensor:
    """Probabilities 1,C+1,H,W of `size` over scales and flips, of style mean.

    Classes of low scores are 0, and the background is raised to its power; the sum need not be 1.
    """
    total: Tensor | float = 0.0
    for scale in config.scales:
        straight, flipped = (logits.softmax(1) for logits in maps.multi[scale])
        both = (straight + flipped.flip(-1)) / 2
        total = total + F.interpolate(both, size=size, mode="bilinear", align_corners=True)
    assert isinstance(total, Tensor)
    mean = total / len(config.scales)
    scores = torch.stack([maps.scores[scale] for scale in config.scales]).mean(0).sigmoid()[0]
    kept = torch.ones_like(scores, dtype=torch.bool)
    if config.class_threshold is not None:
        kept &= scores > config.class_threshold
    if config.class_top is not None:
        kept &= scores >= scores.topk(min(config.class_top, len(scores))).values[-1]
    background = mean[:, :1] ** config.background_power
    return torch.cat([background, mean[:, 1:] * kept[:, None, None]], 1)


def label_map(maps: Maps, protocol: ProtocolName, config: EvaluationConfig, image: np.ndarray) -> np.ndarray:
    """Labels H,W uint8 of an image H,W,3 uint8, 0 background; 255 where `refined` decides nothing.

    Raises UsageError where a CRF is not installed.
    """
    size = image.shape[0], image.shape[1]
    if protocol in _CAMS:
        return _cam_label(maps, protocol, config, image)
    if protocol == "single":
        assert maps.single is not None
        logits = F.interpolate(maps.single, size=size, mode="bilinear", align_corners=False)
    elif config.style == "mean":
        mean = mean_probabilities(maps, config, maps.padded or size)[0, :, : size[0], : size[1]]
        scores = dense_crf(image, mean.numpy(), config.crf) if protocol == "ms_crf" else mean.numpy()
        return scores.argmax(0).astype(np.uint8)
    else:
        pairs = [maps.multi[scale] for scale in config.scales]
        logits = combined_logits(pairs, maps.padded or size, config.style)
        if maps.padded is not None:
            inside = lengthened_size(size, config.long_side)
            logits = logits[..., : inside[0], : inside[1]]
            if inside != size:
                logits = F.interpolate(logits, size=size, mode="bilinear", align_corners=False)
        if config.style == "voc" and config.flips == "mean":
            logits = logits / 2
    if protocol == "ms_crf":
        return dense_crf(image, logits[0].softmax(0).numpy(), config.crf).argmax(0).astype(np.uint8)
    return logits[0].max(0).indices.to(torch.uint8).numpy()


def squashed_cam(maps: Maps, which: str, config: EvaluationConfig) -> Tensor:
    """CAM 1,K,S,S of the present classes over the squashed image."""
    pairs: dict[float, MapPair] = getattr(maps, which)
    return combined_maps([pairs[scale] for scale in config.cam_scales], (config.crop, config.crop))


def supported(map_stages: Sequence[str]) -> tuple[ProtocolName, ...]:
    """The protocols that a network with these class maps can be scored by."""
    return tuple(
        name for name in PROTOCOLS if name in SEGMENTATION or ("aux_cam" if name == "aux_cam" else "cam") in map_stages
    )


def needs_crf(protocol: ProtocolName) -> bool:
    """Whether label maps of a protocol need pydensecrf."""
    return protocol.endswith("_crf")


def _cam_label(maps: Maps, protocol: ProtocolName, config: EvaluationConfig, image: np.ndarray) -> np.ndarray:
    size = image.shape[0], image.shape[1]
    if not maps.present:
        return np.zeros(size, np.uint8)
    squashed = squashed_cam(maps, "aux_cam" if protocol == "aux_cam" else "cam", config)
    cam = F.interpolate(squashed, size=size, mode="bilinear", align_corners=False)
    if protocol == "cam_crf":
        scores = torch.cat([torch.full_like(cam[:, :1], at_rest(config.cam_threshold)), cam], dim=1)[0]
        label = dense_crf(image, (scores / scores.sum(0)).numpy(), config.crf).argmax(0)
    elif protocol == "refined":
        return _refined(squashed, maps, config, image)
    else:
        label = cam_label(cam, at_rest(config.cam_threshold))[0].numpy()
    return np.array([0, *(index + 1 for index in maps.present)], np.uint8)[label]


def _refined(cam: Tensor, maps: Maps, config: EvaluationConfig, image: np.ndarray) -> np.ndarray:
    """The pseudo-label of the squashed image, as training makes it, at the image's own size."""
    pixels = TF.resize(torch.from_numpy(image).permute(2, 0, 1), list(cam.shape[-2:]), antialias=False)
    label = pseudo_label(normalise(pixels)[None], cam, maps.single, torch.tensor(maps.present), config)
    whole = F.interpolate(label[None].float(), size=image.shape[:2], mode="nearest")[0, 0]
    return whole.to(torch.uint8).numpy()


def _on_host(maps: Maps) -> Maps:
    """The same maps on the CPU, brought there together."""
    places = [(kind, scale) for kind in ("multi", "cam", "aux_cam") for scale in getattr(maps, kind)]
    tensors = [tensor for kind, scale in places for tensor in getattr(maps, kind)[scale]]
    single = [] if maps.single is None else [maps.single]
    arrived = iter(fetched([*tensors, *maps.scores.values(), *single]))
    for kind, scale in places:
        getattr(maps, kind)[scale] = (next(arrived), next(arrived))
    maps.scores = {scale: next(arrived) for scale in maps.scores}
    maps.single = next(arrived, None)
    return maps
