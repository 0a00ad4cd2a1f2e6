"""Calibrators against optima found another way: brute force on the samples, closed forms, numpy, the pseudo-code."""

import math

import numpy as np
import pytest

from edgesmith.calibration.calibrators import CALIBRATORS, choose, entropy, min_max, moving_average, mse, percentile
from edgesmith.calibration.grid import Grid
from edgesmith.calibration.histogram import Histogram
from edgesmith.calibration.observer import Observed
from edgesmith.core.errors import DataError

N = 200_000


def samples(name: str) -> np.ndarray:
    """Float32, as activations are; seeded."""
    rng = np.random.default_rng(0)
    drawn = {
        "gauss": lambda: rng.standard_normal(N),
        "laplace": lambda: rng.laplace(size=N),
        "uniform": lambda: rng.uniform(-1, 1, N),
        "relu": lambda: np.maximum(rng.standard_normal(N), 0),
        "relu-laplace": lambda: np.maximum(rng.laplace(size=N), 0),
        "shifted": lambda: 2 + 0.3 * rng.standard_normal(N),
        "outlier": lambda: np.append(rng.standard_normal(N), 100.0),
    }
    return drawn[name]().astype(np.float32)


def observed(values: np.ndarray) -> Observed:
    found = Observed()
    for batch in np.array_split(values, 7):
        found.update(batch)
    return found


def squared_error(values: np.ndarray, low: float, high: float, bits: int, symmetric: bool) -> float:
    """Mean squared error of really quantizing the samples."""
    if symmetric:
        top = 2 ** (bits - 1) - 1
        scale = max(-low, high) / top
        back = np.clip(np.rint(values / scale), -top, top) * scale
    else:
        scale = (high - low) / (2**bits - 1)
        zero = np.rint(-low / scale)
        back = (np.clip(np.rint(values / scale) + zero, 0, 2**bits - 1) - zero) * scale
    return float(np.mean((values - back) ** 2))


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("name", ["gauss", "laplace", "uniform", "relu", "relu-laplace", "shifted", "outlier"])
def test_mse_is_the_best_symmetric_clip_there_is(name: str, bits: int) -> None:
    values = samples(name)
    bounds = np.abs(values).max() * np.geomspace(1, 1 / 128, 100)
    sides = -1.0 if values.min() < 0 else 0.0
    best = min(squared_error(values, sides * bound, bound, bits, True) for bound in bounds)
    assert squared_error(values, *mse(observed(values), bits, True), bits, True) <= 1.02 * best


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("name", ["gauss", "laplace", "relu", "shifted"])
def test_mse_is_the_best_asymmetric_clip_there_is(name: str, bits: int) -> None:
    values = samples(name)
    low, high = min(float(values.min()), 0.0), max(float(values.max()), 0.0)
    shares = np.geomspace(1, 1 / 16, 16)
    pairs = {(low * one, high * other) for one in shares for other in shares}
    best = min(squared_error(values, *pair, bits, False) for pair in pairs)
    assert squared_error(values, *mse(observed(values), bits, False), bits, False) <= 1.02 * best


# The clip `a` with the least 2 E[(x - a)^2; x > a] + (a / q)^2 / 12, q = 2^(bits - 1) - 1 steps per side: clipping and
# rounding of Banner et al. 2019, section 3.1. Where its derivative is zero is checked here, in units of the scale.
@pytest.mark.parametrize(
    ("name", "bits", "clip"), [("laplace", 8, 9.877), ("laplace", 4, 4.806), ("gauss", 8, 3.921), ("gauss", 4, 2.481)]
)
def test_mse_finds_the_published_optima(name: str, bits: int, clip: float) -> None:
    beyond = {
        "laplace": math.exp(-clip) / 2,  # E[x - a; x > a]
        "gauss": math.exp(-(clip**2) / 2) / math.sqrt(2 * math.pi) - clip * math.erfc(clip / math.sqrt(2)) / 2,
    }
    assert 4 * beyond[name] == pytest.approx(clip / (6 * (2 ** (bits - 1) - 1) ** 2), rel=0.01)
    low, high = mse(observed(samples(name)), bits, True)
    assert low == -high
    assert high == pytest.approx(clip, rel=0.04)  # candidates are 3.5 % apart


def test_an_outlier_on_one_side_does_not_move_the_other() -> None:
    values = samples("outlier")
    low, high = mse(observed(values), 4, False)
    assert (low, high) == (pytest.approx(-2.5, abs=0.4), pytest.approx(2.7, abs=0.4))
    assert squared_error(values, low, high, 4, False) < 0.5 * squared_error(values, -4.997, 100.0, 4, False)


def test_mse_knows_of_rounding_inside_bins_that_are_wider_than_a_step() -> None:
    histogram, values, outlier = Histogram(), samples("gauss"), 400.0
    for _ in range(50):
        histogram.update(values)
    histogram.update(np.array([outlier]))
    # No Gaussian value reaches this far, so that rounding a / (6 q^2) stands against 2 (outlier - a) / n alone.
    share = 12 * 127**2 / histogram.count
    clip = outlier * share / (1 + share)
    assert float(histogram.edges[1] - histogram.edges[0]) > clip / 127  # no bin shows its rounding
    assert mse(histogram, 8, True)[1] == pytest.approx(clip, rel=0.04)


@pytest.mark.parametrize("name", ["gauss", "laplace", "relu", "shifted", "outlier"])
def test_percentile_is_numpys_within_a_bin(name: str) -> None:
    values = samples(name)[-199_990:]  # so that no percentile falls on a whole rank, where rounding would decide
    histogram = observed(values)
    width = float(histogram.edges[1] - histogram.edges[0])
    _, bound = percentile(histogram, 8, True)
    assert bound == pytest.approx(np.percentile(np.abs(values), 99.99, method="inverted_cdf"), abs=width)
    low, high = percentile(histogram, 8, False)
    tails = np.percentile(values, [0.005, 99.995], method="inverted_cdf")
    assert (low, high) == (pytest.approx(min(tails[0], 0.0), abs=width), pytest.approx(tails[1], abs=width))


@pytest.mark.parametrize("name", ["gauss", "relu", "shifted"])
def test_min_max_is_exact(name: str) -> None:
    values = samples(name)
    low, high = float(values.min()), float(values.max())
    assert min_max(observed(values), 8, False) == (min(low, 0.0), high)
    bound = max(-low, high)
    assert min_max(observed(values), 8, True) == (-bound if low < 0 else 0.0, bound)


def divergence_as_published(counts: np.ndarray, size: int, levels: int) -> float:
    """The pseudo-code of Migacz (GTC 2017, "8-bit inference with TensorRT", slides 38-39), for the first `size` bins."""
    reference = counts[:size].astype(float)
    reference[-1] += counts[size:].sum()
    expanded = np.zeros(size)
    level = np.arange(size) * levels // size  # the slides divide evenly; this is as even as bins allow
    for chunk in (np.flatnonzero(level == one) for one in range(levels)):
        filled = chunk[counts[chunk] > 0]
        expanded[filled] = counts[chunk].sum() / max(len(filled), 1)
    p, q = reference / reference.sum(), expanded / expanded.sum()
    mask = p > 0
    return float((p[mask] * np.log(p[mask] / np.maximum(q[mask], 1e-12))).sum())


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("name", ["gauss", "laplace", "relu", "relu-laplace", "outlier"])
def test_entropy_loses_no_more_information_than_the_published_search(name: str, bits: int) -> None:
    histogram = observed(samples(name))
    zero = int(np.searchsorted(histogram.edges, 0.0))
    positive, negative = histogram.counts[zero:].copy(), histogram.counts[:zero][::-1]
    size = max(len(positive), len(negative))
    counts = np.pad(positive, (0, size - len(positive))) + np.pad(negative, (0, size - len(negative)))
    counts[0] = counts[1]
    levels = 2 ** (bits - 1)
    best = min(divergence_as_published(counts, i, levels) for i in range(128, size + 1, 16))
    width = float(histogram.edges[1] - histogram.edges[0])
    chosen = int(entropy(histogram, bits, True)[1] / width + 0.5)
    # In nats. There are as many valleys as ways to divide bins among levels, hardly different in depth.
    assert divergence_as_published(counts, chosen, levels) <= 1.1 * best + 1e-4


@pytest.mark.parametrize("bits", [4, 7])
def test_entropy_without_symmetry_has_twice_the_levels_where_nothing_is_negative(bits: int) -> None:
    histogram = observed(samples("relu-laplace"))
    assert entropy(histogram, bits, False) == entropy(histogram, bits + 1, True)


def test_entropy_keeps_a_uniform_range_and_clips_an_outlier() -> None:
    assert entropy(observed(samples("uniform")), 8, True)[1] > 0.99
    assert 3.0 < entropy(observed(samples("outlier")), 8, True)[1] < 6.0
    assert 3.0 < entropy(observed(samples("outlier")), 8, False)[1] < 6.0


@pytest.mark.parametrize("name", sorted(CALIBRATORS))
def test_a_histogram_that_saw_nothing_gives_no_range(name: str) -> None:
    for symmetric in (True, False):
        with pytest.raises(DataError, match=r"^saw no values; no range can be found$"):
            CALIBRATORS[name](Observed(), 8, symmetric)


def test_percentile_keeps_a_tensor_that_is_zero_nearly_everywhere() -> None:
    values = np.zeros(100_000)
    values[:3] = [1.0, 2.0, 4.0]  # fewer than the 0.01 % that are cut
    for symmetric in (True, False):
        assert percentile(observed(values), 8, symmetric) == (0.0, 4.0)


def test_mse_of_one_value_at_a_hundred_sigma_is_where_its_error_and_the_rounding_meet() -> None:
    # (100 - m)^2 / n + (m / 127)^2 / 12 is least at m = 100 / (1 + n / (12 * 127^2)).
    _, high = mse(observed(samples("outlier")), 8, True)
    assert high == pytest.approx(100 / (1 + N / (12 * 127**2)), rel=0.03)


def test_mse_is_not_above_min_max_on_tensors_of_any_kind() -> None:
    rng = np.random.default_rng(1)
    for values in (rng.uniform(-1, 1, 5000), rng.standard_t(2, 5000), rng.integers(0, 2, 5000) * 1.0):
        chosen, widest = (squared_error(values, *rule(observed(values), 8, True), 8, True) for rule in (mse, min_max))
        assert chosen <= 1.01 * widest + 1e-12


def test_entropy_tries_no_clip_with_fewer_bins_than_levels() -> None:
    histogram = observed(np.append(samples("gauss"), 1000.0))
    width = float(histogram.edges[1] - histogram.edges[0])
    assert entropy(histogram, 8, True)[1] >= 127.5 * width


def test_entropy_is_not_moved_by_how_many_zeros_a_relu_leaves() -> None:
    values = np.abs(samples("gauss"))
    assert entropy(observed(np.append(values, np.zeros(20 * N))), 8, True) == entropy(observed(values), 8, True)


def test_moving_average_is_between_the_batches_and_an_outlier_in_one_of_them_weighs_little() -> None:
    values = samples("outlier")
    histogram = observed(values)  # seven batches, the outlier in the last
    ends = [float(np.abs(batch).max()) for batch in np.array_split(values, 7)]
    low, high = moving_average(histogram, 8, False)
    assert high == pytest.approx(float(np.mean([batch.max() for batch in np.array_split(values, 7)])), rel=0.05)
    assert low == pytest.approx(float(np.mean([batch.min() for batch in np.array_split(values, 7)])), rel=0.05)
    assert sorted(ends)[-2] < high < 0.2 * ends[-1]


def test_moving_average_of_one_batch_is_its_range() -> None:
    histogram = Observed()
    histogram.update(samples("gauss"))
    for symmetric in (True, False):
        assert moving_average(histogram, 8, symmetric) == min_max(histogram, 8, symmetric)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("name", ["gauss", "laplace", "uniform", "relu", "relu-laplace", "shifted", "outlier"])
def test_auto_reconstructs_no_worse_than_any_rule(name: str, bits: int, symmetric: bool) -> None:
    """On the values themselves, not on the histogram it judges by."""
    values = samples(name)
    histogram = observed(values)
    errors = {
        rule: squared_error(values, *calibrator(histogram, bits, symmetric), bits, symmetric)
        for rule, calibrator in CALIBRATORS.items()
    }
    assert errors["auto"] <= 1.002 * min(errors.values())  # 0.002: two rules may be closer than bins can tell


def test_auto_judges_on_the_grid_that_is_written_and_not_on_that_of_mse() -> None:
    """Unsigned with zero point 0 reaches to 255 / 127 of the range: a smaller one costs nothing there, and is finer."""
    values = samples("relu")
    histogram = observed(values)

    def unsigned(low: float, high: float) -> list[Grid]:
        return [Grid(high / 127, 0, 255)]

    def error(grid: Grid) -> float:
        return float(np.mean((values - np.clip(np.rint(values / grid.scale), 0, 255) * grid.scale) ** 2))

    name, ends = choose(histogram, 8, True, unsigned)
    errors = {
        rule: error(unsigned(*calibrator(histogram, 8, True))[0])
        for rule, calibrator in CALIBRATORS.items()
        if rule != "auto"
    }
    assert name == min(errors, key=lambda rule: errors[rule]) != "mse"
    assert error(unsigned(*ends)[0]) < 0.9 * errors["mse"]


def test_auto_takes_the_rule_that_is_best_in_the_mean_of_all_grids() -> None:
    """A range that one of two grids likes and the other pays for is not taken."""
    histogram = observed(samples("relu-laplace"))

    def both(low: float, high: float) -> list[Grid]:
        return [Grid(high / 127, 0, 255), Grid(high / 127, -128, 127)]

    alone, _ = choose(histogram, 8, True, lambda low, high: both(low, high)[:1])
    name, ends = choose(histogram, 8, True, both)
    assert (alone, name) == ("percentile", "mse")
    assert ends == mse(histogram, 8, True)
