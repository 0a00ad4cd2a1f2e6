"""Every entry of CALIBRATORS keeps the promises that scales rest on, for whatever a tensor holds."""

import math

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from edgesmith.calibration.calibrators import CALIBRATORS
from edgesmith.calibration.observer import Observed

NAMES = sorted(CALIBRATORS)
VALUES = st.lists(st.floats(-100, 100, width=32) | st.just(0.0), min_size=1, max_size=60)
BITS = st.sampled_from([4, 7, 8])


def observed(values: list[float] | np.ndarray) -> Observed:
    histogram = Observed()
    histogram.update(np.asarray(values))
    return histogram


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=40, deadline=None)
@given(values=VALUES, bits=BITS, symmetric=st.booleans())
def test_a_range_is_finite_holds_zero_and_is_never_wider_than_what_was_seen(name, values, bits, symmetric) -> None:
    low, high = CALIBRATORS[name](observed(values), bits, symmetric)
    assert low <= 0.0 <= high
    assert low < high
    assert math.isfinite(high - low)
    largest = max(abs(value) for value in values)
    if largest >= 1e-6:
        assert max(-low, high) <= largest
        if not symmetric:
            assert min(*values, 0.0) <= low
            assert high <= max(*values, 0.0)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=40, deadline=None)
@given(values=VALUES, bits=BITS)
def test_symmetric_means_symmetric_unless_nothing_is_negative(name, values, bits) -> None:
    low, high = CALIBRATORS[name](observed(values), bits, True)
    assert low in (-high, 0.0)
    if min(values) >= 0:
        assert low == 0.0
    elif min(values) < -1e-6:
        assert low == -high


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=30, deadline=None)
@given(values=VALUES, power=st.integers(-10, 20), symmetric=st.booleans())
def test_a_tensor_in_other_units_gets_the_range_in_other_units(name, values, power, symmetric) -> None:
    values = [value if abs(value) > 1e-3 else 0.0 for value in values]
    if not any(values):
        return
    range_ = np.array(CALIBRATORS[name](observed(values), 8, symmetric))
    scaled = np.array(CALIBRATORS[name](observed(np.ldexp(values, power)), 8, symmetric))
    np.testing.assert_array_equal(scaled, np.ldexp(range_, power))  # powers of two move bins, and round nothing


@pytest.mark.parametrize(
    "name", sorted({*NAMES} - {"moving-average", "auto"})
)  # an average of batches; it may be taken
@pytest.mark.parametrize("symmetric", [True, False])
def test_the_order_of_batches_does_not_matter(name: str, symmetric: bool) -> None:
    rng = np.random.default_rng(0)
    batches = [rng.standard_normal(500) * scale for scale in (0.01, 1.0, 30.0)]
    ranges = set()
    for order in ([0, 1, 2], [2, 1, 0], [1, 2, 0]):
        histogram = Observed()
        for index in order:
            histogram.update(batches[index])
        ranges.add(CALIBRATORS[name](histogram, 8, symmetric))
    assert len(ranges) == 1


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("values", [np.zeros(100), np.full(3, 1e-40)])
def test_zero_everywhere_gets_a_range_whose_scale_is_a_positive_float32(name, symmetric, values) -> None:
    range_ = CALIBRATORS[name](observed(values), 8, symmetric)
    assert range_ == (0.0, 1.0)
    assert np.float32(range_[1] / 255) > np.finfo(np.float32).tiny


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("symmetric", [True, False])
def test_gaussian_activations_lose_little_at_eight_bits(name: str, symmetric: bool) -> None:
    low, high = CALIBRATORS[name](observed(np.random.default_rng(0).standard_normal(100_000)), 8, symmetric)
    assert 3.5 < high < 5.0  # in standard deviations: next to nothing clipped, no step wasted
    assert -5.0 < low < -3.5


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("symmetric", [True, False])
def test_the_histogram_is_only_read(name: str, symmetric: bool) -> None:
    histogram = observed(np.random.default_rng(0).standard_normal(1000))
    before = (histogram.counts.copy(), histogram.low, histogram.high)
    assert CALIBRATORS[name](histogram, 8, symmetric) == CALIBRATORS[name](histogram, 8, symmetric)
    np.testing.assert_array_equal(histogram.counts, before[0])
    assert (histogram.low, histogram.high) == before[1:]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("symmetric", [True, False])
def test_mirrored_values_get_the_mirrored_range(name: str, symmetric: bool) -> None:
    values = np.random.default_rng(0).gumbel(size=20_000)
    low, high = CALIBRATORS[name](observed(values), 8, symmetric)
    assert CALIBRATORS[name](observed(-values), 8, symmetric) == pytest.approx((-high, -low), rel=0.05)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("value", [0.1, 5.0, -3.0])
def test_a_constant_tensor_keeps_its_value(name: str, value: float) -> None:
    low, high = CALIBRATORS[name](observed(np.full(1000, value)), 8, True)
    assert high == pytest.approx(abs(value), rel=0.01)
    assert low == (-high if value < 0 else 0.0)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("symmetric", [True, False])
def test_behind_a_clip_where_many_values_are_the_bound_it_is_kept(name: str, symmetric: bool) -> None:
    values = np.clip(np.random.default_rng(0).normal(3.0, 3.0, 100_000), 0, 6)
    low, high = CALIBRATORS[name](observed(values), 8, symmetric)
    assert low == 0.0
    assert high == pytest.approx(6.0, rel=0.005)
