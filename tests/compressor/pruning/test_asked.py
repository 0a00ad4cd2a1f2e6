"""What a pruning was asked for, held against the finished artefact's own measurement."""

from typing import Any

import pytest

from edgesmith.benches.gates.judge import Evidence, SideEvidence
from edgesmith.compressor.pruning import asked
from edgesmith.core.values import Interval

RATIO = {"key": "latency_ratio", "value": 0.4, "whole": 0.5}  # the whole in INT8 takes half the original's time
MS = {"key": "latency_ms", "value": 1.5}


def evidence(milliseconds: tuple[float, ...], speedup: tuple[float, ...]) -> Evidence:
    def interval(given: tuple[float, ...]) -> Interval:
        return Interval(value=given[0], low=given[1], high=given[2])

    other = Interval(value=99.0, low=98.0, high=100.0)
    speedups = {1: interval(speedup), 32: other}
    side = SideEvidence()
    return Evidence(original=side, final=side, speedups=speedups, latency_ms=interval(milliseconds))


@pytest.mark.parametrize(
    ("kept", "milliseconds", "speedup", "note", "limit"),
    [
        (MS, (1.46, 1.44, 1.49), (2, 1.9, 2.1), "latency_ms 1.5 asked, the finished artefact has 1.46 (1.44 to 1.49)", None),
        (MS, (1.7, 1.57, 1.8), (2, 1.9, 2.1), "latency_ms 1.5 asked, the finished artefact has 1.7 (1.57 to 1.8)", None),
        (MS, (1.7, 1.6, 1.8), (2, 1.9, 2.1), "latency_ms 1.5 asked, the finished artefact has 1.7 (1.6 to 1.8)", 1.575),
        # 5x of the original is 0.2 of it, and 0.4 of the whole as deployed.
        (RATIO, (1, 1, 1), (5, 4.8, 5.2), "latency_ratio 0.4 asked, the finished artefact has 0.4 (0.385 to 0.417)", None),
        (RATIO, (1, 1, 1), (4, 3.9, 4.1), "latency_ratio 0.4 asked, the finished artefact has 0.5 (0.488 to 0.513)", 0.84),
    ],
)  # fmt: skip
def test_five_percent_above_is_a_limit_missed(
    kept: dict[str, Any], milliseconds: tuple[float, ...], speedup: tuple[float, ...], note: str, limit: float | None
) -> None:
    notes, missed = asked.held("prune", kept, evidence(milliseconds, speedup))
    assert notes == [note]
    assert [each.limit for each in missed] == ([] if limit is None else [pytest.approx(limit)])
    for each in missed:
        assert each.name == "asked_latency" and each.status == "fail" and each.measured == milliseconds[0]
        assert each.low is not None and each.high is not None and each.limit < each.low < each.measured < each.high
        wanted = f"{kept['key']} = {kept['value']}"
        assert each.note == f"stage 'prune' was asked for {wanted}, of which 5 % more is let pass"


def test_without_a_measurement_nothing_is_said() -> None:
    side = SideEvidence()
    assert asked.held("prune", MS, Evidence(original=side, final=side)) == ([], [])
