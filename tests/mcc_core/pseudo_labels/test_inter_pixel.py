"""Pairs, affinities, losses and the random walk of IRN against slow loops over pixels, in double precision."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from mcc_core.pseudo_labels.inter_pixel import (
    affinity_losses,
    between,
    differences,
    directions,
    displacement_losses,
    links,
    path,
    path_affinity,
    random_walk,
    relations,
    weights,
)
from mcc_core.pseudo_labels.labels import IGNORE

HEIGHT, WIDTH, RADIUS = 7, 9, 3
EPSILON = 1e-5
Pixel = tuple[int, int]


def drawn(*shape: int) -> Tensor:
    return torch.rand(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def way(source: Pixel, to: Pixel) -> list[Pixel]:
    """Pixels of the rectangle of two whose distance from the line through both is below one."""
    (y0, x0), (y1, x1) = source, to
    length = math.hypot(y1 - y0, x1 - x0)
    found = []
    for y in range(min(y0, y1), max(y0, y1) + 1):
        for x in range(min(x0, x1), max(x0, x1) + 1):
            distance = abs((y1 - y0) * (x - x0) - (x1 - x0) * (y - y0)) / length
            if distance < 1 - 1e-12:
                found.append((y, x))
    return found


def sources(height: int = HEIGHT, width: int = WIDTH) -> list[Pixel]:
    """Pixels whose destinations all lie inside."""
    reach = RADIUS - 1
    return [(y, x) for y in range(height - reach) for x in range(reach, width - reach)]


def offsets() -> list[Pixel]:
    """Each pair once: later in reading order, closer than the radius."""
    near = range(-RADIUS, RADIUS + 1)
    return [(y, x) for y in near for x in near if (y, x) > (0, 0) and math.hypot(y, x) < RADIUS]


def test_directions_are_half_of_a_disc() -> None:
    assert sorted(directions(RADIUS)) == sorted(offsets())
    assert len(directions(10)) == 152 and len(directions(5)) == 34  # as the published code counts them
    both = {*directions(5), *((-y, -x) for y, x in directions(5))}
    assert both == {(y, x) for y, x in itertools.product(range(-5, 6), repeat=2) if 0 < y * y + x * x < 25}


@pytest.mark.parametrize("offset", [(0, 3), (2, 0), (2, -2), (3, 1), (4, -7)])
def test_a_path_is_the_pixels_beside_the_line(offset: Pixel) -> None:
    assert sorted(path(offset)) == sorted(way((0, 0), offset))
    assert {(0, 0), offset} <= set(path(offset))


def test_affinities_are_one_minus_the_largest_boundary_on_the_way() -> None:
    boundary = drawn(2, HEIGHT, WIDTH)
    found = path_affinity(boundary, RADIUS)
    reach = RADIUS - 1
    assert found.shape == (2, len(offsets()), HEIGHT - reach, WIDTH - 2 * reach)
    for image, (p, (dy, dx)), (y, x) in itertools.product(range(2), enumerate(directions(RADIUS)), sources()):
        largest = max(boundary[image, i, j].item() for i, j in way((y, x), (y + dy, x + dx)))
        assert found[image, p, y, x - reach].item() == pytest.approx(1 - largest, abs=1e-15)


def plain_pairs(label: Tensor) -> dict[str, list[tuple[int, int, int, int]]]:
    """By kind, image, direction and place of each pair."""
    kinds: dict[str, list[tuple[int, int, int, int]]] = {"background": [], "foreground": [], "different": []}
    for image, (p, (dy, dx)), (y, x) in itertools.product(range(len(label)), enumerate(directions(RADIUS)), sources()):
        one, two = label[image, y, x].item(), label[image, y + dy, x + dx].item()
        if IGNORE in (one, two):
            continue
        kind = "different" if one != two else "background" if one == 0 else "foreground"
        kinds[kind].append((image, p, y, x - RADIUS + 1))
    return kinds


def some_label() -> Tensor:
    label = torch.randint(0, 3, (2, HEIGHT, WIDTH), generator=torch.Generator().manual_seed(1))
    label[:, 2, 3:6] = IGNORE
    return label


def test_relations_and_losses_are_means_over_each_kind_of_pair() -> None:
    label, kinds = some_label(), plain_pairs(some_label())
    pairs = relations(label, RADIUS)
    for kind, places in kinds.items():
        assert places and sorted(places) == sorted(map(tuple, getattr(pairs, kind).nonzero().tolist()))
    affinity, field = path_affinity(drawn(2, HEIGHT, WIDTH), RADIUS), 4 * drawn(2, 2, HEIGHT, WIDTH)
    moved = differences(field, RADIUS)

    def mean(values: list[float]) -> float:
        return sum(values) / (len(values) + EPSILON)

    logs = {kind: [math.log(affinity[place].item() + EPSILON) for place in kinds[kind]] for kind in kinds}
    alike, unlike = affinity_losses(affinity, pairs)
    assert alike.item() == pytest.approx(-(mean(logs["background"]) + mean(logs["foreground"])) / 2, rel=1e-12)
    others = [math.log(1 + EPSILON - affinity[place].item()) for place in kinds["different"]]
    assert unlike.item() == pytest.approx(-mean(others), rel=1e-12)

    def errors(kind: str, *, pointed: bool) -> list[float]:
        found = []
        for image, p, y, x in kinds[kind]:
            dy, dx = directions(RADIUS)[p]
            source, end = field[image, :, y, x + RADIUS - 1], field[image, :, y + dy, x + RADIUS - 1 + dx]
            assert torch.equal(moved[image, :, p, y, x], source - end)
            wanted = torch.tensor([dy, dx] if pointed else [0, 0], dtype=torch.float64)
            found.append((source - end - wanted).abs().mean().item())
        return found

    foreground, background = displacement_losses(field, pairs, RADIUS)
    assert foreground.item() == pytest.approx(mean(errors("foreground", pointed=True)), rel=1e-12)
    assert background.item() == pytest.approx(mean(errors("background", pointed=False)), rel=1e-12)


def test_displacements_that_point_at_one_place_cost_nothing() -> None:
    rows, columns = torch.meshgrid(torch.arange(HEIGHT), torch.arange(WIDTH), indexing="ij")
    to_middle = torch.stack([3 - rows, 4 - columns])[None].double()
    pairs = relations(torch.ones(1, HEIGHT, WIDTH, dtype=torch.long), RADIUS)
    foreground, background = displacement_losses(to_middle, pairs, RADIUS)
    assert foreground == 0 and background == 0  # there is no background pair


def test_labels_without_any_pair_cost_nothing() -> None:
    pairs = relations(torch.full((1, HEIGHT, WIDTH), IGNORE), RADIUS)
    boundary = drawn(1, HEIGHT, WIDTH).requires_grad_()
    alike, unlike = affinity_losses(path_affinity(boundary, RADIUS), pairs)
    (alike + unlike).backward()
    assert alike == 0 and unlike == 0 and boundary.grad is not None and not boundary.grad.any()


def plain_transition(boundary: Tensor, power: float) -> Tensor:
    height, width = boundary.shape
    pixels = list(itertools.product(range(height), range(width)))
    affinity = torch.zeros(len(pixels), len(pixels), dtype=torch.float64)
    for (i, one), (j, two) in itertools.product(enumerate(pixels), repeat=2):
        if math.dist(one, two) < RADIUS:
            on_way = [boundary[place].item() for place in way(one, two)] if one != two else [0.0]
            affinity[i, j] = (1 - max(on_way)) ** power
    return affinity / affinity.sum(0, keepdim=True)


def test_the_walk_is_the_power_of_the_dense_transition_matrix() -> None:
    boundary, maps = drawn(5, 6), drawn(2, 5, 6)
    plain = plain_transition(boundary, 10.0)
    near = links(5, 6, RADIUS, boundary.device)
    weight = weights(between(boundary, RADIUS), near, 10.0)
    found = torch.zeros(30, 30, dtype=torch.float64)
    for pixel in range(30):
        its = slice(int(near.begins[pixel]), int(near.begins[pixel + 1]))
        found[near.to[its].long(), pixel] = weight[its]
    found = found / found.sum(0, keepdim=True)
    torch.testing.assert_close(found, plain, rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(found.sum(0), torch.ones(30, dtype=torch.float64), rtol=1e-12, atol=0)
    for _ in range(4):
        plain = plain @ plain
    wanted = ((maps * (1 - boundary)).flatten(1) @ plain).reshape(2, 5, 6)
    walked = random_walk(maps, boundary, radius=RADIUS, power=10.0, log_steps=4)
    torch.testing.assert_close(walked, wanted, rtol=1e-10, atol=1e-14)


def test_scores_spread_up_to_a_boundary_and_no_further() -> None:
    boundary = torch.zeros(6, 9, dtype=torch.float64)
    boundary[:, 4] = 1
    seed = torch.zeros(1, 6, 9, dtype=torch.float64)
    seed[0, 2, 1] = 1
    walked = random_walk(seed, boundary, radius=RADIUS, power=10.0, log_steps=6)[0]
    assert (walked[:, :4] > 0.01).all() and not walked[:, 4:].any()
