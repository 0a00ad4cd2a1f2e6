"""Predictions in order, the paired drop and its coverage, and the number of samples a limit needs."""

import re
from collections.abc import Mapping

import numpy as np
import pytest

from edgesmith.benches.metrics import accuracy
from edgesmith.benches.metrics.metrics import METRICS
from edgesmith.benches.timing import intervals
from edgesmith.core.errors import DataError
from edgesmith.core.task import ArraySplit, Metric
from edgesmith.core.values import Interval, TensorSpec

ACCURACY = METRICS["accuracy"]


class Doubler:
    """A session of one line; the batch sizes that it saw are kept."""

    def __init__(self, batch: int | str = "batch") -> None:
        self.inputs = (TensorSpec(name="x", dtype="float32", shape=(batch, 2)),)
        self.outputs = (TensorSpec(name="y", dtype="float32", shape=(batch, 2)),)
        self.seen: list[int] = []

    def run(self, feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        self.seen.append(len(feed["x"]))
        return {"y": 2 * feed["x"], "first": feed["x"][:, 0]}

    def close(self) -> None: ...


SPLIT = ArraySplit({"x": np.arange(14, dtype=np.float32).reshape(7, 2)}, np.arange(7))


def test_predictions_keep_the_order_of_the_samples() -> None:
    session = Doubler()
    found = accuracy.predict(session, SPLIT, 3)
    np.testing.assert_array_equal(found["y"], 2 * SPLIT.inputs["x"])
    np.testing.assert_array_equal(found["first"], SPLIT.inputs["x"][:, 0])
    assert session.seen == [3, 3, 1]


def test_a_fixed_batch_is_filled_up_and_cut() -> None:
    session = Doubler(batch=4)
    np.testing.assert_array_equal(accuracy.predict(session, SPLIT, 3)["y"], 2 * SPLIT.inputs["x"])
    assert session.seen == [4, 4]


def test_an_output_without_a_batch_axis_is_refused() -> None:
    class Summing(Doubler):
        def run(self, feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
            return {"total": feed["x"].sum(axis=0)}

    text = "output 'total' has shape (2,) for a batch of 7; its first axis must be the batch"
    with pytest.raises(DataError, match=f"^{re.escape(text)}$"):
        accuracy.predict(Summing(), SPLIT, 100)


def test_labels_come_whole_and_their_absence_is_said() -> None:
    np.testing.assert_array_equal(accuracy.labels_of(SPLIT, batch_size=2), np.arange(7))
    with pytest.raises(DataError, match=r"^the split has no labels, so that no metric can be measured on it$"):
        accuracy.labels_of(ArraySplit({"x": np.zeros((3, 1))}))


def pair(both: int, lost: int, won: int, neither: int) -> tuple[np.ndarray, np.ndarray]:
    """Scores of original and final by how many samples they agree and disagree on."""
    original = np.repeat([1.0, 1.0, 0.0, 0.0], [both, lost, won, neither])
    final = np.repeat([1.0, 0.0, 1.0, 0.0], [both, lost, won, neither])
    return original, final


def test_drop_pairs_the_samples() -> None:
    """Two samples lost of 360: the upper bound is 1.9 points; unpaired it would be 2.3."""
    drop = accuracy.paired_drop(ACCURACY, *pair(352, 2, 0, 6), 0.95)
    assert drop.value == pytest.approx(2 / 360)
    assert drop.high == pytest.approx(0.01868, abs=5e-5)
    # Pairing is the point: more disagreement around a like drop proves less.
    assert accuracy.paired_drop(ACCURACY, *pair(340, 14, 6, 0), 0.95).high > drop.high


def test_identical_predictions_on_360_samples_bound_the_drop_at_a_point() -> None:
    drop = accuracy.paired_drop(ACCURACY, *pair(350, 0, 0, 10), 0.95)
    assert drop.value == 0.0
    assert drop.high == -drop.low == pytest.approx(3.609 / 360, rel=1e-4)


def test_a_drop_of_a_mean_is_bounded_on_the_differences() -> None:
    rng = np.random.default_rng(3)
    base = rng.exponential(1.0, 500)  # the errors vary much more than the two models differ
    drop = accuracy.paired_drop(METRICS["mae"], base, base + 0.01 + 0.01 * rng.standard_normal(500), 0.95)
    assert drop.value == pytest.approx(0.01, abs=0.002)
    assert drop.high - drop.low == pytest.approx(2 * 1.645 * 0.01 / np.sqrt(500), rel=0.1)


def test_drop_of_a_mean_covers() -> None:
    rng = np.random.default_rng(4)
    held = 0
    for _ in range(2000):
        original = rng.exponential(1.0, 200)
        final = original * rng.lognormal(0.0, 0.1, 200)
        truth = np.exp(0.005) - 1  # E[final] - E[original] of lognormal(0, 0.1) times a mean of 1
        held += accuracy.paired_drop(METRICS["mae"], original, final, 0.95).high >= truth
    assert 0.925 <= held / 2000 <= 0.97


def test_different_samples_cannot_be_paired() -> None:
    text = (
        "metric 'accuracy': scores of shape (3,) (original) and (4,) (final); "
        "a paired comparison needs the same samples in the same order"
    )
    with pytest.raises(DataError, match=f"^{re.escape(text)}$"):
        accuracy.paired_drop(ACCURACY, np.ones(3), np.ones(4), 0.95)


@pytest.mark.parametrize(("lost", "won", "limit"), [(2, 1, 0.01), (0, 0, 0.004), (9, 1, 0.01), (3, 0, 0.0083)])
def test_samples_needed_is_where_the_bound_crosses_the_limit(lost: int, won: int, limit: float) -> None:
    original, final = pair(340, lost, won, 20 - lost - won)
    needed = accuracy.samples_needed(ACCURACY, original, final, limit, 0.95)
    assert needed is not None

    def settled(count: int) -> bool:
        from edgesmith.benches.timing.intervals import tango

        found = tango(lost / 360 * count, won / 360 * count, count, 0.95)
        return found.high <= limit or found.low > limit

    assert settled(needed)
    assert not settled(needed - 1)


def test_a_drop_that_is_the_limit_itself_is_never_settled() -> None:
    assert accuracy.samples_needed(ACCURACY, *pair(300, 3, 0, 57), limit=3 / 360, confidence=0.95) is None


def test_widths_shrink_with_the_square_root_of_the_samples() -> None:
    assert accuracy.samples_to_settle(Interval(value=0.5, low=0.4, high=0.6), 0.55, 100) == 400
    assert accuracy.samples_to_settle(Interval(value=0.5, low=0.2, high=0.6), 0.4, 100) == 900
    assert accuracy.samples_to_settle(Interval(value=0.5, low=0.4, high=0.6), 0.5, 100) is None


def test_a_loss_too_small_to_matter_does_not_prove_that_no_other_is_there() -> None:
    """Fifty texts whose error is the same but for one: what all of them equal would leave open stays open."""
    metric = Metric(name="errors", scores=lambda output, labels: output, higher_is_better=False, bounds=(0.0, 1.0))
    before = np.linspace(0.0, 1.0, 50)
    after = before.copy()
    equal = accuracy.paired_drop(metric, before, after, 0.95)
    assert equal.high == pytest.approx(1 - 0.05 ** (1 / 50))
    after[7] += 0.001
    found = accuracy.paired_drop(metric, before, after, 0.95)
    assert found.high == pytest.approx(2e-5 + 49 / 50 * (1 - 0.05 ** (1 / 49)))
    assert found.low == pytest.approx(2e-5 - 49 / 50 * (1 - 0.05 ** (1 / 49)))


@pytest.mark.parametrize(("count", "rare"), [(50, 0.01), (200, 0.005), (360, 0.005)])
def test_rare_losses_beside_small_ones_are_covered(count: int, rare: float) -> None:
    """One sample in a hundred loses nearly all, three in ten a hundredth: the t interval missed that in up to 61 %."""
    rng, missed = np.random.default_rng(3), 0
    metric = Metric(name="share", scores=lambda output, labels: output, bounds=(0.0, 1.0))
    for _ in range(400):
        before = rng.uniform(0.9, 1.0, count)
        before[0] = 0.0  # one that it never could do: scores reach over their whole range
        lost = np.where(rng.random(count) < rare, 0.9, np.where(rng.random(count) < 0.3, 0.01, 0.0))
        truth = 0.9 * rare + (1 - rare) * 0.3 * 0.01
        missed += accuracy.paired_drop(metric, before, before - lost, 0.95).high < truth
    assert missed / 400 < 0.05


def test_scores_that_always_differ_have_students_interval() -> None:
    rng = np.random.default_rng(0)
    before = rng.standard_normal(100) ** 2
    after = before + 0.01 * rng.standard_normal(100)
    metric = Metric(name="mse", scores=lambda output, labels: output, higher_is_better=False)
    assert accuracy.paired_drop(metric, before, after, 0.95) == intervals.mean(after - before, 0.95)
