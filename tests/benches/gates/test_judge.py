"""Every limit at its boundary: proven, disproven, unproven and not measured, with the exact notes."""

import dataclasses
import math
from typing import Any

import pytest

from edgesmith.benches.gates.judge import Evidence, SideEvidence, check_limits, judge
from edgesmith.core.errors import ExitCode, RecipeError
from edgesmith.core.limits import LimitResult, Limits
from edgesmith.core.values import Interval


def between(low: float, high: float) -> Interval:
    return Interval(value=(low + high) / 2, low=low, high=high)


EVIDENCE = Evidence(
    original=SideEvidence(file_bytes=1000, macs=4000, parameters=200, peak_memory=between(90, 110)),
    final=SideEvidence(file_bytes=250, macs=1000, parameters=50, peak_memory=between(45, 55)),
    drop=between(-0.002, 0.010),
    metric=between(0.93, 0.97),
    samples=360,
    drop_samples_needed=1240,
    metric_samples_needed=2500,
    negative_flips=between(0.01, 0.02),
    speedups={1: between(2.0, 2.4), 32: between(3.0, 3.4)},
    latency_ms=between(0.30, 0.34),
)


def result(evidence: Evidence = EVIDENCE, higher_is_better: bool = True, **limit: Any) -> LimitResult:
    (only,) = judge(Limits(**limit), evidence, higher_is_better).results
    return only


# Kept when the bound lies on the limit; missed only when the other bound lies beyond it.
@pytest.mark.parametrize(
    ("name", "passes", "unproven", "fails"),
    [
        ("drop", 0.010, (0.0099, -0.002), -0.0021),
        ("metric", 0.93, (0.931, 0.97), 0.971),
        ("negative_flips", 0.02, (0.019, 0.01), 0.0099),
        ("speedup", 2.0, (2.01, 2.4), 2.41),
        ("latency_ms", 0.34, (0.339, 0.30), 0.299),
        ("peak_memory_ratio", 55 / 90, (0.61, 45 / 110), 0.40),
        ("peak_memory_bytes", 55, (54, 45), 44),
        ("file_ratio", 0.25, (), 0.2499),
        ("file_bytes", 250, (), 249),
        ("macs_ratio", 0.25, (), 0.2499),
        ("params_ratio", 0.25, (), 0.2499),
    ],
)
def test_boundaries(name: str, passes: float, unproven: tuple[float, ...], fails: float) -> None:
    assert result(**{name: passes}).status == "pass"
    assert result(**{name: fails}).status == "fail"
    for limit in unproven:
        assert result(**{name: limit}).status == "unproven"


def test_an_unproven_latency_says_what_would_settle_it() -> None:
    assert result(latency_ms=0.30).note == "a longer measurement or a quieter machine narrows the interval"
    assert result(latency_ms=0.34).note == result(latency_ms=0.2).note == ""


@pytest.mark.parametrize(("limit", "status"), [(1.0, "pass"), (0.9, "pass"), (1.01, "fail")])
def test_the_very_file_of_the_original_is_exactly_as_fast(limit: float, status: str) -> None:
    """Where nothing that was tried is faster, the noise of two measurements of one file is no doubt."""
    same = dataclasses.replace(EVIDENCE, speedups={1: between(0.98, 1.03)}, same_file=True)
    found = result(same, speedup=limit)
    assert (found.status, found.measured) == (status, 1.0)
    assert found.note == "the very file of the original: nothing that was tried is faster"


def test_the_table_above_covers_every_limit() -> None:
    judged = {field.name for field in dataclasses.fields(Limits)} - {"confidence"}
    everything = Limits(**dict.fromkeys(judged, 1))
    assert [entry.name for entry in judge(everything, EVIDENCE, True).results] == [
        field.name for field in dataclasses.fields(Limits) if field.name != "confidence"
    ]


def test_a_metric_that_should_be_low_is_judged_by_its_upper_bound() -> None:
    assert result(higher_is_better=False, metric=0.97).status == "pass"
    assert result(higher_is_better=False, metric=0.93).status == "unproven"
    assert result(higher_is_better=False, metric=0.929).status == "fail"


def test_exact_numbers_have_no_width() -> None:
    found = result(macs_ratio=0.5)
    assert (found.measured, found.low, found.high) == (0.25, 0.25, 0.25)


def test_memory_ratio_divides_opposite_bounds() -> None:
    found = result(peak_memory_ratio=0.7)
    assert (found.measured, found.low, found.high) == (0.5, 45 / 110, 55 / 90)


def test_an_original_without_memory_of_its_own_gives_no_ratio() -> None:
    nothing = dataclasses.replace(EVIDENCE.original, peak_memory=between(0, 10))
    found = result(dataclasses.replace(EVIDENCE, original=nothing), peak_memory_ratio=0.7)
    assert (found.status, found.measured) == ("unproven", None)
    assert found.note == "not measured: the original adds too little memory to be told from none"


def test_the_worst_batch_decides_and_is_named() -> None:
    assert result(speedup=1.5).note == "batch 1, the worst of 1, 32"
    assert result(speedup=1.5).measured == pytest.approx(2.2)
    longer = "batch 1, the worst of 1, 32; a longer measurement or a quieter machine narrows the interval"
    assert result(speedup=2.2).note == longer


def test_a_batch_that_fails_is_worse_than_a_slower_one_that_is_unproven() -> None:
    speedups = {1: between(0.8, 2.2), 8: between(1.6, 1.9)}
    found = result(dataclasses.replace(EVIDENCE, speedups=speedups), speedup=2.0)
    assert (found.status, found.note) == ("fail", "batch 8, the worst of 1, 8")


def test_unproven_says_how_many_samples_would_settle_it() -> None:
    text = "360 test samples; at least 1,240 test samples would settle it at this rate of disagreement"
    assert result(drop=0.005).note == text
    assert result(drop=0.02).note == "360 test samples"
    assert "2,500 test samples" in result(metric=0.96).note
    assert result(negative_flips=0.018).note == text.replace("1,240", "1,000")
    never = dataclasses.replace(EVIDENCE, drop_samples_needed=None)
    text = "360 test samples; the measured value is the limit itself: no number of samples would settle it"
    assert result(never, drop=0.004).note == text


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(Limits) if field.name != "confidence"])
def test_what_was_not_measured_is_unproven_with_the_reason(name: str) -> None:
    empty = Evidence(original=SideEvidence(), final=SideEvidence(), unmeasured_reason="no CUDA device")
    found = result(empty, **{name: 0.5})
    assert (found.status, found.note) == ("unproven", "not measured: no CUDA device")
    assert (found.measured, found.low, found.high) == (None, None, None)


def test_verdict_and_exit_code_follow_the_worst_limit() -> None:
    def exit_code(**limits: Any) -> ExitCode:
        return judge(Limits(**limits), EVIDENCE, True).exit_code

    assert exit_code(drop=0.02, speedup=1.5) == ExitCode.PASS
    assert exit_code(drop=0.005, speedup=1.5) == ExitCode.UNPROVEN
    assert exit_code(drop=0.005, speedup=9.0) == ExitCode.LIMIT_MISSED


def test_no_limit_at_all_is_refused() -> None:
    with pytest.raises(RecipeError) as caught:
        judge(Limits(), EVIDENCE, True)
    assert str(caught.value) == (
        "limits: nothing is judged; set at least one of drop, metric, negative_flips, class_drop, slice_drop, corruption_drop, disparity, speedup, latency_ms, "
        "peak_memory_ratio, peak_memory_bytes, file_ratio, file_bytes, macs_ratio, params_ratio"
    )


@pytest.mark.parametrize(
    ("limits", "text"),
    [
        ({"speedup": math.nan}, "limits.speedup: nan is not a finite number"),
        ({"file_ratio": 0.0}, "limits.file_ratio: must be more than 0, got 0.0"),
        ({"drop": 0.01, "confidence": 95}, "limits.confidence: must lie between 0.5 and 1, got 95; 0.95 is usual"),
    ],
)
def test_limits_that_make_no_sense(limits: dict[str, float], text: str) -> None:
    with pytest.raises(RecipeError) as caught:
        check_limits(Limits(**limits))  # type: ignore[arg-type]
    assert str(caught.value) == text


def test_a_drop_limit_below_zero_asks_for_a_gain() -> None:
    check_limits(Limits(drop=-0.01))
    gained = dataclasses.replace(EVIDENCE, drop=between(-0.03, -0.012))
    assert result(gained, drop=-0.01).status == "pass"
