"""Small noise, and how often answers flip under it."""

import numpy as np
import pytest

from edgesmith.benches.audits.perturbation import NOISE, FlipRate, disturbed, flip_rate


def test_noise_has_the_stated_size_and_is_the_samples_own() -> None:
    inputs = {"x": np.zeros((40, 50), np.float32), "ids": np.arange(40)}
    found = disturbed(inputs, {"x": 4.0}, np.arange(40), 0, 0)
    assert found["x"].std() == pytest.approx(4.0 * NOISE, rel=0.05) and found["x"].dtype == np.float32
    assert found["ids"] is inputs["ids"], "what is not float stays"
    alone = disturbed({"x": inputs["x"][7:8]}, {"x": 4.0}, np.array([7]), 0, 0)
    np.testing.assert_array_equal(alone["x"][0], found["x"][7])
    assert not np.array_equal(found["x"], disturbed(inputs, {"x": 4.0}, np.arange(40), 1, 0)["x"]), "draws differ"


def test_rates_by_hand() -> None:
    original, final = np.array([0.0, 0.2, 0.0, 0.0]), np.array([0.4, 0.2, 0.0, 0.2])
    found = flip_rate(original, final, 5, 0.95)
    assert (found.original, found.final, found.more.value) == pytest.approx((0.05, 0.2, 0.15))
    half = 2.3534 * np.std([0.4, 0, 0, 0.2], ddof=1) / 2  # Student's t with 3 degrees of freedom
    assert (found.more.low, found.more.high) == pytest.approx((0.15 - half, 0.15 + half), abs=1e-3)
    same = flip_rate(original, original, 5, 0.95)
    assert isinstance(same, FlipRate) and same.more.value == 0 and same.more.low < 0 < same.more.high
