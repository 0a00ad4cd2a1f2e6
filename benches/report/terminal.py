"""The report on the terminal: original against compressed, the ledger, the limits, the verdict."""

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ...core.limits import Status
from . import report_words, words
from .report import Report

_LEFT = ("change", "note", "promise", "measured", "speed", "operator", "runs in", "rule")
STYLES: dict[Status, str] = {"pass": "bold green", "fail": "bold red", "unproven": "bold yellow"}


def print_report(report: Report, console: Console) -> None:
    """Print what a newcomer should know, the verdict last. User strings are printed as they are, never as markup."""
    console.print(_comparison(report))
    console.print()
    console.print(_ledger(report))
    if report.guilty_stage is not None:
        console.print(Text(f"Most of the loss of {report.main_metric} came from: {report.guilty_stage}"))
    console.print()
    console.print(_limits(report))
    sentences = (
        report_words.flips_sentence,
        report_words.calibration_sentence,
        report_words.throughput_sentence,
        report_words.arena_sentence,
        report_words.device_memory_sentence,
        report_words.energy_sentence,
        report_words.clocks_sentence,
    )
    for line in (_worst_groups(report), *(sentence(report) for sentence in sentences)):
        if line:
            console.print(Text(line))
    for artifact in report.artifacts:
        how = "measured" if artifact.measured else "not measured"
        reason = f": {artifact.reason}" if artifact.reason else ""
        console.print(Text(f"{artifact.target} ({artifact.path}, {artifact.dialect}): {how}{reason}"))
        if artifact.engine is not None:
            console.print(Text(f"  {words.engine_sentence(artifact.engine)}"))
        if device := words.device_sentence(artifact):
            console.print(Text(f"  {device}"), soft_wrap=True)  # a command is copied: no line breaks in it
    console.print(
        Text.assemble(
            (f"VERDICT: {report.verdict}", STYLES[report.verdict]), " - ", report_words.verdict_sentence(report)
        )
    )


def _worst_groups(report: Report) -> str:
    """The three that lost most, in one line."""
    rows = report_words.group_rows(report)
    worst = "; ".join(f"{name} {loss}" for name, _, _, _, loss in rows[:3])
    return f"lost most of {len(rows)} groups: {worst}" if rows else ""


def _comparison(report: Report) -> Table:
    title = f"{report.task} on {report.target}: {report.against} against compressed"
    table = new_table(title, "", report.against, "compressed", "change")
    for row in report_words.comparison_rows(report):
        add_row(table, *row)
    return table


def _ledger(report: Report) -> Table:
    measured = [report.main_metric] if report.old_metric is None else [report.main_metric, report.old_metric]
    table = new_table("Stage by stage, on validation data", "stage", *measured, "latency", "MACs", "file size", "took")
    for entry in report.stages:
        add_row(
            table,
            entry.id if entry.id == entry.name else f"{entry.id} ({entry.name})",
            *report_words.stage_metrics(report, entry),
            words.milliseconds(entry.latency_ms),
            words.amount(entry.macs),
            words.size(entry.file_bytes),
            f"{entry.seconds:.1f} s",
        )
    return table


def _limits(report: Report) -> Table:
    table = new_table("Limits", "", "promise", "measured", "note")
    for result in report.limits:
        mark = Text(result.status, style=STYLES[result.status])
        table.add_row(
            mark,
            Text(report_words.promise(report, result)),
            Text(report_words.measured(report, result)),
            Text(result.note),
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
