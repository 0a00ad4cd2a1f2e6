"""When a figure that was measured again differs from the report, and when it does not."""

import dataclasses

import numpy as np
import pytest

from edgesmith.benches.metrics.metrics import METRICS
from edgesmith.benches.report.report import BatchLatency, Report
from edgesmith.compressor.remeasure import compare_scores, compare_times
from tests.benches.sample_report import make_report

ACCURACY = METRICS["accuracy"]


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
        (2.5, 2.7, 2.87, "differs", "slower than it was"),
        (3.3, 3.5, 3.6, "differs", "faster than it was"),
    ],
)
def test_a_time_differs_where_the_intervals_have_no_common_value(
    low: float, median: float, high: float, status: str, note: str
) -> None:
    report = make_report()
    report = dataclasses.replace(report, latency=report.latency[:1])
    (found,) = compare_times(report, now(report, low, median, high))
    assert (found.what, found.status, found.note) == ("speed-up, batch 1", status, note)
    assert found.report == "3.10x faster (2.88 to 3.29)"


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
