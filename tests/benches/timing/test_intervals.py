"""Interval formulas against SciPy and published values, and their coverage by simulation."""

from collections.abc import Callable

import numpy as np
import pytest
from scipy import optimize, special, stats

from edgesmith.benches.timing import intervals
from edgesmith.core.values import Interval


@pytest.mark.parametrize("confidence", [0.9, 0.95, 0.99])
@pytest.mark.parametrize(
    ("degrees", "tolerance"), [(1, 1e-9), (2, 1e-9), (3, 0.004), (4, 0.0011), (10, 1e-4), (359, 1e-9)]
)
def test_t_quantile_equals_scipy(confidence: float, degrees: int, tolerance: float) -> None:
    expected = stats.t.ppf(confidence, degrees)
    assert intervals.t_quantile(confidence, degrees) == pytest.approx(expected, rel=tolerance)


@pytest.mark.parametrize(("interval", "method"), [(intervals.wilson, "wilson"), (intervals.share, "wilsoncc")])
@pytest.mark.parametrize(("successes", "count"), [(0, 30), (354, 360), (81, 263), (360, 360), (0, 500), (3, 500)])
def test_a_proportion_equals_scipy(
    interval: Callable[[int, int, float], Interval], method: str, successes: int, count: int
) -> None:
    expected = stats.binomtest(successes, count).proportion_ci(confidence_level=0.90, method=method)
    found = interval(successes, count, 0.95)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert found.value == successes / count


@pytest.mark.parametrize(("lost", "won", "count"), [(5, 1, 98), (0, 0, 40), (3, 0, 360), (20, 30, 200)])
def test_tango_is_where_the_score_statistic_is_the_quantile(lost: int, won: int, count: int) -> None:
    """The likelihood under the bound is maximised here by search, there in closed form."""
    bound = intervals.tango(lost, won, count, 0.95).high
    seen = lost + 0.5  # for continuity

    def unlikeliness(rare: float) -> float:
        both = 1 - 2 * rare - bound
        return -float(
            special.xlogy(seen, rare + bound) + special.xlogy(won, rare) + (count - seen - won) * np.log(both)
        )

    rare = optimize.minimize_scalar(
        unlikeliness, bounds=(max(0.0, -bound), (1 - bound) / 2), method="bounded", options={"xatol": 1e-12}
    ).x
    statistic = (seen - won - count * bound) / np.sqrt(count * (2 * rare + bound - bound**2))
    assert statistic == pytest.approx(stats.norm.ppf(0.05), abs=1e-4)


def test_tango_of_one_kind_is_the_score_bound_of_one_proportion() -> None:
    found, expected = intervals.tango(3, 0, 360, 0.95), intervals.wilson(3.5, 360, 0.95)
    assert found.value == 3 / 360
    assert found.high == pytest.approx(expected.high, abs=1e-9)


@pytest.mark.parametrize("count", [20, 60])
def test_tango_errs_no_more_often_than_it_is_said_to(count: int) -> None:
    """Summed over all outcomes, at rates of up to half of the samples, where an adjusted Wald bound errs twice as often
    as it says at 0.95, four times at 0.99 and fourteen times at 0.9995.
    """
    lost, won = (each.ravel() for each in np.meshgrid(np.arange(count + 1), np.arange(count + 1), indexing="ij"))
    lost, won = lost[lost + won <= count], won[lost + won <= count]
    outcomes = np.stack([lost, won, count - lost - won], -1)
    rates = [(loss, back * loss) for loss in np.geomspace(0.3 / count, 0.5, 40) for back in (0, 0.1, 0.3, 1, 3)]
    shares = {
        (loss, gain): stats.multinomial.pmf(outcomes, count, [loss + gain, gain, 1 - loss - 2 * gain])
        for loss, gain in rates
        if loss + 2 * gain <= 0.5
    }
    for confidence in (0.95, 0.99, 0.9995):
        high = np.array([intervals.tango(*cell, count, confidence).high for cell in zip(lost, won, strict=True)])
        errors = [share[high < loss - 1e-9].sum() for (loss, _), share in shares.items()]
        assert 0.2 * (1 - confidence) < max(errors) < 1 - confidence


@pytest.mark.parametrize(("lost", "won"), [(0, 0), (1, 0), (0, 1), (50, 50), (100, 0), (0, 100)])
def test_tango_always_has_a_width_around_its_value(lost: int, won: int) -> None:
    found = intervals.tango(lost, won, 100, 0.95)
    mirrored = intervals.tango(won, lost, 100, 0.95)
    assert -1 <= found.low <= found.value <= found.high <= 1
    assert found.high - found.low > 0.01
    assert (found.low, found.high) == pytest.approx((-mirrored.high, -mirrored.low))


# Nominal is 0.95 for each bound.
@pytest.mark.parametrize(
    ("lost", "won", "count"), [(0.01, 0.01, 360), (0.03, 0.01, 360), (0.02, 0.05, 200), (0.1, 0.1, 100)]
)
def test_tango_covers(lost: float, won: float, count: int) -> None:
    rng = np.random.default_rng(7)
    cells, times = np.unique(rng.multinomial(count, [lost, won, 1 - lost - won], 10_000), axis=0, return_counts=True)
    found = [intervals.tango(a, b, count, 0.95) for a, b, _ in cells]
    truth = lost - won
    upper = np.average([truth <= interval.high for interval in found], weights=times)
    lower = np.average([truth >= interval.low for interval in found], weights=times)
    assert 0.945 <= upper <= 0.995
    assert 0.945 <= lower <= 0.995


def test_mean_covers_at_the_nominal_rate() -> None:
    rng = np.random.default_rng(8)
    found = [intervals.mean(row, 0.95) for row in rng.standard_normal((10_000, 12))]
    assert np.mean([interval.high >= 0 for interval in found]) == pytest.approx(0.95, abs=0.01)
    assert np.mean([interval.low <= 0 for interval in found]) == pytest.approx(0.95, abs=0.01)


def test_bootstrap_of_a_mean_is_near_the_t_interval_and_repeats_itself() -> None:
    values = np.random.default_rng(9).standard_normal(400)

    def statistic(indices: np.ndarray) -> float:
        return float(values[indices].mean())

    found, expected = intervals.bootstrap(statistic, 400, 0.95), intervals.mean(values, 0.95)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=0.01)
    assert intervals.bootstrap(statistic, 400, 0.95) == found


def test_five_restarts_bound_the_median_by_their_extremes() -> None:
    found = intervals.median_over_restarts(np.array([0.1, 0.5, 0.3, 0.2, 0.4]), 0.95)
    assert (found.low, found.value, found.high) == (0.1, 0.3, 0.5)


@pytest.mark.parametrize(("confidence", "restarts"), [(0.9, 4), (0.95, 5), (0.99, 7), (0.5, 1)])
def test_fewest_restarts(confidence: float, restarts: int) -> None:
    assert intervals.enough_restarts(confidence) == restarts
    assert 1 - 2.0**-restarts >= confidence


@pytest.mark.parametrize(
    ("restarts", "confidence", "found"),
    [
        (5, 0.95, [(5, 0.96875), (15, 0.98125)]),  # five restarts spend 1/32 of the 1/20
        (10, 0.95, [(10, 0.975), (30, 0.975)]),
        (2, 0.75, [(2, 0.75)]),  # nothing is left for a second look
        (7, 0.99, [(7, 1 - 2**-7), (21, 0.99 + 2**-7)]),
    ],
)
def test_two_looks_share_the_error(restarts: int, confidence: float, found: list[tuple[int, float]]) -> None:
    assert list(intervals.looks(restarts, confidence)) == [pytest.approx(look) for look in found]


def test_two_looks_err_no_more_often_than_one_may() -> None:
    """A limit that is not kept, at the truth itself: how often either look, the second after an undecided first, proves it."""
    rng = np.random.default_rng(11)
    (few, first), (many, second) = intervals.looks(5, 0.95)
    wrong = 0
    for _ in range(2000):
        once = intervals.median_over_restarts(rng.lognormal(0.0, 0.3, few), first)
        again = intervals.median_over_restarts(rng.lognormal(0.0, 0.3, many), second)
        wrong += once.low > 1 or (once.high >= 1 and again.low > 1)
    assert 0.01 < wrong / 2000 < 0.06


@pytest.mark.parametrize("restarts", [5, 8, 12])
def test_median_over_restarts_covers(restarts: int) -> None:
    """Restarts differ in a skewed way (some are disturbed); each bound must hold at 0.95, and not by being endless."""
    rng = np.random.default_rng(10)
    rows = rng.lognormal(0.0, 0.5, (2000, restarts))
    found = [intervals.median_over_restarts(row, 0.95) for row in rows]
    assert np.mean([interval.high >= 1 for interval in found]) >= 0.92
    assert np.mean([interval.low <= 1 for interval in found]) >= 0.92


def test_rule_of_three() -> None:
    assert intervals.unseen_share(360, 0.95) == pytest.approx(3 / 360, rel=0.01)


def test_influence_of_a_mean_is_the_range_of_its_samples() -> None:
    values = np.array([3.0, -1.0, 4.0, 1.5])
    assert intervals.influence_range(lambda indices: float(values[indices].mean()), 4) == pytest.approx(5.0)


def test_calls_that_a_tail_needs() -> None:
    """By simulation: of so many calls the slowest is above the quantile in the promised share of trials."""
    assert (intervals.enough_calls(0.999, 0.95), intervals.enough_calls(0.99, 0.95)) == (2995, 299)
    slowest = np.random.default_rng(0).random((4000, intervals.enough_calls(0.99, 0.9))).max(axis=1)
    assert np.mean(slowest > 0.99) == pytest.approx(0.9, abs=0.015)
