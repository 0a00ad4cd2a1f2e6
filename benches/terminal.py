"""The report on the terminal: original against compressed, the ledger, the limits, the verdict."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..core.limits import Status
from . import words
from .latency import PairedLatency
from .report import Report, SpeedUp

_LEFT = ("change", "note", "promise", "measured", "speed")
_STYLES: dict[Status, str] = {"pass": "bold green", "fail": "bold red", "unproven": "bold yellow"}


def print_report(report: Report, console: Console) -> None:
    """Print what a newcomer should know, the verdict last. User strings are printed as they are, never as markup."""
    console.print(_comparison(report))
    console.print()
    console.print(_ledger(report))
    if report.guilty_stage is not None:
        console.print(Text(f"Most of the loss of {report.main_metric} came from: {report.guilty_stage}"))
    console.print()
    console.print(_limits(report))
    for artifact in report.artifacts:
        how = "measured" if artifact.measured else "not measured"
        reason = f": {artifact.reason}" if artifact.reason else ""
        console.print(Text(f"{artifact.target} ({artifact.path}, {artifact.dialect}): {how}{reason}"))
    console.print(
        Text.assemble((f"VERDICT: {report.verdict}", _STYLES[report.verdict]), " - ", words.verdict_sentence(report))
    )


def print_latency(results: Sequence[PairedLatency], files: Sequence[Path], console: Console) -> None:
    """Print what `compare_files.bench` measured, one table per batch size; files are numbered, for paths are long."""
    for number, path in enumerate(files, 1):
        console.print(Text(f"{number}: {path}"), soft_wrap=True)
    for result in results:
        table = _table(f"Batch {result.batch}, {result.threads} thread(s)", "file", "median", "p90", "p99", "speed")
        for index, latency in enumerate(result.latency):
            cells = [words.milliseconds(value) for value in (latency.p50, latency.p90, latency.p99)]
            _row(table, str(index + 1), *cells, _speed(result, index))
        console.print(table)
        console.print(
            Text(f"The first file against itself: up to {100 * result.noise_floor:.1f} % apart (noise floor).")
        )


def _speed(result: PairedLatency, index: int) -> str:
    if index == 0:
        return "baseline"
    found = result.speedup[index - 1]
    return words.speed_change(
        SpeedUp(
            batch=result.batch,
            median=found.value,
            low=found.low,
            high=found.high,
            noise_floor=result.noise_floor,
        )
    )


def _comparison(report: Report) -> Table:
    title = f"{report.task} on {report.target}: original against compressed"
    table = _table(title, "", "original", "compressed", "change")
    for row in words.comparison_rows(report):
        _row(table, *row)
    return table


def _ledger(report: Report) -> Table:
    table = _table(
        "Stage by stage, on validation data", "stage", report.main_metric, "latency", "MACs", "file size", "took"
    )
    metric = report.original.metrics[report.main_metric]
    for entry in report.stages:
        _row(
            table,
            entry.id if entry.id == entry.name else f"{entry.id} ({entry.name})",
            words.metric_value(metric, entry.accuracy),
            words.milliseconds(entry.latency_ms),
            words.amount(entry.macs),
            words.size(entry.file_bytes),
            f"{entry.seconds:.1f} s",
        )
    return table


def _limits(report: Report) -> Table:
    table = _table("Limits", "", "promise", "measured", "note")
    for result in report.limits:
        mark = Text(result.status, style=_STYLES[result.status])
        table.add_row(
            mark, Text(words.promise(report, result)), Text(words.measured(report, result)), Text(result.note)
        )
    return table


def _table(title: str, first: str, *columns: str) -> Table:
    table = Table(title=Text(title), title_justify="left", title_style="bold")
    table.add_column(Text(first))
    for column in columns:
        table.add_column(Text(column), justify="left" if column in _LEFT else "right")
    return table


def _row(table: Table, *cells: str) -> None:
    table.add_row(*(Text(cell) for cell in cells))
