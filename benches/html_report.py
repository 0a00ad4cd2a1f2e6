"""The report as one HTML file: no network, no script, charts as inline SVG, readable in light and dark."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from ..core.limits import LimitResult
from . import audit_text, words
from .audit import Audit
from .pages import page
from .report import Report


@dataclasses.dataclass(frozen=True)
class Bar:
    """A bar or a mark in a chart 100 units wide."""

    label: str
    start: float
    width: float


@dataclasses.dataclass(frozen=True)
class StageRow:
    """One line of the ledger."""

    label: str
    accuracy: Bar
    old: str | None  # main metric of the old task
    costs: tuple[tuple[str, Bar], ...]  # column title and bar: latency, MACs, file size
    seconds: str
    notes: tuple[str, ...]
    guilty: bool


@dataclasses.dataclass(frozen=True)
class LimitRow:
    """One limit with its interval drawn against the limit."""

    status: str
    promise: str
    measured: str
    note: str
    interval: Bar | None
    estimate: float
    limit: float
    kept_start: float  # the side of the limit that is allowed
    kept_width: float


def render_html(report: Report, audit: Audit | None = None) -> str:
    """The whole page as text. Every string of the user is escaped."""
    main = report.original.metrics[report.main_metric]
    return page(
        "report.html",
        report=report,
        sentence=words.verdict_sentence(report),
        comparison=words.comparison_rows(report),
        energy=words.energy_sentence(report),
        latency=[_latency_bars(report, index) for index in range(len(report.latency))],
        stages=stage_rows(report),
        accuracy_axis=_accuracy_axis_text(report),
        limits=[limit_row(report, result) for result in report.limits],
        group_rows=words.group_rows(report),
        answers=[line for line in (words.flips_sentence(report), words.calibration_sentence(report)) if line],
        audit=audit,
        audit_lines=[] if audit is None else audit_text.sentences(audit, report),
        audit_rows=[] if audit is None else audit_text.detail_rows(audit.corruptions, main),
        audit_limits=_audit_limits(report, audit),
        confidence=words.percent(report.confidence),
        size=words.size,
        engine_sentence=words.engine_sentence,
        device_sentence=words.device_sentence,
        decibels=words.decibels,
        microseconds=words.microseconds,
        layer_sentence=words.layer_sentence,
        ranges_sentence=words.ranges_sentence,
        share=words.share,
        significant=words.significant,
    )


def _audit_limits(report: Report, audit: Audit | None) -> list[LimitRow]:
    """Those that are not among the run's own, which have their section."""
    own = {(each.name, each.limit) for each in report.limits}
    results = () if audit is None else audit.limits
    return [limit_row(report, each) for each in results if (each.name, each.limit) not in own]


def _latency_bars(report: Report, index: int) -> tuple[str, str, tuple[Bar, Bar], tuple[Bar, Bar]]:
    """Batch size, speed-up in words, then (median, up to p99) of the original and of the final model."""
    entry = report.latency[index]
    longest = max(entry.original.p99, entry.final.p99)
    original, final = (
        (
            Bar(words.milliseconds(side.p50), 0, 100 * side.p50 / longest),
            Bar(words.milliseconds(side.p99), 100 * side.p50 / longest, 100 * (side.p99 - side.p50) / longest),
        )
        for side in (entry.original, entry.final)
    )
    return str(entry.batch), words.speed_change(entry.speedup), original, final


def stage_rows(report: Report) -> list[StageRow]:
    """The ledger with one chart per column, each scaled to the column's largest value (accuracy: to its range)."""
    low, high = _accuracy_axis(report)
    metric = report.original.metrics[report.main_metric]
    guilty = set((report.guilty_stage or "").split(" + "))
    rows = []
    for entry in report.stages:
        costs = (
            ("latency", _cost(entry.latency_ms, [stage.latency_ms for stage in report.stages], words.milliseconds)),
            ("MACs", _cost(entry.macs, [stage.macs for stage in report.stages], words.amount)),
            ("file size", _cost(entry.file_bytes, [stage.file_bytes for stage in report.stages], words.size)),
        )
        rows.append(
            StageRow(
                label=entry.id if entry.id == entry.name else f"{entry.id} ({entry.name})",
                accuracy=Bar(words.metric_value(metric, entry.accuracy), 97 * (entry.accuracy - low) / (high - low), 3),
                old=None if entry.old is None else words.stage_metrics(report, entry)[1],
                costs=costs,
                seconds=f"{entry.seconds:.1f} s",
                notes=entry.notes,
                guilty=entry.id in guilty,
            )
        )
    return rows


def limit_row(report: Report, result: LimitResult) -> LimitRow:
    """Place limit, estimate and interval on one axis that holds them all with some air."""
    at_least = "at least" in words.promise(report, result)
    points = [result.limit, *(value for value in (result.measured, result.low, result.high) if value is not None)]
    span = max(points) - min(points) or abs(result.limit) or 1.0
    left, width = min(points) - 0.15 * span, 1.3 * span

    def place(value: float) -> float:
        return 100 * (value - left) / width

    interval = None
    if result.low is not None and result.high is not None:
        start = place(result.low)
        interval = Bar(words.measured(report, result), start, max(1.0, place(result.high) - start))
    limit = place(result.limit)
    return LimitRow(
        status=result.status,
        promise=words.promise(report, result),
        measured=words.measured(report, result),
        note=result.note,
        interval=interval,
        estimate=place(result.measured) if result.measured is not None else limit,
        limit=limit,
        kept_start=limit if at_least else 0.0,
        kept_width=100 - limit if at_least else limit,
    )


def _cost(value: float | None, column: Sequence[float | None], text: Callable[[Any], str]) -> Bar:
    largest = max((entry for entry in column if entry is not None), default=0) or 1
    return Bar(text(value), 0, 100 * (value or 0) / largest)


def _accuracy_axis(report: Report) -> tuple[float, float]:
    """The range of the ledger's main metric; a point wide where nothing moved."""
    values = [entry.accuracy for entry in report.stages] or [0.0]
    low, high = min(values), max(values)
    return (low, high) if high > low else (low - 0.005, high + 0.005)


def _accuracy_axis_text(report: Report) -> str:
    metric = report.original.metrics[report.main_metric]
    low, high = _accuracy_axis(report)
    return f"{words.metric_value(metric, low)} to {words.metric_value(metric, high)}"
