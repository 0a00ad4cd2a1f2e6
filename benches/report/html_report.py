"""The report as one HTML file: no network, no script, charts as inline SVG, readable in light and dark."""

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ...core.files import write_atomic
from ...core.limits import LimitResult
from ..audits import audit as audits, audit_text
from ..audits.audit import Audit
from ..device import device_page
from ..device.device_result import Devices, kept
from . import pareto, report_words, words
from .pages import page
from .report import Percentiles, Report, from_json

PAGE = "report.html"  # in the run directory
_DRAWN = ("p50", "p90", "p99", "p99.9")
_QUANTILE = re.compile(r"p(\d\d)_?(\d*)")  # fields of `Percentiles`: p50, p99, p99_9


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


@dataclasses.dataclass(frozen=True)
class Distribution:
    """The latency of both sides at one batch size."""

    batch: int
    change: str  # in words
    rows: tuple[tuple[str, str, str], ...]  # quantile, original and compressed in words
    original: tuple[Bar, ...]  # up to the first quantile, from there to the second ...
    final: tuple[Bar, ...]


def write(run: Path, report: Report, audit: Audit | None) -> None:
    """The page of a run directory, with what devices have measured of it."""
    write_atomic(run / PAGE, render_html(report, audit, kept(run)))


def rewrite(run: Path) -> None:
    """The page anew, from what the run directory holds.

    Raises:
        ArtifactError: its report cannot be read.
    """
    report = from_json((run / "report.json").read_text(encoding="utf-8"), str(run / "report.json"))
    write(run, report, audits.kept(run, report))


def render_html(report: Report, audit: Audit | None = None, devices: Devices | None = None) -> str:
    """The whole page as text. Every string of the user is escaped."""
    main, found, tried = report.original.metrics[report.main_metric], devices or Devices(), pareto.tried(report)
    return page(
        PAGE,
        report=report,
        sentence=report_words.verdict_sentence(report),
        comparison=report_words.comparison_rows(report),
        energy=report_words.energy_sentence(report),
        latency=[distribution(report, index) for index in range(len(report.latency))],
        tried=tried,
        tried_chart=pareto.chart(tried, report) if tried else None,
        tried_height=pareto.HEIGHT,
        untimed=_untimed(report),
        metric_value=lambda value: words.metric_value(main, value),
        milliseconds=words.milliseconds,
        device_rows=device_page.rows(report, found.results),
        device_models=device_page.models(found.results),
        not_measured=not_measured(report, audit, found),
        options="".join(
            f" --{key} {report.environment[key]}" for key in ("threads", "seed") if key in report.environment
        ),
        stages=stage_rows(report),
        accuracy_axis=_accuracy_axis_text(report),
        limits=[limit_row(report, result) for result in report.limits],
        group_rows=report_words.group_rows(report),
        answers=[
            line for line in (report_words.flips_sentence(report), report_words.calibration_sentence(report)) if line
        ],
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


def distribution(report: Report, index: int) -> Distribution:
    """Every quantile that the report holds of both sides, on one scale."""
    entry = report.latency[index]
    original, final = _quantiles(entry.original), _quantiles(entry.final)
    longest = max(side[name] for side in (original, final) for name in _DRAWN if name in side)
    return Distribution(
        batch=entry.batch,
        change=words.speed_change(entry.speedup),
        rows=tuple(
            (name, words.milliseconds(original[name]), words.milliseconds(final[name]))
            for name in original
            if name in final
        ),
        original=_pieces(original, longest),
        final=_pieces(final, longest),
    )


def _quantiles(side: Percentiles) -> dict[str, float]:
    """`p50` ... -> milliseconds, rising: the distribution of single calls, or the percentiles where there is none."""
    found = {_share_name(share): milliseconds for share, milliseconds in side.quantiles}
    if found:
        return found
    for field in dataclasses.fields(side):
        match, value = _QUANTILE.fullmatch(field.name), getattr(side, field.name)
        if match and value is not None:
            found[f"p{match[1]}.{match[2]}" if match[2] else field.name] = float(value)
    return dict(sorted(found.items(), key=lambda item: float(item[0][1:])))


def _share_name(share: float) -> str:
    """Of the calls: `p99.9`, and words for both ends."""
    return {0.0: "fastest", 1.0: "slowest"}.get(share, f"p{100 * share:.10g}")


def _pieces(quantiles: Mapping[str, float], longest: float) -> tuple[Bar, ...]:
    """From the median on, which the first piece ends at."""
    drawn = {name: 100 * value / longest for name, value in quantiles.items() if name in _DRAWN}
    starts = [0.0, *drawn.values()]
    return tuple(
        Bar(name, start, max(0.0, end - start)) for (name, end), start in zip(drawn.items(), starts, strict=False)
    )


def _untimed(report: Report) -> list[str]:
    """Forms of the judged file that were not timed, and what they gave."""
    main, found = report.original.metrics[report.main_metric], []
    for form in next((each.tried for each in report.artifacts if each.target == report.target), ()):
        if form.latency_ms is None or form.accuracy is None:
            gave = "" if form.accuracy is None else f"{words.metric_value(main, form.accuracy)}, "
            kept_float = f", {form.in_float} in float" if form.in_float else ""
            found.append(f"{form.dialect}{kept_float}: {gave}{words.decibels(form.snr_db)}")
    return found


def not_measured(report: Report, audit: Audit | None, devices: Devices) -> list[tuple[str, str]]:
    """(what, why) of everything that this report does not prove."""
    found = []
    if report.unmeasured_reason:
        found.append((f"latency and memory on {report.target}", report.unmeasured_reason))
    if report.latency and not report.throughput:
        asked = "not asked for: [measure] of the recipe names no concurrency"
        found.append((f"throughput on {report.target}", report.throughput_reason or asked))
    if reason := report.final.arena_reason or report.original.arena_reason:
        found.append((f"what the arena holds on {report.target}", reason))
    if reason := report.final.device_reason or report.original.device_reason:
        found.append((f"memory of the GPU on {report.target}", reason))
    for side, name in ((report.original, report.against), (report.final, "the result")):
        if side.start and side.start.graph_reason:
            found.append((f"{name} as a CUDA graph on {report.target}", side.start.graph_reason))
    found += [(each.target, each.reason or "not measured") for each in report.artifacts if not each.measured]
    if audit is None:
        found.append(("what the mean hides", "no audit yet: edgesmith audit, with the run's directory"))
    else:
        found += list(audit.not_measured.items())
    if not devices.results and not devices.unreadable:
        found.append(("other devices", "none yet: edgesmith bench, with the run's directory and --on"))
    return [*found, *(("a device", each) for each in devices.unreadable)]


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
                old=None if entry.old is None else report_words.stage_metrics(report, entry)[1],
                costs=costs,
                seconds=f"{entry.seconds:.1f} s",
                notes=entry.notes,
                guilty=entry.id in guilty,
            )
        )
    return rows


def limit_row(report: Report, result: LimitResult) -> LimitRow:
    """Place limit, estimate and interval on one axis that holds them all with some air."""
    at_least = "at least" in report_words.promise(report, result)
    points = [result.limit, *(value for value in (result.measured, result.low, result.high) if value is not None)]
    span = max(points) - min(points) or abs(result.limit) or 1.0
    left, width = min(points) - 0.15 * span, 1.3 * span

    def place(value: float) -> float:
        return 100 * (value - left) / width

    interval = None
    if result.low is not None and result.high is not None:
        start = place(result.low)
        interval = Bar(report_words.measured(report, result), start, max(1.0, place(result.high) - start))
    limit = place(result.limit)
    return LimitRow(
        status=result.status,
        promise=report_words.promise(report, result),
        measured=report_words.measured(report, result),
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
