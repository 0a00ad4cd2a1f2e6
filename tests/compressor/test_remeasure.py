"""When a figure that was measured again differs from the report, and when it does not."""

import dataclasses

import numpy as np
import pytest

from edgesmith.benches.metrics.metrics import METRICS
from edgesmith.benches.report.report import BatchLatency, Report
from edgesmith.compressor.remeasure import compare_absolute, compare_limit, compare_scores, compare_times
from edgesmith.core.limits import LimitResult, Status
from tests.benches.sample_report import make_report

ACCURACY = METRICS["accuracy"]
BEYOND = "beyond both intervals; the limit: "
Interval3 = tuple[float, float, float]  # low, value, high


def judged(name: str, limit: float, low: float, value: float, high: float) -> LimitResult:
    status: Status = "pass" if high <= limit else "fail" if low > limit else "unproven"
    return LimitResult(name=name, limit=limit, measured=value, low=low, high=high, status=status)


def now(report: Report, low: float, median: float, high: float) -> list[BatchLatency]:
    return [
        dataclasses.replace(e, speedup=dataclasses.replace(e.speedup, low=low, median=median, high=high))
        for e in report.latency[:1]
    ]


@pytest.mark.parametrize(
    ("low", "median", "high", "status", "note"),
    [
        (3.2, 3.3, 3.4, "same", ""),  # the report says 2.88 to 3.29
        (2.5, 2.7, 2.89, "same", ""),
        (2.5, 2.7, 2.87, "noted", "slower than it was, by 0.5% beyond both intervals"),
        (2.5, 2.7, 2.75, "noted", "slower than it was, by 4.8% beyond both intervals"),
        (2.5, 2.7, 2.74, "differs", "slower than it was"),
        (3.3, 3.5, 3.6, "noted", "faster than it was, by 0.4% beyond both intervals"),
        (3.46, 3.5, 3.6, "differs", "faster than it was"),
    ],
)
def test_a_time_differs_where_the_intervals_are_further_apart_than_two_sessions_can_be(
    low: float, median: float, high: float, status: str, note: str
) -> None:
    report = make_report()
    report = dataclasses.replace(report, latency=report.latency[:1])
    (found,) = compare_times(report, now(report, low, median, high))
    assert (found.what, found.status, found.note) == ("speed-up, batch 1", status, note)
    assert found.report == "3.10x faster (2.88 to 3.29)"


@pytest.mark.parametrize(
    ("original", "final", "slower", "status", "note"),
    [
        (1.4, 3.0, None, "same", ""),  # the speed-up shows what the final alone lost
        (0.7, 0.7, None, "same", ""),
        (
            2.0,
            1.6,
            None,
            "noted",
            "both 1.60x slower than they were: look at clocks, other load and the runtime's build",
        ),
        (0.5, 0.4, None, "noted", "both 2.00x faster than they were"),
        (
            2.0,
            1.6,
            1.7,
            "noted",
            "both 1.60x slower than they were: look at clocks, other load and the runtime's build",
        ),
        (2.0, 1.6, 1.55, "differs", "both 1.60x slower than they were, at most 1.55x is allowed"),
        (1.3, 1.25, 1.2, "differs", "both 1.25x slower than they were, at most 1.2x is allowed"),
        (0.5, 0.5, 1.0, "noted", "both 2.00x faster than they were"),
    ],
)
def test_times_that_changed_for_both_alike(
    original: float, final: float, slower: float | None, status: str, note: str
) -> None:
    report = make_report()
    before = report.latency[0]
    sides = {
        name: dataclasses.replace(getattr(before, name), p50=change * getattr(before, name).p50)
        for name, change in (("original", original), ("final", final))
    }
    (found,) = compare_absolute(report, [dataclasses.replace(before, **sides)], slower)
    assert (found.what, found.status, found.note) == (f"times of both, batch {before.batch}", status, note)
    assert found.report == "0.412 ms and 0.133 ms"


def test_answers_differ_beyond_what_the_samples_could_do_by_chance() -> None:
    before = np.ones(500)
    same = compare_scores(ACCURACY, "final", before, before.copy(), 0.95)
    assert (same.status, same.report, same.now, same.note) == ("same", "1", "1", "every sample")
    few = before.copy()
    few[:2] = 0  # two of 500: within the interval
    other = compare_scores(ACCURACY, "final", before, few, 0.95)
    assert (other.what, other.status) == ("accuracy, final", "same")
    assert other.note.startswith("2 of 500 samples differ, loss 0.0040 (-0.00")
    many = before.copy()
    many[:25] = 0
    worse = compare_scores(ACCURACY, "final", before, many, 0.95)
    assert (worse.status, worse.now) == ("differs", "0.95")
    better = compare_scores(ACCURACY, "final", many, before, 0.95)
    assert better.status == "differs", "a file that answers better than the report says is another file too"


def test_a_mean_that_drifted_in_some_samples_differs() -> None:
    """The very same samples: what others might do is no part of the question."""
    before = np.random.default_rng(0).random(1000)
    after = before.copy()
    after[:249] += 0.01
    found = compare_scores(METRICS["mae"], "final", before, after, 0.95)
    assert (found.status, found.note) == ("differs", "249 of 1,000 samples differ, loss 0.0025 (0.0023 to 0.0027)")


@pytest.mark.parametrize(
    ("name", "limit", "then", "now", "status", "note"),
    [
        ("latency_ms", 1.0, (0.0304, 0.0306, 0.0307), (0.0306, 0.0309, 0.0311), "same", "pass"),
        # Measured: one of seven sessions with an untouched run.
        ("latency_ms", 1.0, (0.0304, 0.0306, 0.0307), (0.0308, 0.0309, 0.0311), "noted", BEYOND + "pass"),
        ("latency_ms", 1.0, (0.30, 0.31, 0.32), (0.62, 0.63, 0.64), "noted", BEYOND + "pass"),
        ("latency_ms", 0.5, (0.30, 0.31, 0.32), (0.62, 0.63, 0.64), "differs", "the limit is missed now"),
        ("latency_ms", 0.5, (0.62, 0.63, 0.64), (0.63, 0.64, 0.65), "same", "fail"),
        ("latency_ms", 0.32, (0.30, 0.31, 0.32), (0.31, 0.32, 0.33), "same", "unproven"),
        ("peak_memory_bytes", 9e6, (1.0e6, 1.0e6, 1.1e6), (1.12e6, 1.2e6, 1.3e6), "noted", BEYOND + "pass"),
        ("peak_memory_bytes", 9e6, (1.0e6, 1.0e6, 1.1e6), (1.2e6, 1.2e6, 1.3e6), "differs", BEYOND + "pass"),
        ("peak_memory_bytes", 9e6, (1.0e6, 1.0e6, 1.1e6), (0.0, 0.0, 0.0), "differs", BEYOND + "pass"),
        ("peak_memory_ratio", 0.9, (0.5, 0.5, 0.5), (0.51, 0.51, 0.51), "noted", BEYOND + "pass"),
    ],
)
def test_a_limit_on_what_is_measured_again(
    name: str, limit: float, then: Interval3, now: Interval3, status: str, note: str
) -> None:
    report = make_report()
    before, after = (judged(name, limit, *each) for each in (then, now))
    found = compare_limit(report, before, after)
    assert (found.status, found.note) == (status, note)


def test_a_limit_that_was_not_measured_then() -> None:
    report = make_report()
    before = dataclasses.replace(
        judged("latency_ms", 1.0, 0.3, 0.3, 0.3), measured=None, low=None, high=None, note="why"
    )
    found = compare_limit(report, before, judged("latency_ms", 1.0, 0.3, 0.3, 0.3))
    assert (found.status, found.note) == ("not compared", "why")
