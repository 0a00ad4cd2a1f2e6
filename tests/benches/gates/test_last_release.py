"""A run's figures against the last release's, by what both reports hold."""

import dataclasses
from pathlib import Path

import pytest

from edgesmith.benches.gates import last_release
from edgesmith.benches.gates.finished import Finished
from edgesmith.benches.gates.gate_check import Check
from edgesmith.benches.metrics.metrics import METRICS
from edgesmith.benches.report.report import Report
from tests.benches.sample_report import make_report


def compared(name: str, ours: Report, theirs: Report) -> Check:
    run, baseline = (Finished(path=Path("report.json"), report=each, arrays=None) for each in (ours, theirs))
    return last_release.compare(name, run, baseline, METRICS["accuracy"], {}, {})


def with_speedups(report: Report, *found: tuple[int, float, float, float]) -> Report:
    """(batch, low, median, high), each in place of what the report has."""
    entry = report.latency[0]
    return dataclasses.replace(
        report,
        latency=tuple(
            dataclasses.replace(
                entry,
                batch=batch,
                speedup=dataclasses.replace(entry.speedup, batch=batch, low=low, median=median, high=high),
            )
            for batch, low, median, high in found
        ),
    )


@pytest.fixture
def theirs() -> Report:
    return with_speedups(make_report(), (1, 2.0, 2.0, 2.0), (32, 3.0, 3.0, 3.0))


def other_file(report: Report) -> Report:
    return dataclasses.replace(
        report, artifacts=tuple(dataclasses.replace(each, digest="cd" * 32) for each in report.artifacts)
    )


def test_a_batch_size_that_proves_nothing_is_not_hidden_by_one_that_lost_more(theirs: Report) -> None:
    """Batch 1 lost 3 % for certain, batch 32 may have lost anything up to 50 %."""
    ours = other_file(with_speedups(theirs, (1, 1.94, 1.94, 1.94), (32, 2.0, 2.97, 4.0)))
    found = compared("speedup", ours, theirs)
    assert (found.status, found.found) == ("unproven", "+1.0 % (-25.0 % to +50.0 %)")
    assert found.note == "batch 32, the worst of 1, 32; each against its own original"


def test_a_proven_loss_decides_over_a_larger_one_that_is_not_proven(theirs: Report) -> None:
    ours = other_file(with_speedups(theirs, (1, 1.0, 1.5, 2.5), (32, 2.6, 2.7, 2.8)))
    found = compared("speedup", ours, theirs)
    assert (found.status, found.note.partition(",")[0]) == ("fail", "batch 32")


def test_a_batch_size_that_only_one_of_the_runs_has_is_named(theirs: Report) -> None:
    ours = with_speedups(theirs, (1, 2.0, 2.0, 2.0), (8, 0.1, 0.1, 0.1))
    found = compared("speedup", ours, theirs)
    assert found.note == "batch 1, the worst of 1; each against its own original; not in both runs: batch 8, 32"


def with_memory(report: Report, **limits: tuple[float, float, float]) -> Report:
    """Limits on memory, each with (low, measured, high)."""
    one = report.limits[0]
    return dataclasses.replace(
        report,
        limits=tuple(
            dataclasses.replace(one, name=name, limit=1e9, low=low, measured=measured, high=high, status="pass")
            for name, (low, measured, high) in limits.items()
        ),
    )


def test_a_ratio_to_another_original_says_nothing_of_the_file(theirs: Report) -> None:
    """The new original takes twice the memory: a smaller ratio to it is no less memory."""
    before = with_memory(theirs, peak_memory_ratio=(0.5, 0.5, 0.5), peak_memory_bytes=(50e6, 50e6, 50e6))
    ours = other_file(with_memory(theirs, peak_memory_ratio=(0.45, 0.45, 0.45)))
    assert compared("peak_memory", ours, before).found == "-10.0 %"
    ours = dataclasses.replace(ours, original=dataclasses.replace(ours.original, parameters=10**6))
    found = compared("peak_memory", ours, before)
    assert (found.status, found.found) == ("unproven", "not compared")
    assert found.note == (
        "not compared: the runs' peak_memory is a ratio to different originals; set peak_memory_bytes in both"
    )
    both = {"peak_memory_ratio": (0.45, 0.45, 0.45), "peak_memory_bytes": (90e6, 90e6, 90e6)}
    ours = dataclasses.replace(ours, limits=with_memory(theirs, **both).limits)
    assert (compared("peak_memory", ours, before).status, compared("peak_memory", ours, before).found) == (
        "fail",
        "+80.0 %",
    )


def test_a_last_release_that_adds_no_memory(theirs: Report) -> None:
    """A small file may add nothing to the runtime's own memory; it divided by zero."""
    ours = other_file(with_memory(theirs, peak_memory_bytes=(0.0, 1e5, 2e5)))
    found = compared("peak_memory", ours, with_memory(theirs, peak_memory_bytes=(0.0, 0.0, 1e5)))
    assert (found.status, found.found) == ("unproven", "not compared")
    assert found.note == "not compared: the last release's is too small to be told from none"
