"""The lattice filter: the standard lattice exactly, Gaussian sums to its known accuracy, and a filter's properties."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mcc_core.losses.permutohedral import PermutohedralLattice, _key_layout, bilateral_filter

Key = tuple[int, ...]


def _natural(batch: int, size: int, seed: int = 0, noise: float = 5.0) -> Tensor:
    """Images B,3,H,W in 0..255 with structure at several scales, and noise."""
    generator = torch.Generator().manual_seed(seed)
    image = torch.full((batch, 3, size, size), 128.0)
    for cells in (2, 5, 12):
        coarse = torch.randn(batch, 3, cells, cells, generator=generator)
        image += F.interpolate(coarse, size=(size, size), mode="bilinear") * 80 / cells**0.5
    return (image + noise * torch.randn(image.shape, generator=generator)).clamp(0, 255)


def _values(batch: int, channels: int, size: int, seed: int = 1) -> Tensor:
    return torch.rand(batch, channels, size, size, generator=torch.Generator().manual_seed(seed))


def _features(image: Tensor, sigma_rgb: float, sigma_xy: float) -> Tensor:
    """P,5 of one image 3,H,W."""
    height, width = image.shape[-2:]
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([x / sigma_xy, y / sigma_xy, *(image / sigma_rgb)], dim=-1).view(-1, 5)


def _simplex(feature: list[float]) -> list[tuple[Key, float]]:
    """Vertices around one point with their weights, coordinate by coordinate as in Adams et al., Section 3."""
    d = len(feature)
    scale = math.sqrt(2 / 3) * (d + 1)
    scaled = [f * scale / math.sqrt((i + 1) * (i + 2)) for i, f in enumerate(feature)]
    elevated = [sum(scaled[i:]) - (i * scaled[i - 1] if i else 0) for i in range(d + 1)]
    corner = []
    for e in elevated:
        up, down = math.ceil(e / (d + 1)) * (d + 1), math.floor(e / (d + 1)) * (d + 1)
        corner.append(up if up - e < e - down else down)
    excess = sum(corner) // (d + 1)
    order = sorted(range(d + 1), key=lambda i: (corner[i] - elevated[i], i))  # largest distance first
    rank = {i: place + excess for place, i in enumerate(order)}
    for i in range(d + 1):
        while rank[i] < 0:
            rank[i], corner[i] = rank[i] + d + 1, corner[i] + d + 1
        while rank[i] > d:
            rank[i], corner[i] = rank[i] - d - 1, corner[i] - d - 1
    weights = [0.0] * (d + 2)
    for i in range(d + 1):
        part = (elevated[i] - corner[i]) / (d + 1)
        weights[d - rank[i]] += part
        weights[d + 1 - rank[i]] -= part
    weights[0] += 1 + weights.pop()
    keys = [tuple(corner[i] + k - (d + 1) * (rank[i] > d - k) for i in range(d + 1)) for k in range(d + 1)]
    return list(zip(keys, weights, strict=True))


def _lattice_by_dictionary(features: list[list[float]], values: list[float]) -> tuple[list[float], int]:
    """One channel filtered with vertices in a dictionary; also the number of vertices."""
    d = len(features[0])
    simplices = [_simplex(feature) for feature in features]
    table: dict[Key, float] = defaultdict(float)
    for simplex, value in zip(simplices, values, strict=True):
        for key, weight in simplex:
            table[key] += weight * value
    for axis in range(d + 1):
        step = [-1 + (d + 1) * (i == axis) for i in range(d + 1)]
        near = [tuple(sign * s for s in step) for sign in (1, -1)]
        table = {
            key: value + 0.5 * sum(table.get(tuple(a + b for a, b in zip(key, n, strict=True)), 0.0) for n in near)
            for key, value in table.items()
        }
    alpha = 1 / (1 + 2.0**-d)
    return [alpha * sum(weight * table[key] for key, weight in simplex) for simplex in simplices], len(table)


def _gaussian_sums(features: Tensor, values: Tensor) -> Tensor:
    return torch.exp(-0.5 * torch.cdist(features, features) ** 2) @ values


@pytest.mark.parametrize(("sigma_rgb", "sigma_xy"), [(15.0, 100.0), (15.0, 6.0), (40.0, 3.0), (4.0, 20.0)])
@pytest.mark.parametrize("shift", [0, -61])  # published: colours out of 0..255 count as they are
def test_it_is_the_standard_lattice(sigma_rgb: float, sigma_xy: float, shift: int) -> None:
    image, values = _natural(1, 12).double() + shift, _values(1, 1, 12).double()
    features = _features(image[0], sigma_rgb, sigma_xy)
    expected, vertices = _lattice_by_dictionary(features.tolist(), values.flatten().tolist())
    filtered = bilateral_filter(image, values, sigma_rgb, sigma_xy)
    torch.testing.assert_close(filtered.flatten(), torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=1e-12)
    low, high = features.amin(0).tolist(), features.amax(0).tolist()
    assert PermutohedralLattice(features[None], low, high).vertices == vertices


@settings(max_examples=20, deadline=None)
@given(
    dimensions=st.integers(1, 6),
    spread=st.floats(0.1, 20),
    origin=st.floats(-30, 30),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_features_and_dimension(dimensions: int, spread: float, origin: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    features = origin + spread * torch.rand(40, dimensions, generator=generator, dtype=torch.float64)
    values = torch.rand(40, 1, generator=generator, dtype=torch.float64)
    expected, vertices = _lattice_by_dictionary(features.tolist(), values.flatten().tolist())
    lattice = PermutohedralLattice(features[None], [origin] * dimensions, [origin + spread] * dimensions)
    torch.testing.assert_close(lattice.filter(values[None])[0, :, 0], torch.tensor(expected, dtype=torch.float64))
    assert lattice.vertices == vertices


@pytest.mark.parametrize(("sigma_rgb", "sigma_xy"), [(15.0, 100.0), (15.0, 6.0), (30.0, 8.0), (60.0, 20.0)])
def test_gaussian_sums_within_the_lattices_accuracy(sigma_rgb: float, sigma_xy: float) -> None:
    """The standard lattice gives about 0.55 of the sum in five dimensions, with errors of some percent beyond that;
    the factor cancels in means (filtered values over filtered ones)."""
    image, values = _natural(1, 40).double(), _values(1, 3, 40).double()
    values = torch.cat([values, torch.ones_like(values[:, :1])], dim=1)
    exact = _gaussian_sums(_features(image[0], sigma_rgb, sigma_xy), values[0].flatten(1).T)
    filtered = bilateral_filter(image, values, sigma_rgb, sigma_xy)[0].flatten(1).T
    factor = (filtered * exact).sum() / (exact * exact).sum()
    assert 0.45 < factor < 0.65
    assert (filtered / factor - exact).norm() < 0.12 * exact.norm()
    mean, exact_mean = (x[:, :3] / x[:, 3:] for x in (filtered, exact))
    assert (mean - exact_mean).norm() < 0.03 * exact_mean.norm()


def test_linear_in_the_values() -> None:
    image, a, b = _natural(1, 24).double(), _values(1, 2, 24).double(), _values(1, 2, 24, seed=2).double()

    def run(values: Tensor) -> Tensor:
        return bilateral_filter(image, values, 15, 20)

    torch.testing.assert_close(run(3 * a - 2 * b), 3 * run(a) - 2 * run(b), rtol=1e-12, atol=1e-10)


def test_nearly_symmetric() -> None:
    """Blurring along one direction after another is symmetric only up to the vertices missing from the lattice."""
    image, a, b = _natural(1, 32), _values(1, 1, 32), _values(1, 1, 32, seed=2)
    left, right = ((x * bilateral_filter(image, y, 15, 20)).sum() for x, y in ((a, b), (b, a)))
    assert abs(left - right) / left < 0.01


def test_one_colour_leaves_a_spatial_gaussian() -> None:
    """On an image of one colour a constant stays one, inside, and a single point spreads as far as sigma says."""
    image = torch.full((1, 3, 61, 61), 90.0)
    inner = bilateral_filter(image, torch.ones(1, 1, 61, 61), 15, 5)[0, 0, 20:41, 20:41]
    assert inner.std() / inner.mean() < 0.1
    points = torch.zeros(1, 25, 61, 61)
    for i in range(25):  # the lattice's pattern differs from place to place: average
        points[0, i, 28 + i // 5, 28 + i % 5] = 1
    spread = bilateral_filter(image, points, 15, 5)[0]
    for i, one in enumerate(spread):
        spread[i] = one.roll((2 - i // 5, 2 - i % 5), (0, 1))
    mean = spread.mean(0)
    offset = torch.arange(61) - 30
    deviation = ((mean.sum(0) * offset**2).sum() / mean.sum()).sqrt()
    assert abs(deviation - 5) < 0.75


def test_edges_separate() -> None:
    """A step of many sigmas keeps the two sides apart: nothing put left arrives at the right."""
    image = torch.zeros(1, 3, 16, 16)
    image[..., 8:] = 255
    values = torch.zeros(1, 1, 16, 16)
    values[..., :8] = 1
    filtered = bilateral_filter(image, values, 15, 100)
    assert filtered[..., :8].min() > 50 and (filtered[..., 8:] == 0).all()


def test_images_of_a_batch_do_not_meet() -> None:
    images, values = _natural(3, 20), _values(3, 5, 20)
    together = bilateral_filter(images, values, 15, 30)
    for i in range(3):
        assert torch.equal(together[i], bilateral_filter(images[i : i + 1], values[i : i + 1], 15, 30)[0])


def test_channels_do_not_meet() -> None:
    image, values = _natural(1, 20), _values(1, 21, 20)
    together = bilateral_filter(image, values, 15, 30)
    torch.testing.assert_close(together[:, 7:8], bilateral_filter(image, values[:, 7:8], 15, 30))


def test_float32_is_close_to_float64() -> None:
    image, values = _natural(1, 64), _values(1, 4, 64)
    single, double = (bilateral_filter(image.to(t), values.to(t), 15, 100) for t in (torch.float32, torch.float64))
    assert single.dtype == torch.float32 and double.dtype == torch.float64
    assert (single - double).norm() / double.norm() < 1e-4


def test_half_precision_values_give_float32() -> None:
    image, values = _natural(1, 16), _values(1, 2, 16).half()
    filtered = bilateral_filter(image, values, 15, 100)
    assert filtered.dtype == torch.float32
    torch.testing.assert_close(filtered, bilateral_filter(image, values.float(), 15, 100))


def test_memory_layout_does_not_matter() -> None:
    image, values = _natural(2, 16), _values(2, 6, 16)
    strided = values.to(memory_format=torch.channels_last)
    assert torch.equal(bilateral_filter(image, values, 15, 100), bilateral_filter(image, strided, 15, 100))


def test_a_lattice_filters_again() -> None:
    image, a, b = _natural(1, 16), _values(1, 2, 16), _values(1, 7, 16, seed=3)
    features = _features(image[0], 15, 100)[None]
    lattice = PermutohedralLattice(features, [0.0] * 5, [1, 1, 17, 17, 17])
    for values in (a, b):
        filtered = lattice.filter(values.flatten(2).transpose(1, 2)).transpose(1, 2).view_as(values)
        torch.testing.assert_close(filtered, bilateral_filter(image, values, 15, 100), rtol=1e-5, atol=1e-5)


def test_values_carry_no_gradient() -> None:
    values = _values(1, 2, 8).requires_grad_()
    assert not bilateral_filter(_natural(1, 8), values, 15, 100).requires_grad


def test_pixels_far_out_of_range_are_cut() -> None:
    image, values = _natural(1, 16), _values(1, 1, 16)
    image[..., 0, 0], image[..., 0, 1] = -400, 900
    assert torch.equal(bilateral_filter(image, values, 15, 9), bilateral_filter(image.clamp(-256, 511), values, 15, 9))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: bilateral_filter(torch.zeros(1, 3, 8, 8), torch.zeros(1, 2, 8, 9), 15, 100), "not \\(1, 3, 8, 9\\)"),
        (lambda: bilateral_filter(torch.zeros(1, 3, 8, 8), torch.zeros(1, 2, 8, 8), 0, 100), "positive, not 0"),
        (lambda: bilateral_filter(torch.zeros(1, 3, 8, 8), torch.zeros(1, 2, 8, 8), 1e-4, 1e-4), "sigma too small"),
    ],
)
def test_wrong_input_is_named(call: Callable[[], Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


@settings(max_examples=50, deadline=None)
@given(low=st.lists(st.floats(-20, 20), min_size=1, max_size=6), extent=st.floats(0, 60))
def test_keys_tell_vertices_apart(low: list[float], extent: float) -> None:
    """What makes keys unique: digits multiples of D+1 in number, so that the strides sum to 1 modulo D+1."""
    strides, base, keys = _key_layout(low, [x + extent for x in low])
    size = len(low) + 1
    assert sum(strides) % size == 1 % size
    assert all(b % size == 0 for b in base) and strides[-1] == base[-1] == 0
    assert keys > size * (strides[-2] + sum(strides))
