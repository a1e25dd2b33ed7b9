"""What becomes of the scores of one image: thresholds, chains, random walks, confidence."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from trained import SMALLEST, smallest

from mcc_core.errors import UsageError
from mcc_core.methods.registry import METHODS, method_of
from mcc_core.pseudo_labels.crf import dense_crf
from mcc_core.pseudo_labels.labels import cam_label
from mcc_core.refinement.base import Picture, RandomWalkConfig, Refinement, Viewer, refined
from mcc_core.refinement.kinds import STEPS
from mcc_core.refinement.random_walk import mean_attention, transition, walked
from mcc_core.validation import validate

CPU = torch.device("cpu")


def picture(maps: torch.Tensor, classes: tuple[int, ...], **more: Any) -> Picture:
    image = np.random.default_rng(0).integers(0, 256, (*maps.shape[1:], 3), dtype=np.uint8)
    return Picture("a", image, classes, maps, **more)


def of(**fields: Any) -> Refinement:
    return validate(Refinement, fields, "refine")


MAPS = torch.tensor([[[0.0, 0.45, 0.5, 0.9]], [[0.1, 0.2, 0.55, 0.95]]])


def test_thresholds_decide_as_the_cams_own_do() -> None:
    label, sure = refined(picture(MAPS, (1, 3)), of(threshold=0.5), STEPS)
    assert label.tolist() == [[0, 0, 4, 4]]
    assert sure[0, 0] == pytest.approx(0.5 / 0.6) and sure[0, 3] == pytest.approx(0.95 / 2.35)
    wide = torch.rand(2, 9, 7, generator=torch.Generator().manual_seed(0))
    label, _ = refined(picture(wide, (0, 1)), of(threshold=0.5), STEPS)
    assert (label == cam_label(wide[None], 0.5)[0].numpy()).all()


def test_between_two_thresholds_it_is_open() -> None:
    label, sure = refined(picture(MAPS, (1, 3)), of(threshold=0.3, foreground=0.5), STEPS)
    assert label.tolist() == [[0, 255, 4, 4]]
    assert sure[0, 1] == 0 and (sure[0, [0, 2, 3]] > 0).all()


def test_what_is_not_confident_is_open() -> None:
    _, sure = refined(picture(MAPS, (1, 3)), of(threshold=0.5), STEPS)
    label, kept = refined(picture(MAPS, (1, 3)), of(threshold=0.5, confidence=0.42), STEPS)
    assert ((label == 255) == (sure < 0.42)).all() and (kept[label == 255] == 0).all() and 255 in label


def test_an_image_of_no_class_is_background() -> None:
    label, sure = refined(picture(torch.zeros(0, 3, 4), ()), of(kind="crf"), STEPS)
    assert label.shape == (3, 4) and not label.any() and (sure == 1).all()


def test_crf_is_the_one_of_the_protocols() -> None:
    maps = torch.rand(1, 12, 10, generator=torch.Generator().manual_seed(1))
    seen = picture(maps, (2,))
    label, _ = refined(seen, of(kind="crf", threshold=0.5, crf={"iterations": 3}), STEPS)
    scores = torch.cat([torch.full_like(maps, 0.5), maps])
    config = of(kind="crf", crf={"iterations": 3}).crf
    expected = dense_crf(seen.image, (scores / scores.sum(0)).numpy(), config).argmax(0) * 3
    assert (label == expected).all() and len(np.unique(label)) == 2


def test_par_follows_the_image() -> None:
    image = np.zeros((32, 32, 3), np.uint8)
    image[:, 16:] = 200
    maps = torch.zeros(1, 32, 32)
    maps[:, :, 20:] = 1.0  # misses four columns of the bright half
    seen = Picture("a", image, (0,), maps)
    label, _ = refined(seen, of(kind="par", threshold=0.3, par={"dilations": [1, 2, 4], "downscale": 1}), STEPS)
    assert (label[:, :16] == 0).all() and (label[:, 16:] == 1).all()


def test_a_chain_applies_its_steps_in_order() -> None:
    maps = torch.rand(2, 8, 8, generator=torch.Generator().manual_seed(2))
    attention = torch.rand(4, 4, 16, generator=torch.Generator().manual_seed(3))
    seen = picture(maps, (0, 1), answers={"random_walk": attention})
    config = of(kind=["random_walk", "crf"], random_walk={"steps": 1}, threshold=0.4)
    step = walked(torch.cat([torch.full((1, 8, 8), 0.4), maps]), attention, config.random_walk)
    expected = dense_crf(seen.image, (step / step.sum(0)).numpy(), config.crf)
    label, sure = refined(seen, config, STEPS)
    assert (label == expected.argmax(0)).all()
    np.testing.assert_allclose(sure, expected.max(0) / expected.sum(0), rtol=1e-6)


def test_a_transition_is_psas() -> None:
    """Equation 4 of PSA in double precision, for a symmetric affinity: T = D^-1 A^beta."""
    affinity = torch.rand(9, 9, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    affinity = (affinity + affinity.T) / 2
    powers = affinity**8
    expected = torch.diag(1 / powers.sum(1)) @ powers
    found = transition(affinity, RandomWalkConfig(beta=8, normalise="row"))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
    scores = torch.rand(3, 3, 3, generator=torch.Generator().manual_seed(5))
    config = RandomWalkConfig(beta=8, normalise="row", steps=4, rescale=False)
    by_power = torch.linalg.matrix_power(expected, 4) @ scores.flatten(1).T.double()
    torch.testing.assert_close(walked(scores, affinity.view(3, 3, 9), config).flatten(1).T.double(), by_power)


@settings(max_examples=25, deadline=None)
@given(st.floats(0.5, 12), st.floats(1e-12, 1.0), st.integers(0, 99))
def test_sums_of_rows_and_columns_are_one(beta: float, least: float, seed: int) -> None:
    affinity = torch.rand(12, 12, generator=torch.Generator().manual_seed(seed)).clamp(min=least) ** 3
    both = transition(affinity, RandomWalkConfig(beta=beta, normalise="both"))
    rows = transition(affinity, RandomWalkConfig(beta=beta, normalise="row"))
    ones = torch.ones(12, dtype=torch.float64)
    torch.testing.assert_close(both.sum(1), ones)
    torch.testing.assert_close(rows.sum(1), ones)
    assert both.isfinite().all()


def test_a_constant_score_walks_nowhere() -> None:
    attention = torch.rand(3, 4, 12, generator=torch.Generator().manual_seed(6))
    scores = torch.stack([torch.full((9, 8), 0.4), torch.rand(9, 8, generator=torch.Generator().manual_seed(7))])
    found = walked(scores, attention, RandomWalkConfig(steps=3))
    torch.testing.assert_close(found[0], scores[0])
    plain = walked(scores, attention, RandomWalkConfig(steps=3, rescale=False))
    assert plain[1].max() - plain[1].min() < 0.1 < 0.5 < found[1].max() - found[1].min() < 1


@pytest.mark.parametrize("name", [name for name in SMALLEST if METHODS[name].map_stages])
def test_attention_of_every_method(name: str) -> None:
    experiment = smallest(name)
    torch.manual_seed(0)
    network = method_of(experiment).network(experiment, 3).eval()
    image = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    if not METHODS[name].has_attention:
        with pytest.raises(UsageError, match="no attention between all patches; par and crf need none"):
            mean_attention(network, image, None)
        return
    attention = mean_attention(network, image, None)
    height, width, patches = attention.shape
    assert height * width == patches and (attention >= 0).all() and (attention.sum(-1) <= 1 + 1e-5).all()
    assert not torch.equal(attention, mean_attention(network, image, 1))


def test_attention_is_that_of_the_blocks() -> None:
    """Of the last block of the smallest MCC network, from its own queries and keys."""
    experiment = smallest("mcc")
    torch.manual_seed(0)
    network: Any = method_of(experiment).network(experiment, 3).eval()
    image = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    seen: list[torch.Tensor] = []
    attn = network.encoder.vit.blocks[-1].attn
    hook = attn.qkv.register_forward_hook(lambda module, given, out: seen.append(out))
    found = mean_attention(network, image, 1)
    hook.remove()
    query, key, _ = seen[0].unflatten(2, (3, attn.num_heads, -1)).permute(2, 0, 3, 1, 4)
    weights = (query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5).softmax(-1).mean(1)
    torch.testing.assert_close(found.flatten(0, 1), weights[0, 1:, 1:].detach())


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"kind": "crff"}, r"kind\[0\]: 'crff': expected 'none', 'par', 'crf', 'random_walk', 'irn' or 'psa'"),
        ({"kind": []}, "a chain lists one or more of"),
        ({"kind": "par", "crf": {"iterations": 3}}, "crf: is set, but kind is par, which does not use it"),
        ({"threshold": 0.5, "foreground": 0.4}, r"foreground \(0.4\) must be at least the threshold \(0.5\)"),
        ({"kind": "crf,psa"}, "psa must be first"),
        ({"kind": "psa", "threshold": 0.3}, "threshold: psa has no constant background; its score is psa.alpha's"),
        ({"thresholds": 0.5}, "thresholds: unknown field, did you mean threshold"),
        ({"kind": "crf", "crf": {"iteration": 3}}, "crf.iteration: unknown field, did you mean crf.iterations"),
    ],
)
def test_mistakes_are_one_line(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said) as error:
        of(**fields)
    assert "\n" not in str(error.value)


def test_only_what_decides_is_part_of_an_identity() -> None:
    assert "crf" not in of(kind="par").decisive() and of(kind="crf").decisive()["crf"]["iterations"] == 10
    assert of(kind="crf").decisive() == of(kind=["crf"]).decisive()


def test_a_walk_needs_a_network() -> None:
    with pytest.raises(UsageError, match="needs a network's attention"):
        STEPS["random_walk"].asks(None, of(kind="random_walk"), CPU)
    assert Viewer.__dataclass_fields__.keys() == {"network", "side", "device"}
