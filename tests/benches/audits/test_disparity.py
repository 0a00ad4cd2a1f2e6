"""The gap between groups: by hand, its interval, and that unchanged models do not look worse."""

import numpy as np
import pytest

from edgesmith.benches.audits.disparity import disparities
from edgesmith.benches.gates.judge import Evidence, SideEvidence, judge
from edgesmith.benches.metrics.metrics import METRICS
from edgesmith.benches.timing.intervals import bootstrap, unseen_share
from edgesmith.core.limits import Limits
from edgesmith.core.task import Metric
from edgesmith.core.values import Interval

ACCURACY = METRICS["accuracy"]
HALVES = {"a": np.arange(200) < 100, "b": np.arange(200) >= 100}


def right(*counts: int) -> np.ndarray:
    """Groups of 100 samples, of which so many are right."""
    return np.concatenate([np.arange(100) < count for count in counts]).astype(float)


def test_by_hand() -> None:
    (found,) = disparities(ACCURACY, right(90, 80), right(85, 60), {"class": HALVES, "slice": {}}, 0.95)
    assert (found.kind, found.groups, found.samples, found.best, found.worst) == ("class", 2, 100, "a", "b")
    assert (found.original, found.final, found.growth.value) == pytest.approx((0.10, 0.25, 0.15))
    # The two groups' paired differences are independent: 0.05 and 0.20 of the samples changed, in one direction.
    half = 1.645 * np.sqrt(0.05 * 0.95 / 100 + 0.2 * 0.8 / 100)
    assert found.growth.low == pytest.approx(0.15 - half, abs=0.012)
    assert found.growth.high == pytest.approx(0.15 + half, abs=0.012)


def test_models_that_answer_the_same() -> None:
    scores = right(90, 80)
    (found,) = disparities(ACCURACY, scores, scores, {"slice": HALVES}, 0.95)
    unseen = unseen_share(100, 0.95)
    assert found.growth == Interval(value=0.0, low=-unseen, high=unseen)
    assert unseen == pytest.approx(0.0295, abs=1e-4)


def test_fewer_than_two_groups_have_no_gap() -> None:
    masks = {"class": {"a": np.ones(200, bool), "b": np.arange(200) == 3}, "slice": {}}
    assert disparities(ACCURACY, right(90, 80), right(90, 80), masks, 0.95) == ()  # type: ignore[arg-type]  # literals


def test_lower_is_better_and_groups_that_overlap() -> None:
    masks = {"slice": {"all": np.ones(200, bool), "b": HALVES["b"]}}
    before = np.full(200, 1.0)
    after = np.where(HALVES["b"], 3.0, 1.0)
    (found,) = disparities(METRICS["mae"], before, after, masks, 0.95)  # type: ignore[arg-type]  # literals
    assert (found.original, found.final) == pytest.approx((0.0, 1.0), abs=1e-9)
    assert (found.best, found.worst) == ("all", "b")
    # every resample keeps the overlap: 100 samples are in both groups; what is left is what may be unseen
    half = unseen_share(100, 0.95) * 2.0
    assert (found.growth.low, found.growth.high) == pytest.approx((1 - half, 1 + half))


def test_a_metric_with_a_reduce_of_its_own() -> None:
    share = Metric(
        name="share", scores=lambda o, _: o, kind="statistic", reduce=lambda s: float(s.mean()), bounds=(0, 1)
    )
    scores = right(90, 80), right(85, 60)
    (first,), (second,) = (disparities(metric, *scores, {"class": HALVES}, 0.95) for metric in (share, ACCURACY))
    for side in ("value", "low", "high"):
        assert getattr(first.growth, side) == pytest.approx(getattr(second.growth, side))


def test_both_kinds_share_the_error_of_a_miss() -> None:
    scores = right(90, 80), right(85, 60)
    (alone,) = disparities(ACCURACY, *scores, {"class": HALVES}, 0.95)
    first, second = disparities(ACCURACY, *scores, {"class": HALVES, "slice": HALVES}, 0.95)
    assert first.growth.high == alone.growth.high == second.growth.high
    assert first.growth.low < alone.growth.low


def test_unchanged_models_are_missed_no_more_often_than_the_confidence_says() -> None:
    """Two draws of the same accuracies: the gap of each is noise, and so is its growth."""
    rng, red, trials = np.random.default_rng(0), 0, 40
    masks = {str(i): np.arange(1000) % 5 == i for i in range(5)}
    for _ in range(trials):
        before, after = ((rng.random(1000) < 0.8).astype(float) for _ in range(2))
        (found,) = disparities(ACCURACY, before, after, {"class": masks}, 0.95)
        red += found.growth.low > 0
    assert red <= 0.05 * trials + 2 * np.sqrt(trials * 0.05 * 0.95)


def test_strata_keep_their_size() -> None:
    strata = np.array([2, 0, 1, 0, 2, 2, 0, 2])
    seen: list[np.ndarray] = []

    def statistic(indices: np.ndarray) -> float:
        seen.append(indices)
        return float(indices.mean())

    bootstrap(statistic, 8, 0.95, strata)
    assert all(np.bincount(strata[indices]).tolist() == [3, 1, 4] for indices in seen)
    assert {int(i) for indices in seen for i in indices} == set(range(8)), "every sample is drawn"


def test_judged() -> None:
    found = disparities(ACCURACY, right(90, 80), right(85, 60), {"class": HALVES}, 0.95)
    evidence = Evidence(
        original=SideEvidence(), final=SideEvidence(), drop=Interval(value=0, low=0, high=0), disparities=found
    )

    def status(limit: float) -> str:
        (result,) = judge(Limits(disparity=limit), evidence, True).results
        assert result.note == "of 2 classes: best 'a', worst 'b'; the smallest has 100 test samples"
        return result.status

    assert [status(limit) for limit in (0.3, 0.15, 0.01)] == ["pass", "unproven", "fail"]
