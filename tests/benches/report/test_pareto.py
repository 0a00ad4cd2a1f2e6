"""What was tried: the points, the front that nothing beats, and where a chart puts them."""

import dataclasses

import pytest

from edgesmith.benches.report import pareto
from edgesmith.benches.report.int8_report import Trial
from edgesmith.benches.report.pareto import Tried
from edgesmith.benches.report.report import MetricValue, Report
from tests.benches.sample_report import make_report


def with_forms() -> Report:
    """The sample with three forms of the judged file: the one that was taken, a faster worse one, one not timed."""
    report = make_report()
    forms = (
        Trial(dialect="u8", in_float=0, accuracy=0.9819, snr_db=31.0, latency_ms=0.131, taken=True),
        Trial(dialect="s8", in_float=2, accuracy=0.971, snr_db=22.0, latency_ms=0.12, taken=False),
        Trial(dialect="s8", in_float=0, accuracy=0.41, snr_db=12.04, latency_ms=None, taken=False),
    )
    judged = dataclasses.replace(report.artifacts[0], tried=forms)
    return dataclasses.replace(report, artifacts=(judged, *report.artifacts[1:]))


def point(accuracy: float, latency_ms: float) -> Tried:
    return Tried(number=1, kind="stage", label="", accuracy=accuracy, latency_ms=latency_ms)


def test_every_stage_and_every_timed_form_is_a_point() -> None:
    found = pareto.tried(with_forms())
    assert [(each.number, each.kind, each.label, each.front) for each in found] == [
        (1, "original", "original", True),
        (2, "stage", "prune", False),
        (3, "stage", "distill", True),
        (4, "final", "quantize", True),
        (5, "form", "u8, taken", True),
        (6, "form", "s8, 2 layers in float", True),
    ]
    no_runtime = dataclasses.replace(
        make_report(), stages=tuple(dataclasses.replace(each, latency_ms=None) for each in make_report().stages)
    )
    assert pareto.tried(no_runtime) == []


def test_the_front_is_what_nothing_beats() -> None:
    points = [point(0.9, 1.0), point(0.9, 2.0), point(0.8, 1.0), point(0.7, 0.5), point(0.9, 1.0)]
    assert [each.front for each in pareto.with_front(points, True)] == [True, False, False, True, True]
    assert [each.front for each in pareto.with_front(points, False)] == [False, False, False, True, False]


def test_the_good_is_up_and_the_fast_is_left() -> None:
    report = with_forms()
    points = pareto.tried(report)
    chart = pareto.chart(points, report)
    original, prune, distill, final, taken, fast = chart.marks
    assert fast.x < final.x == taken.x < prune.x == distill.x < original.x <= 94
    assert original.y < distill.y < final.y == taken.y < fast.y < prune.y < pareto.HEIGHT
    # Latency runs from 0, so that twice as long is twice as far.
    assert (original.x - 14) / (prune.x - 14) == pytest.approx(0.412 / 0.205)
    assert [text.words for text in chart.numbers] == ["1", "2", "3", "4, 5", "6"]
    assert [text.words for text in chart.across] == ["0 ms", "0.1 ms", "0.2 ms", "0.3 ms", "0.4 ms"]
    # Along to the next point's time, then up to it.
    assert chart.front[0] == (fast.x, fast.y, final.x, fast.y)
    assert chart.front[1] == (final.x, fast.y, final.x, final.y)
    errors = {
        name: MetricValue(value=0.1, low=0.0, high=0.2, higher_is_better=False, kind="mean")
        for name in report.original.metrics
    }
    turned = dataclasses.replace(report, original=dataclasses.replace(report.original, metrics=errors))
    original, prune, *_ = pareto.chart(points, turned).marks
    assert prune.y < original.y, "of an error the small is good"


@pytest.mark.parametrize(
    ("low", "high", "found"),
    [
        (0.0, 0.43, [0.0, 0.1, 0.2, 0.3, 0.4]),
        (0.905, 0.991, [0.92, 0.94, 0.96, 0.98]),
        (0.0, 7.1, [0.0, 2.0, 4.0, 6.0]),
        (-3e-6, 2e-6, [-3e-6, -2e-6, -1e-6, 0.0, 1e-6, 2e-6]),
    ],
)
def test_ticks_are_round(low: float, high: float, found: list[float]) -> None:
    assert pareto.ticks(low, high) == pytest.approx(found)


def test_no_share_is_more_than_all() -> None:
    report = make_report()
    report = dataclasses.replace(
        report,
        stages=tuple(dataclasses.replace(e, accuracy=a) for e, a in zip(report.stages, (1, 0, 0.9, 1), strict=True)),
    )
    ticks = [text.words for text in pareto.chart(pareto.tried(report), report).down]
    assert ticks == ["0.00 %", "50.00 %", "100.00 %"]


def test_one_point_and_equal_points_have_a_chart() -> None:
    report = make_report()
    same = tuple(dataclasses.replace(each, accuracy=0.0) for each in report.stages)
    report = dataclasses.replace(report, stages=same[:1])
    chart = pareto.chart(pareto.tried(report), report)
    assert chart.front == () and len(chart.marks) == 1 and len(chart.down) >= 2
