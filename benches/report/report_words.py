"""What a report says, in words and rows: the same stand in the terminal, in the HTML report and in what a CI reads."""

from ...core.ledger import LedgerEntry
from ...core.limits import ASKED, LimitResult
from ...core.values import Interval
from . import words
from .report import MetricValue, Report, Side

# Limit name -> (what it is of, which side of the limit is kept).
_PROMISES = {
    "drop": ("loss of {metric}", "at most"),
    "metric": ("{metric}", "at least"),
    "negative_flips": ("share of samples right before and wrong now", "at most"),
    "class_drop": ("loss of {metric} in every class", "at most"),
    "slice_drop": ("loss of {metric} in every slice", "at most"),
    "corruption_drop": ("loss of {metric} under every corruption", "at most"),
    "disparity": ("growth of the gap in {metric} between groups", "at most"),
    "speedup": ("speed-up", "at least"),
    "latency_ms": ("latency", "at most"),
    ASKED: ("latency, beside what a pruning was asked for", "at most"),
    "peak_memory_ratio": ("peak memory", "at most"),
    "peak_memory_bytes": ("peak memory", "at most"),
    "file_ratio": ("file size", "at most"),
    "file_bytes": ("file size", "at most"),
    "macs_ratio": ("MACs", "at most"),
    "params_ratio": ("parameters", "at most"),
}

_LOSSES = ("drop", "class_drop", "slice_drop", "corruption_drop", "disparity")


def stage_metrics(report: Report, entry: LedgerEntry) -> list[str]:
    """The main metric of a stage, and that of the old task where there is one."""
    shown = [words.metric_value(report.original.metrics[report.main_metric], entry.accuracy)]
    if report.old_metric is not None:
        shown.append(words.metric_value(report.original.metrics[report.old_metric], entry.old))
    return shown


def metric_change(report: Report, name: str) -> str:
    """`-0.28 points (at most 1.08 lost at 95 %)` for the main metric; others without a bound."""
    original, final = report.original.metrics[name], report.final.metrics[name]
    if name != report.main_metric:
        return _signed(final.value - original.value, original)
    text = _signed(-report.drop.value if original.higher_is_better else report.drop.value, original)
    at = f"at {words.percent(report.confidence)}"
    won, lost = ("gained", "lost") if original.higher_is_better else ("better", "worse")
    if report.drop.high < 0:
        return f"{text} (at least {_unsigned(-report.drop.high, original)} {won} {at})"
    return f"{text} (at most {_unsigned(report.drop.high, original)} {lost} {at})"


def comparison_rows(report: Report) -> list[tuple[str, str, str, str]]:
    """(what, original, compressed, change in words), the main metric first."""
    first, last = report.original, report.final
    names = [report.main_metric, *(name for name in first.metrics if name != report.main_metric)]
    rows = [
        (
            name,
            words.metric_value(first.metrics[name]),
            words.metric_value(last.metrics[name]),
            metric_change(report, name),
        )
        for name in names
    ]
    for entry in report.latency:
        rows.append(
            (
                f"latency, batch {entry.batch}",
                words.milliseconds(entry.original.p50),
                words.milliseconds(entry.final.p50),
                words.speed_change(entry.speedup),
            )
        )
    if not report.latency:
        reason = report.unmeasured_reason
        rows.append(("latency", *(2 * (words.NOT_MEASURED,)), f"not measured: {reason}" if reason else "not measured"))
    rows += _throughput_rows(report) + _start_rows(report) + _energy_rows(report)
    for name, field, unit, (less, more) in (
        ("peak memory", "peak_memory_bytes", words.size, ("less", "more")),
        ("memory held", "held_memory_bytes", words.size, ("less", "more")),
        ("memory of the GPU", "device_memory_bytes", words.size, ("less", "more")),
        ("arena, held", "arena.held_bytes", words.size, ("less", "more")),
        ("arena, in use", "arena.used_bytes", words.size, ("less", "more")),
        ("file size", "file_bytes", words.size, ("smaller", "larger")),
        ("multiply-adds (MACs)", "macs", words.amount, ("fewer", "more")),
        ("parameters", "parameters", words.amount, ("fewer", "more")),
    ):
        before, after = (_figure(side, field) for side in (first, last))
        if before is None and after is None and field.startswith(("arena.", "device_")):
            continue  # why, stands with what was not measured; on a CPU there is no GPU's memory
        rows.append((name, unit(before), unit(after), words.ratio_change(before, after, less, more)))
    return rows


def _throughput_rows(report: Report) -> list[tuple[str, str, str, str]]:
    return [
        (
            f"{each.concurrency} at once, batch {each.batch}",
            words.rate(each.original.value),
            words.rate(each.final.value),
            words.gain(each.ratio),
        )
        for each in report.throughput
    ]


def throughput_sentence(report: Report) -> str:
    """Why throughput was not measured; empty where it was, and where nobody asked for it."""
    return f"throughput: {words.NOT_MEASURED}: {report.throughput_reason}" if report.throughput_reason else ""


def _figure(side: Side, field: str) -> int | None:
    """A figure of a model, or of a part of it (`arena.held_bytes`); None where it was not measured."""
    whole, _, part = field.rpartition(".")
    found: int | None = getattr(getattr(side, whole) if whole else side, part, None)
    return found


def _start_rows(report: Report) -> list[tuple[str, str, str, str]]:
    """Opening the file and the first call, in fresh processes; nothing where none was measured."""
    before, after = report.original.start, report.final.start
    if before is None or after is None:
        return []
    return [
        (title, words.milliseconds(first.value), words.milliseconds(last.value), _start_change(first, last))
        for title, first, last in (
            ("open the file", before.open_ms, after.open_ms),
            ("first call", before.first_ms, after.first_ms),
            ("later call, on the GPU alone", before.device_ms, after.device_ms),
            ("the same as a CUDA graph", before.graph_ms, after.graph_ms),
        )
        if first is not None and last is not None
    ]


def _energy_rows(report: Report) -> list[tuple[str, str, str, str]]:
    before, after, less = report.original.joules, report.final.joules, report.energy_saving
    if before is None or after is None or less is None:
        return []
    return [("energy per sample", words.joules(before.value), words.joules(after.value), words.saving(less))]


def energy_sentence(report: Report) -> str:
    """Why energy was not measured; empty where it was."""
    return f"energy: {words.NOT_MEASURED}: {report.energy_reason}" if report.energy_reason else ""


def arena_sentence(report: Report) -> str:
    """Why what the runtime's arena holds was not measured; empty where it was, and where no memory was."""
    reason = report.final.arena_reason or report.original.arena_reason
    return f"arena: {words.NOT_MEASURED}: {reason}" if reason else ""


def device_memory_sentence(report: Report) -> str:
    """Why a GPU's memory was not measured; empty where it was, and where there is no GPU."""
    reason = report.final.device_reason or report.original.device_reason
    return f"memory of the GPU: {words.NOT_MEASURED}: {reason}" if reason else ""


def clocks_sentence(report: Report) -> str:
    """Whether a GPU's clocks were watched; empty where there was no GPU."""
    return next((f"GPU clocks: {each.clocks}" for each in report.latency if each.clocks), "")


def _start_change(first: Interval, last: Interval) -> str:
    """No factor where the two spreads overlap: a few processes cannot tell them apart."""
    if first.low <= last.high and last.low <= first.high:
        return "no difference that could be measured"
    return words.ratio_change(first.value, last.value, "faster", "slower")


def promise(report: Report, result: LimitResult) -> str:
    """A limit in words, with the number as the recipe gave it: `speed-up at least 2x`."""
    subject, bound = _PROMISES[result.name]
    metric = report.final.metrics[report.main_metric]
    if result.name == "metric" and not metric.higher_is_better:
        bound = "at most"
    limit, unit = _in_unit(report, result.name, result.limit)
    unit = " point" if unit == " points" and limit == 1 else unit
    exact = f"{limit:.9g}{unit}" if not result.name.endswith("_bytes") else words.size(result.limit)
    return f"{subject.format(metric=report.main_metric)} {bound} {exact}"


def measured(report: Report, result: LimitResult) -> str:
    """What was measured against a limit, with its bounds where they differ: `3.10x (2.88 to 3.29)`."""
    if result.measured is None or result.low is None or result.high is None:
        return words.NOT_MEASURED
    value, unit = _in_unit(report, result.name, result.measured)
    if result.name.endswith("_bytes"):
        text, low, high = (words.size(number) for number in (result.measured, result.low, result.high))
    else:
        low, high = (_plain(result.name, _in_unit(report, result.name, end)[0]) for end in (result.low, result.high))
        text = _plain(result.name, value) + unit
    return text if result.low == result.high else f"{text} ({low} to {high})"


def verdict_sentence(report: Report) -> str:
    """The verdict in one sentence."""
    at = f"at {words.percent(report.confidence)} confidence"
    names = {status: [r.name for r in report.limits if r.status == status] for status in ("fail", "unproven")}
    if report.verdict == "pass":
        return f"every limit is kept, proven {at}"
    if report.verdict == "fail":
        return f"{_of(names['fail'], report)} missed, proven {at}"
    return f"no limit is missed, but {_of(names['unproven'], report)} not proven {at}"


def group_rows(report: Report) -> list[tuple[str, str, str, str, str]]:
    """(group, test samples, original, compressed, loss with its bounds), what lost most first."""
    metric, rows = report.original.metrics[report.main_metric], []
    for group in sorted(report.groups, key=lambda each: -(each.drop.value if each.drop else 0.0)):
        name, count = f"{group.kind} {group.name}", f"{group.samples:,}"
        if group.drop is None or group.original is None or group.final is None:
            rows.append((name, count, "", "", "too few to say"))
            continue
        points = " points" if metric.kind == "proportion" else ""
        value, low, high = (_unsigned(each, metric) for each in (group.drop.value, group.drop.low, group.drop.high))
        sides = words.metric_value(metric, group.original), words.metric_value(metric, group.final)
        rows.append((name, count, *sides, f"{value}{points} ({low} to {high})"))
    return rows


def flips_sentence(report: Report) -> str:
    """How many answers changed and which; empty where answers are not right or wrong."""
    if report.flips is None:
        return ""
    found = report.flips

    def some(count: int, examples: tuple[int, ...]) -> str:
        more = ", ..." if count > len(examples) else ""
        return f"{count:,}" + (f" (samples {', '.join(map(str, examples))}{more})" if count else "")

    return (
        f"flips: right to wrong {some(found.lost, found.lost_examples)}, "
        f"wrong to right {some(found.won, found.won_examples)}"
    )


def calibration_sentence(report: Report) -> str:
    """Both sides' calibration error; empty where the output is not one score per class."""
    if report.calibration_error is None:
        return ""
    found = report.calibration_error
    return (
        f"calibration error (ECE, {found.bins} bins): {100 * found.original:.2f} % {report.against}, "
        f"{100 * found.final:.2f} % compressed"
    )


def _of(names: list[str], report: Report) -> str:
    return f"{len(names)} of {len(report.limits)} limits ({', '.join(names)}) {'is' if len(names) == 1 else 'are'}"


def _unsigned(value: float, metric: MetricValue) -> str:
    return f"{100 * value:.2f}" if metric.kind == "proportion" else words.significant(value)


def _signed(change: float, metric: MetricValue) -> str:
    if metric.kind == "proportion":
        return f"{round(100 * change, 2) + 0.0:+.2f} points"  # not "-0.00"
    return f"{'-' if change < 0 else '+'}{words.significant(abs(change))}"


def _in_unit(report: Report, name: str, value: float) -> tuple[float, str]:
    """A limit's number in the unit people use, and that unit."""
    proportion = report.final.metrics[report.main_metric].kind == "proportion"
    if name in _LOSSES:
        return (100 * value, " points") if proportion else (value, "")
    if name in ("metric", "negative_flips"):
        return (100 * value, " %") if proportion else (value, "")
    if name.endswith("_ratio"):
        return 100 * value, f" % of {'the original' if report.against == 'original' else report.against}"
    return value, {"speedup": "x", "latency_ms": " ms", ASKED: " ms"}.get(name, "")


def _plain(name: str, value: float) -> str:
    """Two decimals where that is what the unit needs, else three significant digits."""
    return (
        f"{value:.2f}"
        if name in (*_LOSSES, "metric", "negative_flips", "speedup") and abs(value) >= 0.1
        else words.significant(value)
    )
