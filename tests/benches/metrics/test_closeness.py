"""Signal-to-noise ratios and equal answers, against numbers worked out by hand."""

import math

import numpy as np
import pytest

from edgesmith.benches.metrics.closeness import ENDS_DB, Closeness, compare, worst_agreement, worst_snr
from edgesmith.core.errors import DataError


def one(expected: np.ndarray, found: np.ndarray) -> Closeness:
    (closeness,) = compare([{"y": expected}], [{"y": found}])
    return closeness


def test_a_tenth_of_the_size_away_is_20_db() -> None:
    expected = np.array([[3.0, 4.0]], np.float32)
    assert one(expected, 1.1 * expected).snr_db == pytest.approx(20.0, abs=1e-4)


def test_runs_are_added_up_and_not_averaged() -> None:
    # 100 / 1 over both runs is 20 dB; the mean of the two runs' ratios would be another number.
    runs = [{"y": np.array([[6.0]])}, {"y": np.array([[8.0]])}], [{"y": np.array([[6.0]])}, {"y": np.array([[9.0]])}]
    assert compare(*runs)[0].snr_db == pytest.approx(20.0)


@pytest.mark.parametrize(
    ("found", "snr"),
    [
        (np.array([[1.0, 2.0]]), ENDS_DB),
        (np.array([[1.0, math.nan]]), -ENDS_DB),
        (np.array([[1.0, math.inf]]), -ENDS_DB),
        (np.array([[1.0]]), -ENDS_DB),
    ],
    ids=["equal", "nan", "infinite", "another shape"],
)
def test_the_ends_of_the_scale(found: np.ndarray, snr: float) -> None:
    assert one(np.array([[1.0, 2.0]]), found).snr_db == snr


def test_a_mask_of_the_original_has_no_size() -> None:
    masked = np.array([[1.0, -math.inf]])
    assert one(masked, masked).snr_db == ENDS_DB
    assert one(masked, np.array([[1.1, -math.inf]])).snr_db == pytest.approx(20.0)


def test_an_original_of_zeros_is_met_only_by_zeros() -> None:
    assert one(np.zeros((1, 2)), np.zeros((1, 2))).snr_db == ENDS_DB
    assert one(np.zeros((1, 2)), np.full((1, 2), 1e-9)).snr_db == -ENDS_DB


def test_answers_are_the_largest_along_the_last_axis() -> None:
    expected = np.array([[[1.0, 2.0], [4.0, 3.0]]])  # (N, T, K)
    found = one(expected, np.array([[[1.0, 2.0], [3.0, 3.5]]]))
    assert (found.agreement, found.answers) == (0.5, 2)


def test_an_image_and_a_single_number_hold_no_answers() -> None:
    for shape in ((1, 3, 4, 4), (5, 1), (5,)):
        found = one(np.ones(shape), np.ones(shape))
        assert (found.agreement, found.answers) == (None, 0)


def test_integers_are_answers_and_no_signal() -> None:
    found = one(np.array([[1, 2, 3, 4]]), np.array([[1, 2, 3, 5]]))
    assert (found.snr_db, found.agreement, found.answers) == (None, 0.75, 4)
    assert worst_snr([found]) == -ENDS_DB
    assert worst_snr([one(np.array([1]), np.array([1]))]) == ENDS_DB


def test_the_worst_output_counts() -> None:
    expected = {"a": np.array([[3.0, 4.0]]), "b": np.array([[3.0, 4.0]])}
    found = compare([expected], [{"a": np.array([[3.3, 4.4]]), "b": np.array([[4.0, 3.0]])}])
    assert worst_snr(found) == pytest.approx(10 * math.log10(25 / 2))
    assert worst_agreement(found) == 0.0


def test_what_cannot_be_compared() -> None:
    with pytest.raises(DataError, match=r"^output 'y' is missing in the changed model; it has: z$"):
        compare([{"y": np.ones(1)}], [{"z": np.ones(1)}])
    with pytest.raises(DataError, match=r"^closeness needs at least one run$"):
        compare([], [])
