"""What is said of a range: clipped, unused, moved; and the exact words of a warning."""

import dataclasses

import numpy as np
import pytest

from edgesmith.calibration.calibrators import CALIBRATORS, min_max, percentile
from edgesmith.calibration.histogram import Histogram
from edgesmith.calibration.observer import Observer
from edgesmith.calibration.ranges import TensorRange, describe, moved, notable, warnings

QUIET = TensorRange(tensor="t", rule="mse", low=-1.0, high=1.0, clipped=0.0002, unused=0.1, moved=0.02)


def seen(values: np.ndarray) -> Histogram:
    found = Histogram()
    found.update(values)
    return found


def test_a_range_blown_up_by_an_outlier_is_notable_and_the_clipped_one_is_not() -> None:
    values = np.append(np.random.default_rng(0).standard_normal(100_000), 100.0)
    histogram = seen(values)
    blown, kept = (
        describe("t", "r", histogram, rule(histogram, 8, True), None)  # type: ignore[arg-type]  # it has no batches
        for rule in (min_max, percentile)
    )
    assert (blown.clipped, notable(blown), notable(kept)) == (0.0, True, False)
    assert blown.unused > 0.9 > 0.05 > kept.unused
    assert kept.clipped == pytest.approx(1e-4, rel=0.05)


def test_levels_count_from_zero_where_nothing_is_negative_and_on_both_sides_elsewhere() -> None:
    rng = np.random.default_rng(0)
    one_sided = describe("t", "r", seen(rng.uniform(0, 1, 50_000)), (0.0, 1.0), None)
    leaning = describe("t", "r", seen(rng.uniform(-0.1, 1, 50_000)), (-0.1, 1.0), None)
    assert one_sided.unused == 0.0
    assert leaning.unused == pytest.approx(114 / 255, abs=2 / 255)  # levels -127 to -14


def test_a_range_that_clips_one_value_in_a_hundred_is_notable() -> None:
    values = np.random.default_rng(0).uniform(-1, 1, 100_000)
    found = describe("t", "r", seen(values), (-0.98, 0.98), None)
    assert found.clipped == pytest.approx(0.02, rel=0.05)
    assert notable(found) and not notable(dataclasses.replace(found, clipped=0.005))


def test_how_far_half_of_the_samples_are_from_all() -> None:
    assert moved((-1.0, 2.0), [(-1.0, 2.0), (-1.5, 1.0)]) == pytest.approx(0.125)  # 0 and 0.25
    assert moved((0.0, 0.0), [(0.0, 0.0), (0.0, 0.0)]) == 0.0


@pytest.mark.parametrize("rule", ["min-max", "moving-average", "percentile"])
def test_what_is_said_to_have_moved_is_about_what_twice_the_samples_will_move(rule: str) -> None:
    """In the mean over 60 tensors with long tails."""
    said, real = [], []
    for seed in range(60):
        observer, rng = Observer(), np.random.default_rng(seed)
        seen_twice = []
        for _ in range(2):
            for _ in range(8):
                observer.update(rng.laplace(size=500))
            seen_twice.append(observer.observed())
        first, second = (CALIBRATORS[rule](found, 8, True) for found in seen_twice)
        assert seen_twice[0].halves is not None
        said.append(moved(first, [CALIBRATORS[rule](half, 8, True) for half in seen_twice[0].halves]))
        real.append(moved(second, [first]))
    assert 0.5 < float(np.mean(real) / np.mean(said)) < 1.2
    assert np.mean(said) > 0.01


def test_settled_ranges_say_nothing() -> None:
    assert warnings([QUIET, dataclasses.replace(QUIET, moved=0.099)]) == []


def test_ranges_that_still_move_are_counted_and_the_worst_is_named() -> None:
    found = [
        QUIET,
        dataclasses.replace(QUIET, tensor="a", moved=0.12),
        dataclasses.replace(QUIET, tensor="b", moved=0.4),
    ]
    assert warnings(found) == [
        "warning: more samples would still move the ranges: 2 of 3 differ by 10% or more between half of the samples and all, "
        "most 'b' by 40%; give more samples"
    ]


def test_a_tensor_that_one_batch_alone_had_is_no_reason_to_doubt_the_others() -> None:
    assert warnings([QUIET, dataclasses.replace(QUIET, moved=None)]) == []
    assert warnings([]) == []


def test_one_batch_cannot_tell() -> None:
    assert warnings([dataclasses.replace(QUIET, moved=None)]) == [
        "warning: all samples came as one batch, which cannot tell whether more would move the ranges; give more batches"
    ]
