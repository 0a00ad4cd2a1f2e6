"""Confidence intervals. Each bound alone is a one-sided bound at `confidence`; nothing here knows of models.

A limit is decided by one bound, so an interval at `confidence` 0.95 is a 90 % interval in two-sided language.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import NormalDist

import numpy as np

from ...core.errors import DataError
from ...core.values import Interval

RESAMPLES = 2000
_SEED = 20120101  # fixed: the same scores always give the same interval
_LONGER = 3  # times the restarts of a second look
_JACKKNIFE_SAMPLES = 2000  # more would cost time and change the range of influences very little


def normal_quantile(confidence: float) -> float:
    """The z with P(Z <= z) = `confidence`."""
    return NormalDist().inv_cdf(confidence)


def t_quantile(confidence: float, degrees: int) -> float:
    """The t with P(T <= t) = `confidence` for Student's t with `degrees` >= 1 degrees of freedom, confidence >= 0.5.

    Closed forms for 1 and 2 degrees, else the expansion of Abramowitz & Stegun 26.7.5 (within 0.05 % at 0.95,
    0.4 % at 0.99, from 3 degrees on); it spares the package a dependency on SciPy.
    """
    if degrees == 1:
        return math.tan(math.pi * (confidence - 0.5))
    if degrees == 2:
        a = 2 * confidence - 1
        return a * math.sqrt(2 / (1 - a * a))
    z, v = normal_quantile(confidence), degrees
    terms = (
        (z**3 + z) / (4 * v),
        (5 * z**5 + 16 * z**3 + 3 * z) / (96 * v**2),
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * v**3),
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / (92160 * v**4),
    )
    return z + sum(terms)


def wilson(successes: float, count: int, confidence: float) -> Interval:
    """Score interval of a proportion (Wilson 1927); never leaves [0, 1], has a width at 0 and 1 too."""
    z, p = normal_quantile(confidence), successes / count
    centre = (p + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(p * (1 - p) / count + z * z / (4 * count * count))
    return Interval(value=p, low=max(0.0, min(p, centre - half)), high=min(1.0, max(p, centre + half)))


def share(successes: int, count: int, confidence: float) -> Interval:
    """Score interval of a proportion with half a sample for continuity, which errs no more often than it says."""
    value = successes / count
    low = wilson(successes - 0.5, count, confidence).low if successes else 0.0
    high = wilson(successes + 0.5, count, confidence).high if successes < count else 1.0
    return Interval(value=value, low=min(value, low), high=max(value, high))


def tango(only_first: float, only_second: float, count: float, confidence: float) -> Interval:
    """Difference of two proportions on the same samples: share right in the first minus share right in the second.

    A bound is the difference that a score test would just not reject (Tango, Stat. Med. 17(8), 1998), with half a
    sample for continuity. Counted over all outcomes of 20 to 360 samples it errs no more often than it is said to where
    up to half of the samples disagree; where nearly all are lost, one at 95 % errs in 6 % and one at 99 % in 2 %.

    Args:
        only_first: samples that the first got right and the second wrong.
        only_second: samples that the second got right and the first wrong.
        count: all samples.
        confidence: of each bound alone.
    """
    z, value = normal_quantile(confidence), (only_first - only_second) / count
    high = _largest_difference(only_first + 0.5, only_second, count, z)
    low = -_largest_difference(only_second + 0.5, only_first, count, z)
    return Interval(value=value, low=min(value, low), high=max(value, high))


def _largest_difference(first: float, second: float, count: float, z: float) -> float:
    """Largest difference of which the one seen is no more than `z` standard errors short, by halving."""

    def is_rejected(difference: float) -> bool:
        linear = (2 * count - first + second) * difference - first - second
        constant = second * difference * (1 - difference)
        rare = (math.sqrt(max(0.0, linear**2 + 8 * count * constant)) - linear) / (4 * count)  # the second's, likeliest
        variance = count * (2 * rare + difference * (1 - difference))
        return first - second - count * difference < -z * math.sqrt(max(0.0, variance))

    low, high = max(-1.0, min(1.0, (first - second) / count)), 1.0
    while high - low > 1e-12:
        middle = (low + high) / 2
        low, high = (low, middle) if is_rejected(middle) else (middle, high)
    return high


def mean(values: np.ndarray, confidence: float) -> Interval:
    """Student's t interval of the mean of `values` (N,).

    Raises:
        DataError: fewer than two values.
    """
    _at_least_two(values)
    value = float(values.mean())
    half = t_quantile(confidence, len(values) - 1) * float(values.std(ddof=1)) / math.sqrt(len(values))
    return Interval(value=value, low=value - half, high=value + half)


def bootstrap(
    statistic: Callable[[np.ndarray], float], count: int, confidence: float, strata: np.ndarray | None = None
) -> Interval:
    """Percentile bootstrap over samples (Efron 1979), seeded.

    Args:
        statistic: indices of a resample `(count,)` -> value.
        count: number of samples, at least two.
        confidence: of each bound alone.
        strata: `(count,)`, 0 to the number of strata less one: a resample draws from each as many as it has; None: one.
    """
    rng = np.random.default_rng(_SEED)
    value = statistic(np.arange(count))
    resample = _resampler(count, strata)
    draws = np.array([statistic(resample(rng)) for _ in range(RESAMPLES)])
    low, high = np.quantile(draws, [1 - confidence, confidence])
    return Interval(value=value, low=min(value, float(low)), high=max(value, float(high)))


def _resampler(count: int, strata: np.ndarray | None) -> Callable[[np.random.Generator], np.ndarray]:
    if strata is None:
        return lambda rng: rng.integers(0, count, count)
    order, sizes = np.argsort(strata, kind="stable"), np.bincount(strata)
    own = strata[order]  # the stratum of each place in `order`
    starts = (np.cumsum(sizes) - sizes)[own]
    return lambda rng: order[starts + (rng.random(count) * sizes[own]).astype(np.int64)]


def median_over_restarts(values: np.ndarray, confidence: float) -> Interval:
    """Median of one number per process restart, percentile bootstrap over the restarts.

    With five restarts at 0.95 the bounds are the smallest and the largest value, and those are exact: all five lie on
    one side of the true median with probability 1/32. `enough_restarts` is the same argument turned around.
    """
    resamples = np.random.default_rng(_SEED).integers(0, len(values), (RESAMPLES, len(values)))
    low, high = np.quantile(np.median(values[resamples], axis=1), [1 - confidence, confidence])
    value = float(np.median(values))
    return Interval(value=value, low=min(value, float(low)), high=max(value, float(high)))


def enough_restarts(confidence: float) -> int:
    """Fewest restarts whose smallest and largest value bound the median at `confidence`: 1 - 2**-n >= confidence."""
    return math.ceil(-math.log2(1 - confidence) - 1e-9)


def enough_calls(share: float, confidence: float) -> int:
    """Fewest calls whose slowest bounds the quantile `share` of all calls from above: 1 - share**n >= confidence.

    2,995 for 0.999 at 0.95. It takes the calls for independent; where slow ones come together, as on a busy machine,
    more would be needed.
    """
    return math.ceil(math.log(1 - confidence) / math.log(share) - 1e-9)


def looks(restarts: int, confidence: float) -> tuple[tuple[int, float], ...]:
    """Restarts and confidence of a measurement, and of a longer one for where the first decides nothing.

    Whoever looks twice errs twice, so the two share the error that `confidence` allows (Bonferroni): the first takes
    half, or the 2**-n of its extremes where that is more (see `median_over_restarts`), the second the rest. No second
    look where nothing is left for it.
    """
    error = 1 - confidence
    first = max(error / 2, 2.0**-restarts)
    left = error - first
    once, again = (restarts, 1 - first), _LONGER * restarts
    if left <= 0 or enough_restarts(1 - left) > again:
        return (once,)
    return (once, (again, 1 - left))


def unseen_share(count: int, confidence: float) -> float:
    """Largest share of samples that may still behave otherwise when none of `count` did (the rule of three)."""
    return float(1 - (1 - confidence) ** (1 / count))


def influence_range(statistic: Callable[[np.ndarray], float], count: int) -> float:
    """Range of Tukey's jackknife pseudo-values: how far one sample's share of a statistic may lie from another's.

    For a mean the pseudo-values are the samples themselves.
    """
    whole, everyone = statistic(np.arange(count)), np.arange(count)
    chosen = np.unique(np.linspace(0, count - 1, min(count, _JACKKNIFE_SAMPLES)).astype(int))
    pseudo = np.array([count * whole - (count - 1) * statistic(np.delete(everyone, index)) for index in chosen])
    return float(np.ptp(pseudo))


def _at_least_two(values: np.ndarray) -> None:
    if len(values) < 2:
        raise DataError(f"an interval needs at least 2 samples, got {len(values)}")
