"""Distances, losses, background score and walk of PSA against slow loops over cells, in double precision."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from mcc_core.pseudo_labels.inter_pixel import directions
from mcc_core.pseudo_labels.labels import IGNORE
from mcc_core.pseudo_labels.pixel_affinity import (
    affinity,
    affinity_walk,
    background_score,
    cross_entropies,
    distances,
    pairs_of,
)

HEIGHT, WIDTH, RADIUS = 4, 6, 3
CELLS = list(itertools.product(range(HEIGHT), range(WIDTH)))


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def near() -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """Every pair of different cells closer than the radius, once."""
    return [(one, two) for one, two in itertools.combinations(CELLS, 2) if math.dist(one, two) < RADIUS]


def plain_distance(features: Tensor, one: tuple[int, int], two: tuple[int, int]) -> float:
    return sum(abs(a - b) for a, b in zip(features[:, *one].tolist(), features[:, *two].tolist(), strict=True))


@pytest.mark.parametrize("kind", ["sum", "mean"])
def test_a_distance_is_the_l1_norm_of_the_difference(kind: str) -> None:
    features = drawn(2, 5, HEIGHT, WIDTH)
    found = distances(features, RADIUS, kind)  # type: ignore[arg-type]
    assert found.shape == (2, len(directions(RADIUS)), HEIGHT, WIDTH)
    counted = 0
    for image, (p, (dy, dx)), (y, x) in itertools.product(range(2), enumerate(directions(RADIUS)), CELLS):
        end = (y + dy, x + dx)
        if end in CELLS:
            wanted = plain_distance(features[image], (y, x), end) / (1 if kind == "sum" else 5)
            assert found[image, p, y, x].item() == pytest.approx(wanted, rel=1e-12)
            counted += 1
    assert counted == 2 * len(near())


def test_losses_are_means_over_each_kind_of_pair() -> None:
    features = drawn(1, 5, HEIGHT, WIDTH).requires_grad_()
    label = torch.randint(0, 3, (1, HEIGHT, WIDTH), generator=torch.Generator().manual_seed(1))
    label[0, 1, 2:4] = IGNORE
    kinds: dict[str, list[float]] = {"background": [], "foreground": [], "different": []}
    for one, two in near():
        first, second = label[0, *one].item(), label[0, *two].item()
        if IGNORE in (first, second):
            continue
        weight = math.exp(-plain_distance(features.detach()[0], one, two))
        if first != second:
            kinds["different"].append(-math.log(1 + 1e-5 - weight))
        else:
            kinds["background" if first == 0 else "foreground"].append(-math.log(weight))
    assert all(kinds.values())
    found = cross_entropies(distances(features, RADIUS, "sum"), pairs_of(label, RADIUS))
    for loss, values in zip(found, kinds.values(), strict=True):
        assert loss.item() == pytest.approx(sum(values) / (len(values) + 1e-5), rel=1e-12)


def test_the_gradient_of_distances_is_that_of_the_plain_formula() -> None:
    features = drawn(1, 3, HEIGHT, WIDTH).requires_grad_()
    weights = drawn(1, len(directions(RADIUS)), HEIGHT, WIDTH, seed=2)
    (distances(features, RADIUS, "sum") * weights).sum().backward()
    found, features.grad = features.grad, None
    total = torch.zeros((), dtype=torch.float64)
    for p, (dy, dx) in enumerate(directions(RADIUS)):
        for y, x in CELLS:
            inside = (y + dy, x + dx) in CELLS
            other = features[0, :, y + dy, x + dx] if inside else torch.zeros(3, dtype=torch.float64)
            total = total + weights[0, p, y, x] * (features[0, :, y, x] - other).abs().sum()
    total.backward()
    torch.testing.assert_close(found, features.grad)


def test_labels_without_any_pair_cost_nothing() -> None:
    features = drawn(1, 3, HEIGHT, WIDTH).requires_grad_()
    pairs = pairs_of(torch.full((1, HEIGHT, WIDTH), IGNORE), RADIUS)
    losses = cross_entropies(distances(features, RADIUS, "sum"), pairs)
    sum(losses, torch.zeros(())).backward()
    assert not any(losses) and features.grad is not None and not features.grad.any()


def test_the_background_is_a_power_of_what_the_highest_map_leaves() -> None:
    maps = drawn(3, HEIGHT, WIDTH)
    found = background_score(maps, 16.0)
    for y, x in CELLS:
        assert found[0, y, x].item() == pytest.approx((1 - max(maps[:, y, x].tolist())) ** 16, rel=1e-12)


def test_the_walk_is_the_power_of_the_dense_row_normalised_matrix() -> None:
    features, maps, power = drawn(1, 5, HEIGHT, WIDTH), drawn(2, HEIGHT, WIDTH, seed=3), 8.0
    plain = torch.eye(len(CELLS), dtype=torch.float64)
    for one, two in near():
        i, j = CELLS.index(one), CELLS.index(two)
        plain[i, j] = plain[j, i] = math.exp(-plain_distance(features[0], one, two)) ** power
    plain = plain / plain.sum(1, keepdim=True)
    alike = affinity(distances(features, RADIUS, "sum"))[0]
    found = affinity_walk(maps, alike, radius=RADIUS, power=power, log_steps=4)
    wanted = (torch.linalg.matrix_power(plain, 16) @ maps.flatten(1).T).T.reshape(maps.shape)
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-14)
    even = affinity_walk(torch.ones_like(maps), alike, radius=RADIUS, power=power, log_steps=4)
    torch.testing.assert_close(even, torch.ones_like(maps), rtol=1e-12, atol=0)
