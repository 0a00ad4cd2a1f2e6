"""What is kept of a stream: the whole exactly, its two halves, and an average of the batches' ends."""

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from edgesmith.calibration.histogram import Histogram
from edgesmith.calibration.observer import MovingRange, Observer

BATCHES = st.lists(st.lists(st.floats(-1e6, 1e6), max_size=8), max_size=7)


def observer(*batches: np.ndarray) -> Observer:
    found = Observer()
    for batch in batches:
        found.update(batch)
    return found


@settings(max_examples=60, deadline=None)
@given(BATCHES)
def test_the_whole_is_one_histogram_over_all_values(batches: list[list[float]]) -> None:
    whole = observer(*map(np.array, batches)).observed()
    direct = Histogram()
    direct.update(np.concatenate([np.zeros(0), *map(np.array, batches)]))
    assert (whole.low, whole.high, whole.count) == (direct.low, direct.high, direct.count)
    np.testing.assert_array_equal(whole.counts, direct.counts)
    np.testing.assert_array_equal(whole.edges, direct.edges)


def test_halves_are_every_other_batch() -> None:
    found = observer(*(np.full(3, value) for value in (1.0, 2.0, 3.0, 4.0, 5.0))).observed()
    assert found.halves is not None
    assert [(half.low, half.high, half.count) for half in found.halves] == [(1.0, 5.0, 9), (2.0, 4.0, 6)]


def test_an_empty_batch_is_none() -> None:
    assert observer(np.ones(3), np.zeros(0)).observed().halves is None
    found = observer(np.ones(3), np.zeros(0), np.full(3, 2.0)).observed()
    assert found.halves is not None and [half.high for half in found.halves] == [1.0, 2.0]


def test_the_average_has_the_weights_of_a_moving_average_and_they_add_up_to_one() -> None:
    rng = np.random.default_rng(0)
    batches = [rng.standard_normal(50) for _ in range(300)]
    weights = 0.99 ** np.arange(299, -1, -1)
    weights /= weights.sum()
    average = observer(*batches).observed().average
    assert average.low == pytest.approx(weights @ [batch.min() for batch in batches], rel=1e-9)
    assert average.high == pytest.approx(weights @ [batch.max() for batch in batches], rel=1e-9)


def test_few_batches_weigh_nearly_alike_and_the_latest_most() -> None:
    """Without the correction the first of 16 would have 0.99 ** 15 = 86 % of the weight."""
    ends = {}
    for place in (0, 15):
        average = MovingRange()
        for index in range(16):
            average.add(-1.0, 17.0 if index == place else 1.0)
        assert average.low == -1.0  # exactly: what never changes is not rounded
        ends[place] = average.high
    assert ends == {0: pytest.approx(2.0, rel=0.04), 15: pytest.approx(2.0, rel=0.04)}
    assert ends[0] < 2.0 < ends[15]


def test_zero_is_always_inside() -> None:
    average = MovingRange()
    average.add(2.0, 3.0)
    average.add(-4.0, -1.0)
    assert (average.low, average.high) == (pytest.approx(-4.0 / 1.99), pytest.approx(0.99 * 3.0 / 1.99))


def test_what_was_seen_does_not_change_when_more_comes() -> None:
    stream = observer(np.ones(2), np.full(2, 3.0))
    found = stream.observed()
    stream.update(np.full(2, 9.0))
    assert found.halves is not None
    assert (found.high, found.average.high, found.halves[0].high) == (3.0, pytest.approx(2.0, rel=0.01), 1.0)
    assert stream.observed().high == 9.0
