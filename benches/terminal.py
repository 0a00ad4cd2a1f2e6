"""The report on the terminal: original against compressed, the ledger, the limits, the verdict."""

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..core.limits import Status
from . import words
from .report import Report

_LEFT = ("change", "note", "promise", "measured", "speed", "operator", "runs in", "rule")
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
        if artifact.engine is not None:
            console.print(Text(f"  {words.engine_sentence(artifact.engine)}"))
        if device := words.device_sentence(artifact):
            console.print(Text(f"  {device}"), soft_wrap=True)  # a command is copied: no line breaks in it
    console.print(
        Text.assemble((f"VERDICT: {report.verdict}", _STYLES[report.verdict]), " - ", words.verdict_sentence(report))
    )


def _comparison(report: Report) -> Table:
    title = f"{report.task} on {report.target}: original against compressed"
    table = new_table(title, "", "original", "compressed", "change")
    for row in words.comparison_rows(report):
        add_row(table, *row)
    return table


def _ledger(report: Report) -> Table:
    table = new_table(
        "Stage by stage, on validation data", "stage", report.main_metric, "latency", "MACs", "file size", "took"
    )
    metric = report.original.metrics[report.main_metric]
    for entry in report.stages:
        add_row(
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
    table = new_table("Limits", "", "promise", "measured", "note")
    for result in report.limits:
        mark = Text(result.status, style=_STYLES[result.status])
        table.add_row(
            mark, Text(words.promise(report, result)), Text(words.measured(report, result)), Text(result.note)
        )
    return table


def new_table(title: str, first: str, *columns: str) -> Table:
    """An empty table; numbers stand to the right, words to the left."""
    table = Table(title=Text(title), title_justify="left", title_style="bold")
    table.add_column(Text(first))
    for column in columns:
        table.add_column(Text(column), justify="left" if column in _LEFT else "right")
    return table


def add_row(table: Table, *cells: str) -> None:
    """Cells as they are, never as markup."""
    table.add_row(*(Text(cell) for cell in cells))
