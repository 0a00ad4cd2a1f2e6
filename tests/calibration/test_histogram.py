"""Histogram: exact counts, bins that depend on the values alone, memory that does not grow."""

import doctest
import math
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from edgesmith.calibration import histogram as module
from edgesmith.calibration.histogram import Histogram
from edgesmith.core.errors import DataError

# From subnormal to huge, so that bins are merged hundreds of times; plain numbers, so that they fill.
VALUES = st.floats(-(2.0**120), 2.0**120) | st.floats(-3, 3, width=32) | st.just(0.0) | st.floats(-1e-310, 1e-310)


def seen(*batches: np.ndarray, limit: int = 4096) -> Histogram:
    found = Histogram(limit)
    for batch in batches:
        found.update(batch)
    return found


def same(one: Histogram, other: Histogram) -> bool:
    return (
        (one.low, one.high, one.count) == (other.low, other.high, other.count)
        and np.array_equal(one.counts, other.counts)
        and np.array_equal(one.edges, other.edges)
    )


def test_the_example_in_the_docstring_holds() -> None:
    assert doctest.testmod(module) == (0, 4)


def test_counts_are_numpys_over_the_same_edges() -> None:
    rng = np.random.default_rng(0)
    values = np.concatenate([rng.standard_normal(50_000), rng.exponential(size=50_000), np.zeros(1000)])
    found = seen(*np.array_split(values, 9))
    expected, _ = np.histogram(values, found.edges)
    np.testing.assert_array_equal(found.counts, expected)
    assert (found.low, found.high, found.count) == (values.min(), values.max(), 101_000)
    assert found.edges[0] <= values.min() < found.edges[1]
    assert found.edges[-2] <= values.max() < found.edges[-1]


@settings(max_examples=300, deadline=None)
@given(
    st.lists(VALUES, min_size=1, max_size=40),
    st.lists(st.integers(0, 40), max_size=5),
    st.sampled_from([2, 5, 16, 4096]),
    st.randoms(use_true_random=False),
)
def test_order_and_batches_do_not_matter_and_merging_is_the_same_as_seeing(values, cuts, limit, random) -> None:
    whole = seen(np.array(values), limit=limit)
    shuffled = list(values)
    random.shuffle(shuffled)
    parts = np.split(np.array(shuffled), sorted(cuts))
    merged = Histogram(limit)
    for part in parts:
        merged.merge(seen(part, limit=limit))
    assert same(seen(*parts, limit=limit), whole)
    assert same(merged, whole)
    assert whole.count == whole.counts.sum() == len(values)
    assert (whole.low, whole.high) == (min(values), max(values))


@settings(max_examples=300, deadline=None)
@given(st.lists(VALUES, min_size=1, max_size=40), st.sampled_from([2, 5, 16, 4096]))
def test_width_is_the_smallest_power_of_two_with_which_everything_fits(values, limit) -> None:
    found = seen(np.array(values), limit=limit)
    assert len(found.counts) == len(found.edges) - 1 <= limit
    assert 0.0 in found.edges
    width = float(found.edges[1] - found.edges[0])
    mantissa, exponent = math.frexp(width)
    assert mantissa == 0.5, "not a power of two"
    if any(values) and exponent - 1 > -1022:
        low, high = (math.floor(edge / (width / 2)) for edge in (min(0.0, found.low), max(0.0, found.high)))
        low = min(low, -1) if found.low < 0 else low  # a subnormal value, lost by the division, has a bin of its own
        assert high - low + 1 > limit, "half the width would have done"


def test_a_first_batch_of_small_values_costs_no_resolution_later() -> None:
    small, large = np.full(10, 0.1), np.linspace(-100, 100, 999)
    assert same(seen(small, large), seen(large, small))
    assert float(np.diff(seen(small, large).edges)[0]) == 2.0**-4  # 200 / 4096 rounded up to a power of two


def test_a_channel_that_is_zero_for_a_while_leaves_the_bins_alone() -> None:
    rng = np.random.default_rng(1)
    values = rng.standard_normal(1000)
    with_zeros = seen(np.zeros(500), values, np.zeros(500))
    assert np.array_equal(with_zeros.edges, seen(values).edges)
    assert with_zeros.count == 2000
    at_zero = int(np.searchsorted(with_zeros.edges, 0.0))
    assert with_zeros.counts[at_zero] - seen(values).counts[at_zero] == 1000


def test_merging_a_coarser_histogram_takes_its_width() -> None:
    values = np.random.default_rng(3).uniform(-1, 1, 1000)
    for into in (Histogram(4096), seen(values)):
        before = into.count
        into.merge(seen(values, limit=16))
        assert float(np.diff(into.edges)[0]) == 0.125
        assert (into.count, len(into.counts)) == (before + 1000, 16)
        np.testing.assert_array_equal(into.counts, np.histogram(values, into.edges)[0] * (1 + before // 1000))


def test_zeros_alone_and_nothing_at_all() -> None:
    zeros = seen(np.zeros((4, 3)))
    assert (zeros.low, zeros.high, zeros.count, zeros.counts.tolist()) == (0.0, 0.0, 12, [12])
    nothing = seen(np.zeros((0, 3)))
    assert (nothing.low, nothing.high, nothing.count) == (math.inf, -math.inf, 0)
    zeros.merge(nothing)
    nothing.merge(zeros)
    assert same(zeros, nothing)


@pytest.mark.parametrize("magnitude", [1e-44, 1e-38, 1e-20, 1.0, 4095.0, 4097.0, 1e20, 3e38])
@pytest.mark.parametrize("limit", [4, 4096])
def test_float32_is_counted_where_the_same_values_in_float64_are(magnitude: float, limit: int) -> None:
    values = np.random.default_rng(0).uniform(-1, 1, 5000) * magnitude
    edges = np.ldexp(magnitude, -np.arange(14))  # bins begin at or near these, and so do subnormal numbers at the end
    narrow = np.concatenate([values, edges, -edges, [0.0, -0.0, 1e-45, -1e-45]]).astype(np.float32)
    found, expected = Histogram(limit), Histogram(limit)
    assert found.update(narrow) == expected.update(narrow.astype(np.float64))
    np.testing.assert_array_equal(found.counts, expected.counts)
    np.testing.assert_array_equal(found.edges, expected.edges)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "int64", "uint8", "bool"])
def test_any_numeric_type_and_shape(dtype: str) -> None:
    values = np.array([[0, 1], [1, 0], [1, 1]], dtype)
    found = seen(values)
    assert (found.low, found.high, found.count, int(found.counts[-1])) == (0.0, 1.0, 6, 4)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite_are_refused_and_not_counted(bad: float) -> None:
    found = seen(np.array([1.0, 2.0]))
    with pytest.raises(DataError) as caught:
        found.update(np.array([0.5, bad]))
    assert str(caught.value) == "holds NaN or infinity; no range can be found"
    assert same(found, seen(np.array([1.0, 2.0])))


def test_a_limit_that_cannot_hold_both_signs_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^limit must be at least 2 \(one bin for each sign\), got 1$"):
        Histogram(1)


def test_memory_does_not_grow_with_what_is_seen() -> None:
    rng = np.random.default_rng(2)
    batch = rng.standard_normal(1_000_000).astype(np.float32)
    found = Histogram()
    found.update(batch[:1000])
    tracemalloc.start()
    try:
        for factor in (1, 10, 1000):
            found.update(batch * np.float32(factor))
        kept, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept < 100_000  # one array of at most 4096 counts
    assert peak < 3 * batch.nbytes  # the scaled batch itself, and never a wider copy of all of it


def test_merging_a_histogram_with_itself_counts_twice() -> None:
    found = seen(np.array([-1.0, 2.0, 2.0]))
    found.merge(found)
    assert (found.count, int(found.counts[-1])) == (6, 4)


def test_what_float32_cannot_hold_is_refused_and_not_counted() -> None:
    found = seen(np.array([1.0, 2.0]))
    with pytest.raises(DataError) as caught:
        found.update(np.array([0.0, -1e300]))
    assert str(caught.value) == "holds -1e+300, more than float32 can; no range can be found"
    assert same(found, seen(np.array([1.0, 2.0])))
