"""What a recipe promises less than the last release's did is said, and its losses are held to the tighter limit."""

import dataclasses

import pytest

from edgesmith.benches.gates import last_limits
from edgesmith.benches.report.report import Report
from tests.benches.sample_report import make_report


def with_limits(**limits: float) -> Report:
    report = make_report()
    one = report.limits[0]
    made = (dataclasses.replace(one, name=name, limit=limit) for name, limit in limits.items())
    return dataclasses.replace(report, limits=tuple(made))


@pytest.mark.parametrize(
    ("theirs", "ours", "said"),
    [
        ({"drop": 0.01}, {"drop": 0.01, "speedup": 2.0}, None),
        ({"drop": 0.01}, {"drop": 0.005}, None),
        ({"speedup": 2.0}, {"speedup": 3.0}, None),
        ({"drop": 0.01, "latency_ms": 4.0}, {"drop": 0.03}, "drop is 0.03, it was 0.01; latency_ms is gone, it was 4"),
        ({"speedup": 2.0, "metric": 0.9}, {"speedup": 1.5, "metric": 0.8}, "speedup is 1.5, it was 2; metric is 0.8, it was 0.9"),
    ],
)  # fmt: skip
def test_what_is_promised_less_is_said(theirs: dict[str, float], ours: dict[str, float], said: str | None) -> None:
    found = last_limits.loosened(with_limits(**ours), with_limits(**theirs))
    if said is None:
        assert found is None
        return
    assert found is not None
    assert (found.id, found.status, found.found) == ("baseline: limits", "pass", said)
    assert found.note == "the recipe promises less than before"


def test_a_metric_that_should_be_small_is_loosened_upwards() -> None:
    def with_error(limit: float) -> Report:
        report = with_limits(metric=limit)
        error = {
            report.main_metric: dataclasses.replace(report.final.metrics[report.main_metric], higher_is_better=False)
        }
        return dataclasses.replace(report, final=dataclasses.replace(report.final, metrics=error))

    assert last_limits.loosened(with_error(0.2), with_error(0.3)) is None
    found = last_limits.loosened(with_error(0.3), with_error(0.2))
    assert found is not None and found.found == "metric is 0.3, it was 0.2"


def test_less_confidence_is_said() -> None:
    ours = dataclasses.replace(with_limits(drop=0.01), confidence=0.6)
    found = last_limits.loosened(ours, dataclasses.replace(ours, confidence=0.95))
    assert found is not None and found.found == "confidence is 0.6, it was 0.95"


def test_what_a_stage_was_asked_for_is_no_promise_of_the_recipe() -> None:
    """It stands in a report only where it was missed."""
    assert last_limits.loosened(with_limits(drop=0.01), with_limits(drop=0.01, asked_latency=4.0)) is None


def test_bytes_are_written_out() -> None:
    found = last_limits.loosened(with_limits(file_bytes=12_345_678), with_limits(file_bytes=12_345_670))
    assert found is not None and found.found == "file_bytes is 12,345,678, it was 12,345,670"


def test_a_loss_is_held_to_the_tighter_limit() -> None:
    assert last_limits.tighter(with_limits(drop=0.03), with_limits(drop=0.01), "drop") == 0.01
    assert last_limits.tighter(with_limits(drop=0.01), with_limits(speedup=2.0), "drop") == 0.01
    assert last_limits.tighter(with_limits(speedup=1.0), with_limits(speedup=2.0), "drop") is None
