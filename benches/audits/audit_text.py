"""An audit in words: the same stand on the terminal and in the HTML report."""

from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

from ..metrics.groups import GroupLoss
from ..report import report_words, words
from ..report.report import MetricValue, Report
from ..report.terminal import STYLES, add_row, new_table
from .audit import Audit

_TITLES = {
    "corruptions": "corruptions",
    "disparities": "gap between groups",
    "perturbation": "small noise",
    "attribution": "where the models look",
}


def corruption_rows(audit: Audit, report: Report) -> list[tuple[str, str, str, str, str]]:
    """(corruption, original and compressed at each severity, largest loss with its bounds, its severity)."""
    metric, rows = report.original.metrics[report.main_metric], []
    for name, losses in _by_name(audit).items():
        worst = max(losses, key=lambda each: each.drop.value if each.drop else 0.0)
        sides = ((each.original for each in losses), (each.final for each in losses))
        before, after = ("/".join(_short(metric, value) for value in side) for side in sides)
        drop = worst.drop
        lost = "" if drop is None else _range(*(_short(metric, each) for each in (drop.value, drop.low, drop.high)))
        rows.append((name, before, after, lost, worst.name.rpartition(" ")[2]))
    return rows


def loss_text(loss: GroupLoss, metric: MetricValue) -> str:
    """`2.22 points (0.10 to 4.31)`."""
    if loss.drop is None:
        return "too few to say"
    return _interval_text(metric, loss.drop.value, loss.drop.low, loss.drop.high)


def sentences(audit: Audit, report: Report) -> list[str]:
    """What is no table: gaps, flips, attribution, and what was not measured with its reason."""
    metric, said = report.original.metrics[report.main_metric], []
    for each in audit.disparities:
        grown = _interval_text(metric, each.growth.value, each.growth.low, each.growth.high)
        kind = {"class": "classes", "slice": "slices"}[each.kind]
        said.append(
            f"gap in {audit.main_metric} between the best ('{each.best}') and the worst ('{each.worst}') of "
            f"{each.groups} {kind}: {_gap(metric, each.original)} {audit.against}, {_gap(metric, each.final)} "
            f"compressed; grew by {grown}"
        )
    if audit.perturbation is not None:
        flips, more = audit.perturbation, audit.perturbation.more
        said.append(
            f"small noise ({words.percent(flips.noise)} of the range, {flips.draws} draws) flips "
            f"{_percent(flips.original)} of the answers {audit.against}, {_percent(flips.final)} compressed; "
            f"{100 * more.value:.2f} points more ({100 * more.low:.2f} to {100 * more.high:.2f})"
        )
    if audit.attribution is not None:
        maps = audit.attribution
        said.append(
            f"where the models look (occlusion of {maps.features} features, {maps.samples} samples): rank correlation "
            f"{maps.correlation.value:.2f} ({maps.correlation.low:.2f} to {maps.correlation.high:.2f}), the {maps.top} "
            f"that matter most agree in {_percent(maps.overlap.value)}; least in sample {maps.worst_sample} "
            f"({maps.worst_correlation:.2f})"
        )
    return said + [f"{_TITLES[name]}: not measured: {why}" for name, why in audit.not_measured.items()]


def group_sentence(audit: Audit, report: Report) -> str:
    """The three groups that lost most; empty where there are none."""
    metric = report.original.metrics[report.main_metric]
    ranked = sorted(audit.groups, key=lambda each: -(each.drop.value if each.drop else 0.0))
    worst = "; ".join(f"{each.kind} {each.name} {loss_text(each, metric)}" for each in ranked[:3])
    return f"lost most of {len(ranked)} groups: {worst}" if ranked else ""


def print_audit(audit: Audit, report: Report, console: Console) -> None:
    """One screen, the verdict last."""
    if audit.corruptions:
        severities = "/".join(map(str, audit.severities))
        title = f"{audit.task}: {audit.main_metric} on corrupted test data, severity {severities}"
        table = new_table(title, "corruption", audit.against, "compressed", "largest loss", "at")
        for row in corruption_rows(audit, report):
            add_row(table, *row)
        console.print(table)
    for line in (group_sentence(audit, report), *sentences(audit, report)):
        if line:
            console.print(Text(line))
    if not audit.limits:
        console.print(Text("AUDIT: no limit is set on any of this"))
        return
    table = new_table("Limits", "", "promise", "measured", "note")
    for result in audit.limits:
        add_row(
            table,
            result.status,
            report_words.promise(report, result),
            report_words.measured(report, result),
            result.note,
        )
    console.print(table)
    status = audit.verdict.status
    console.print(Text.assemble((f"AUDIT: {status}", STYLES[status]), f" - {verdict_sentence(audit)}"))


def verdict_sentence(audit: Audit) -> str:
    """The status and why, in one line."""
    status, at = audit.verdict.status, f"at {words.percent(audit.confidence)} confidence"
    if status == "pass":
        return f"every limit on what the mean hides is kept, proven {at}"
    names = [each.name for each in audit.limits if each.status == status]
    how = "missed" if status == "fail" else "not proven"
    return f"{len(names)} of {len(audit.limits)} limits {how} ({', '.join(names)})"


def _by_name(audit: Audit) -> dict[str, list[GroupLoss]]:
    found: dict[str, list[GroupLoss]] = {}
    for each in audit.corruptions:
        found.setdefault(each.name.rpartition(" ")[0], []).append(each)
    return found


def _short(metric: MetricValue, value: float | None) -> str:
    if value is None:
        return ""
    return f"{100 * value:.1f}" if metric.kind == "proportion" else words.significant(value)


def _interval_text(metric: MetricValue, *values: float) -> str:
    value, low, high = (_unit(metric, each) for each in values)
    return _range(f"{value} points" if metric.kind == "proportion" else value, low, high)


def _range(value: str, low: str, high: str) -> str:
    return f"{value} ({low} to {high})"


def _unit(metric: MetricValue, value: float) -> str:
    return f"{100 * value:.2f}" if metric.kind == "proportion" else words.significant(value)


def _gap(metric: MetricValue, value: float) -> str:
    return f"{_unit(metric, value)}{' points' if metric.kind == 'proportion' else ''}"


def _percent(value: float) -> str:
    return f"{100 * value:.2f} %"


def detail_rows(losses: Sequence[GroupLoss], metric: MetricValue) -> list[tuple[str, str, str, str, str]]:
    """(group, test samples, original, compressed, loss with its bounds) as they stand."""
    return [
        (
            each.name,
            f"{each.samples:,}",
            "" if each.original is None else words.metric_value(metric, each.original),
            "" if each.final is None else words.metric_value(metric, each.final),
            loss_text(each, metric),
        )
        for each in losses
    ]
