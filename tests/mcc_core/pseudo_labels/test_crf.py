"""Dense CRF: sharper masks, the published settings, and the same results from any number of processes."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from pydantic import ValidationError

from mcc_core.config import CrfConfig
from mcc_core.errors import UsageError
from mcc_core.pseudo_labels.crf import Image, Probabilities, dense_crf


def _noisy_disc(size: int, seed: int) -> tuple[Image, Probabilities, np.ndarray]:
    """A red disc on a blue ground, with probabilities that are right on average but blurred and noisy."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size] - size / 2
    inside = np.hypot(x, y) < size / 3
    image = np.where(inside[..., None], [200, 40, 40], [40, 60, 180]) + rng.normal(0, 2, (size, size, 3))
    sure = np.clip(0.5 + (size / 3 - np.hypot(x, y)) / size + rng.normal(0, 0.25, (size, size)), 0.02, 0.98)
    return image.astype(np.uint8), np.stack([1 - sure, sure]).astype(np.float32), inside


def test_crf_sharpens_a_noisy_mask() -> None:
    image, probabilities, inside = _noisy_disc(64, 0)
    refined = dense_crf(image, probabilities)
    wrong_before = (probabilities.argmax(0) != inside).mean()
    wrong_after = (refined.argmax(0) != inside).mean()
    assert wrong_before > 0.1 and wrong_after < 0.01
    assert refined.dtype == np.float32 and refined.shape == probabilities.shape
    np.testing.assert_allclose(refined.sum(0), 1, atol=1e-5)


def test_without_pairwise_terms_the_probabilities_stay() -> None:
    image, probabilities, _ = _noisy_disc(24, 1)
    refined = dense_crf(image, probabilities, CrfConfig(gaussian_compat=0, bilateral_compat=0))
    np.testing.assert_allclose(refined, probabilities, atol=1e-5)


def test_certain_probabilities_give_finite_results() -> None:
    image, _, inside = _noisy_disc(24, 2)
    certain = np.stack([~inside, inside]).astype(np.float32)
    assert np.isfinite(dense_crf(image, certain)).all()


def test_inputs_may_be_views_and_are_left_alone() -> None:
    image, probabilities, _ = _noisy_disc(24, 3)
    kept = probabilities.copy()
    flipped = dense_crf(image[:, ::-1], probabilities[:, :, ::-1])
    contiguous = dense_crf(image[:, ::-1].copy(), probabilities[:, :, ::-1].copy())
    np.testing.assert_array_equal(flipped, contiguous)
    np.testing.assert_array_equal(probabilities, kept)


@pytest.mark.parametrize("field", ["iterations", "bilateral_sxy", "bilateral_srgb", "gaussian_sxy"])
def test_settings_are_checked(field: str) -> None:
    with pytest.raises(ValidationError):
        CrfConfig(**{field: 0})


def test_wrong_shapes_are_named() -> None:
    image, probabilities, _ = _noisy_disc(24, 4)
    with pytest.raises(ValueError, match=r"\(24, 20, 3\)"):
        dense_crf(image[:, :20], probabilities)
    with pytest.raises(ValueError, match="float64"):
        dense_crf(image.astype(np.float64), probabilities)


def test_missing_library_is_a_usage_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pydensecrf", None)
    image, probabilities, _ = _noisy_disc(16, 0)
    with pytest.raises(UsageError, match=r"pip install 'mcc\[crf\]'"):
        dense_crf(image, probabilities)
